"""Builds data sets for recipes: python -m data_prep.build NAME --source=DIR --data_dir=DIR"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from data_prep.building.card import Card
from data_prep.building.own import OWN, SHARES, Own, shares_from
from data_prep.building.records import DataSet
from data_prep.building.store import build, folder
from data_prep.reading.bad_records import ALWAYS, HELP, listing
from data_prep.reading.published import Published, locate
from data_prep.sets import find_sets
from vitar_jax.episodes.regions import UNITS
from vitar_jax.errors import DataError
from vitar_jax.runtime.user_errors import one_line_errors


@one_line_errors(paths=True)
def main() -> None:
    """Reads a published data set or your own questions, checks them, and writes ArrayRecord files and a data card."""
    sets = find_sets()
    arguments = _parser([module.SET for module in sets.values()]).parse_args()
    dataset = OWN if arguments.name == OWN.name else sets[arguments.name].SET
    place = folder(arguments.data_dir, dataset)
    if place.exists() and not arguments.overwrite:
        if dataset is OWN:
            _check_same(place, _own_source(arguments.source))
        print(f"{place}: already built; pass --overwrite to rebuild it")
        return
    card = _build_own(arguments) if dataset is OWN else _build_published(sets[dataset.name], arguments)
    print(f"{place}: built\n\n{card.markdown()}")


def _build_published(module: ModuleType, arguments: argparse.Namespace) -> Card:
    source, origin = locate(arguments.source, module.SET.hub_files)
    bad: list[DataError] = []
    published = Published(source, bad)

    def notes() -> list[str]:
        return [f"{len(bad)} invalid records were left out."] if bad else []

    with listing(bad):
        splits = module.read(published)
        return build(
            module.SET,
            splits,
            arguments.data_dir,
            origin=origin,
            checksums=published.checksums(),
            notes=notes,
            bad=bad,
            skip_bad=arguments.skip_bad or module.SET.skip_bad,
        )


def _own_source(source: str) -> Published:
    """Returns the folder of a question file, which counts as used."""
    published = Published(Path(source).parent)
    published.file(Path(source).name)
    return published


def _check_same(place: Path, published: Published) -> None:
    """Raises DataError if a set of one's own was built from another question file, or from another state of it."""
    made = json.loads((place / "card.json").read_text(encoding="utf-8"))["files"]
    if made != (given := published.checksums()):
        raise DataError(
            f"{place}: holds the questions of {', '.join(made)}, not those of {', '.join(given)} as it is now; pass "
            "--overwrite to replace them, or another --data_dir to keep both"
        )


def _build_own(arguments: argparse.Namespace) -> Card:
    published, shares = _own_source(arguments.source), shares_from(arguments.shares)
    arguments.data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{OWN.name}-", dir=arguments.data_dir) as work:
        file = Path(arguments.source)
        own = Own(file, Path(work), arguments.images, arguments.seed, shares, arguments.boxes, arguments.skip_bad)
        with listing(own.bad):
            splits = own.read()
        checksums = published.checksums()
        return build(OWN, splits, arguments.data_dir, origin="a local file", checksums=checksums, notes=own.warnings)


def _parser(published: Sequence[DataSet]) -> argparse.ArgumentParser:
    shown = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m data_prep.build", description=main.__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME", title="data sets")
    for dataset in (*published, OWN):
        about = f"{dataset.title}\n{dataset.url}\nlicence: {dataset.licence}\nSOURCE: {dataset.layout}"
        one = names.add_parser(dataset.name, help=dataset.title, description=about, formatter_class=shown)
        one.add_argument("--data_dir", required=True, type=Path, help="folder of built sets, which recipes also refer to")
        one.add_argument("--overwrite", action="store_true", help="rebuild a set that already exists")
        one.add_argument("--skip_bad", action="store_true", help=ALWAYS if dataset.skip_bad else HELP)
        if dataset is not OWN:
            one.add_argument("--source", required=True, help="folder of the published files, or a hub repository as owner/name")
            continue
        one.add_argument("--source", required=True, help="question file, .csv or .jsonl")
        one.add_argument(
            "--images",
            default="",
            help="folder that relative image paths start from (default: the folder of the question file)",
        )
        one.add_argument(
            "--shares",
            default=",".join(f"{name}:{share}" for name, share in SHARES.items()),
            help="share of patients in each split (default: %(default)s)",
        )
        one.add_argument("--boxes", choices=UNITS, default="", help="unit of the boxes (default: pixels)")
        one.add_argument("--seed", default=0, type=int, help="seed of the assignment of patients to splits (default: 0)")
    return parser


if __name__ == "__main__":
    main()

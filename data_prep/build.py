"""Builds data sets for recipes: python -m data_prep.build NAME --source=DIR --data_dir=DIR"""

import argparse
from pathlib import Path

from data_prep.building.card import Card
from data_prep.building.own import OWN, SHARES, Own, shares_from
from data_prep.building.records import DataSet
from data_prep.building.store import build, folder
from data_prep.reading.published import Published, locate
from data_prep.sets import find_sets
from vitar_jax.runtime.user_errors import one_line_errors

SETS = find_sets()


@one_line_errors()
def main() -> None:
    """Reads a published data set or your own questions, checks them, and writes ArrayRecord files and a data card."""
    arguments = _parser().parse_args()
    dataset = OWN if arguments.name == OWN.name else SETS[arguments.name].SET
    place = folder(arguments.data_dir, dataset)
    if place.exists() and not arguments.overwrite:
        print(f"{place}: already built; pass --overwrite to rebuild it")
        return
    card = _build_own(arguments) if dataset is OWN else _build_published(dataset, arguments)
    print(f"{place}: built\n\n{card.markdown()}")


def _build_published(dataset: DataSet, arguments: argparse.Namespace) -> Card:
    source, origin = locate(arguments.source, dataset.hub_files)
    published = Published(source)
    splits = SETS[dataset.name].read(published)
    return build(dataset, splits, arguments.data_dir, origin=origin, checksums=published.checksums())


def _build_own(arguments: argparse.Namespace) -> Card:
    published = Published(Path(arguments.source).parent)
    file = published.file(Path(arguments.source).name)
    own = Own(file, arguments.images, arguments.seed, shares_from(arguments.shares))
    checksums = published.checksums()
    return build(OWN, own.read(), arguments.data_dir, origin="a local file", checksums=checksums, notes=own.warnings)


def _parser() -> argparse.ArgumentParser:
    shown = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m data_prep.build", description=main.__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME", title="data sets")
    for dataset in (*(module.SET for module in SETS.values()), OWN):
        about = f"{dataset.title}\n{dataset.url}\nlicence: {dataset.licence}\nSOURCE: {dataset.layout}"
        one = names.add_parser(dataset.name, help=dataset.title, description=about, formatter_class=shown)
        one.add_argument("--data_dir", required=True, type=Path, help="folder of built sets, which recipes also refer to")
        one.add_argument("--overwrite", action="store_true", help="rebuild a set that already exists")
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
        one.add_argument("--seed", default=0, type=int, help="seed of the assignment of patients to splits (default: 0)")
    return parser


if __name__ == "__main__":
    main()

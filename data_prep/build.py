"""Builds data sets for recipes: python -m data_prep.build NAME --source=DIR --data_dir=DIR"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from data_prep.card import Card
from data_prep.published import Published, locate
from data_prep.records import DataSet
from data_prep.sets import (
    medxpertqa_mm,
    mmmu_medical,
    omnimedvqa,
    path_vqa,
    pmc_vqa,
    slake,
    vitar_1k,
    vitar_16k,
    vitar_eval,
    vqa_rad,
)
from data_prep.store import build, folder
from vitar_jax.errors import VitarError

_MODULES = (vqa_rad, slake, path_vqa, pmc_vqa, omnimedvqa, mmmu_medical, medxpertqa_mm, vitar_eval, vitar_16k, vitar_1k)
SETS: Mapping[str, DataSet] = {module.SET.name: module.SET for module in _MODULES}


def main() -> None:
    """Reads published files, checks them, and writes ArrayRecord files and a card."""
    parser = _parser()
    arguments = parser.parse_args()
    try:
        _build(SETS[arguments.name], arguments)
    except VitarError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    shown = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m data_prep.build", description=main.__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME", title="data sets")
    for dataset in SETS.values():
        about = f"{dataset.title}\n\n{dataset.url}\nlicence: {dataset.licence}\nSOURCE holds {dataset.layout}"
        one = names.add_parser(dataset.name, help=dataset.title, description=about, formatter_class=shown)
        one.add_argument("--source", required=True, help="folder of the published files, or owner/name on the Hugging Face hub")
        one.add_argument("--data_dir", required=True, type=Path, help="folder of built sets; recipes name it too")
        one.add_argument("--overwrite", action="store_true", help="build again what is there already")
    return parser


def _build(dataset: DataSet, arguments: argparse.Namespace) -> None:
    place = folder(arguments.data_dir, dataset)
    if place.exists() and not arguments.overwrite:
        print(f"{place}: is built already; --overwrite builds it again")
        return
    source, origin = locate(arguments.source, dataset.hub_files)
    published = Published(source)
    splits = dataset.read(published)
    card = build(dataset, splits, arguments.data_dir, origin=origin, checksums=published.checksums())
    _report(card, place)


def _report(card: Card, place: Path) -> None:
    print(f"{place}: built\n\n{card.markdown()}")


if __name__ == "__main__":
    main()

"""The data card of a built set, written as CARD.md and card.json."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.building.leaks import Contents, Leak
from data_prep.building.records import DataSet

READER = "data_prep.built:source"  # what reads the set, for evaluate --benchmarks


@dataclass(frozen=True)
class Card:
    """Contents and provenance of a built data set.

    Attributes:
      source: Where the published files came from.
      splits: Number of questions, distinct images and, if known, distinct patients, by split.
      published: Number of questions by split according to the authors. Empty if they give none.
      files: SHA-256 of each table and archive that was read.
      images_sha256: Hash over the names and contents of all images.
      leaks: Images and patients that splits share.
      notes: Known pitfalls, and observations made during the build.
    """

    name: str
    title: str
    version: str
    source: str
    url: str
    licence: str
    citation: str
    splits: dict[str, dict[str, int]]
    published: dict[str, int]
    files: dict[str, str]
    images_sha256: str
    leaks: list[Leak]
    notes: list[str]

    @classmethod
    def of(
        cls,
        dataset: DataSet,
        source: str,
        files: Mapping[str, str],
        contents: Contents,
        images_sha256: str,
        notes: list[str],
    ) -> "Card":
        splits = contents.counts()
        return cls(
            name=dataset.name,
            title=dataset.title,
            version=dataset.version,
            source=source,
            url=dataset.url,
            licence=dataset.licence,
            citation=dataset.citation,
            splits=splits,
            published=dict(dataset.counts),
            files=dict(files),
            images_sha256=images_sha256,
            leaks=contents.leaks(),
            notes=[*dataset.notes, *notes, *_other_counts(dataset, splits)],
        )

    def markdown(self) -> str:
        """Formats the card as a Markdown page."""
        splits = [f"| {split} | {_counted(count)} |" for split, count in self.splits.items()]
        leaks = [f"- {_sentence(leak, self.splits)}" for leak in self.leaks]
        return "\n".join(
            [
                f"# {self.title}",
                "",
                f"Built as `{self.name}` {self.version} from {self.source}.",
                "",
                f"- Homepage: {self.url or 'none'}",
                f"- Licence: {self.licence}",
                f"- Citation: {self.citation or 'none'}",
                "",
                "| split | contents |",
                "|---|---|",
                *splits,
                "",
                "## Leaks",
                "",
                *(leaks or ["- No two splits share an image (by its pixels) or a known patient."]),
                "",
                *(["## Notes", "", *(f"- {note}" for note in self.notes), ""] if self.notes else []),
                "## Checksums",
                "",
                "SHA-256 of each file that was read. The last covers the names and contents of all images.",
                "",
                *(f"    {sha256}  {name}" for name, sha256 in self.files.items()),
                f"    {self.images_sha256}  (images)",
                "",
            ]
        )


def write_card(card: Card, folder: Path) -> None:
    """Writes CARD.md and card.json to `folder`."""
    (folder / "CARD.md").write_text(card.markdown(), encoding="utf-8")
    (folder / "card.json").write_text(
        json.dumps({**asdict(card), "reader": READER}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _counted(count: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {what}" for what, number in count.items())


def _sentence(leak: Leak, splits: Mapping[str, Mapping[str, int]]) -> str:
    """Describes a leak as a share of the smaller split, such as "202 of the 203 images of test are also in train"."""
    sentences = []
    for what, shared in (("images", leak.images), ("patients", leak.patients)):
        if shared:
            small, large = sorted(leak.splits, key=lambda split: splits[split][what])
            sentences.append(f"{shared:,} of the {splits[small][what]:,} {what} of {small} are also in {large}.")
    return " ".join(sentences)


def _other_counts(dataset: DataSet, splits: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Returns a note for each split whose number of questions differs from the published one."""
    found = {split: splits[split]["questions"] if split in splits else 0 for split in dataset.counts}
    return [
        f"{split} has {found[split]:,} questions; the authors report {number:,}."
        for split, number in dataset.counts.items()
        if found[split] != number
    ]

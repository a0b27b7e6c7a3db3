"""Leaks between splits of a data set: shared images, compared by the hash of their pixels, and shared patients."""

from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True)
class Leak:
    """Number of distinct images and patients that two splits share."""

    splits: tuple[str, str]
    images: int
    patients: int


class Contents:
    """The distinct images and patients of each split."""

    def __init__(self) -> None:
        self.records: dict[str, int] = {}
        self.images: dict[str, set[str]] = defaultdict(set)
        self.patients: dict[str, set[str]] = defaultdict(set)

    def add(self, split: str, hashes: list[str], patient: str) -> None:
        """Adds a question with the pixel hashes of its images and its patient, if known."""
        self.records[split] = self.records.get(split, 0) + 1
        self.images[split].update(hashes)
        if patient:
            self.patients[split].add(patient)

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns the number of questions, distinct images and, if known, distinct patients of each split."""
        return {
            split: {"questions": number, "images": len(self.images[split])}
            | ({"patients": len(self.patients[split])} if self.patients[split] else {})
            for split, number in self.records.items()
        }

    def leaks(self) -> list[Leak]:
        """Returns the pairs of splits that share images or patients."""
        pairs = combinations(self.records, 2)
        found = [Leak(pair, *(len(kind[pair[0]] & kind[pair[1]]) for kind in (self.images, self.patients))) for pair in pairs]
        return [leak for leak in found if leak.images or leak.patients]

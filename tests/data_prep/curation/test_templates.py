"""Templates say nothing that pixels painted from the boxes would not say, and the same whatever the order of things."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from data_prep import curate
from data_prep.curation.candidates import KINDS, PARTS, Candidate, Draft, Kind, Rejected, candidates
from data_prep.curation.detections import Detection
from data_prep.curation.templates import TemplateWriter
from vitar_jax.episodes.regions import Box

CLASSES = ("cyst", "mass", "nodule", "scar", "stone")


def detections(seed: int, count: int = 60, classes: tuple[str, ...] = CLASSES) -> list[Detection]:
    """Images of up to three classes, each in up to two boxes; some of none."""
    random, made = Random(seed), []
    for number in range(count):
        size = random.randint(40, 90), random.randint(40, 90)
        boxes = {}
        for name in sorted(random.sample(classes, random.randint(0, min(3, len(classes))))):
            corners = [[sorted(random.sample(range(side + 1), 2)) for side in size] for _ in range(random.randint(1, 2))]
            boxes[name] = tuple(Box(x1, y1, x2, y2, "original") for (x1, x2), (y1, y2) in corners)
        made.append(Detection(Path(f"{number}.png"), f"{seed}-{number}", size, boxes))
    return made


def kept(
    found: list[Detection], seed: int = 0, kinds: tuple[Kind, ...] = KINDS
) -> tuple[list[tuple[Candidate, Draft]], Counter[str]]:
    writer = TemplateWriter(sorted({name for one in found for name in one.boxes}), seed)
    rows, rejected = [], Counter()
    for candidate in candidates(found, seed, kinds):
        try:
            draft = writer.question(candidate)
            writer.verify(candidate, draft)
            rows.append((candidate, draft))
        except Rejected as reason:
            rejected[str(reason)] += 1
    return rows, rejected


def painted(detection: Detection, box: Box | None = None, name: str = "") -> np.ndarray:
    """A picture of the image's size with ones where a box, or all boxes of a class, are."""
    width, height = detection.size
    picture = np.zeros((height, width))
    for one in [box] if box else detection.boxes.get(name, ()):
        picture[int(one.y1) : int(one.y2), int(one.x1) : int(one.x2)] = 1
    return picture


def test_what_pixels_say() -> None:
    rows, rejected = kept(detections(1, 200))
    for candidate, draft in rows:
        detection, answer = candidate.detection, draft.answer_text
        width, height = detection.size
        if candidate.kind == "presence":
            assert (answer == "Yes") == (painted(detection, name=candidate.finding).sum() > 0)
        elif candidate.kind == "finding":
            column, row = (int(share * side) for share, side in zip(candidate.point, detection.size, strict=True))
            near = np.s_[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            assert painted(detection, name=answer)[near].any() and answer == candidate.finding
            assert f"{candidate.point[0]:.2f}" in draft.question
            inside = {name for name in draft.options if painted(detection, name=name)[row, column]}
            assert inside <= {answer} and 2 <= len(draft.options) <= 4
        else:
            columns, rows_ = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
            there = (columns < width / 2) == ("left" in answer)
            if candidate.kind == "quadrant":
                there &= (rows_ < height / 2) == ("upper" in answer)
            for box in candidate.boxes:
                of_box = painted(detection, box)
                assert (of_box * there).sum() / of_box.sum() >= 0.75 - 1 / 20  # an odd side has its middle in a pixel
        assert len(set(draft.options)) == len(draft.options)
    assert {candidate.kind for candidate, _ in rows} == {"finding", "quadrant", "side", "presence"}
    assert rejected["no option fits"] > 20 and rejected["several options fit"] == 0  # no class at the point distracts


def test_pixels_say_the_same_of_parts() -> None:
    """In images with even sides, whose middle is the border of two pixels."""
    found = [one for one in detections(6, 400) if not any(side % 2 for side in one.size)]
    rows, rejected = kept(found, kinds=("part", "count"))
    seen = Counter()
    for candidate, draft in rows:
        width, height = candidate.detection.size
        columns, rows_ = np.meshgrid(np.arange(width), np.arange(height))
        there = np.ones((height, width), bool)
        for word, side in (("left", columns < width / 2), ("right", columns >= width / 2)):
            there &= side if word in candidate.part else True
        for word, side in (("upper", rows_ < height / 2), ("lower", rows_ >= height / 2)):
            there &= side if word in candidate.part else True
        pictures = [painted(candidate.detection, box) for box in candidate.detection.boxes.get(candidate.finding, ())]
        shares = [(picture * there).sum() / picture.sum() for picture in pictures]
        inside = sum(share >= 0.75 for share in shares)
        assert draft.answer_text == (("Yes" if inside else "No") if candidate.kind == "part" else str(inside))
        assert (painted(candidate.detection, candidate.boxes[0]) == there).all() and candidate.look == candidate.boxes
        if not (candidate.kind == "part" and inside):
            assert not any(0.25 < share < 0.75 for share in shares)
        assert candidate.where in draft.question and candidate.finding in draft.question
        seen[candidate.kind, candidate.part, candidate.finding, draft.answer_text] += 1
    assert rejected["no option fits"] > 20 and {part for _, part, *_ in seen} == {*PARTS["part"], *PARTS["count"]}
    for kind, part, finding in {key[:3] for key in seen}:
        first, second, *_ = sorted((n for key, n in seen.items() if key[:3] == (kind, part, finding)), reverse=True)
        assert first == second, seen


def test_kinds_are_asked_alike_beside_others() -> None:
    found = detections(7)
    both = kept(found, kinds=(*KINDS, "part"))[0]
    assert [row for row in both if row[0].kind != "part"] == kept(found)[0] and len(both) > len(kept(found)[0])


def test_more_than_the_options_allow_is_not_counted() -> None:
    four = tuple(Box(10 * n, 10, 10 * n + 5, 20, "original") for n in range(4))
    found = [Detection(Path("a"), str(n), (100, 100), {"mass": four[:n]} if n else {}) for n in range(5)]
    rows, rejected = kept(found, kinds=("count",))
    assert {draft.answer_text for candidate, draft in rows if not candidate.part} == {"0", "1", "2", "3"}
    assert rejected["more to count than the options allow"] == 2  # in the image and in its left half


def test_answers_do_not_show_in_their_letters() -> None:
    rows, _ = kept(detections(2, 400))
    four = Counter(draft.answer for _, draft in rows if len(draft.options) == 4)
    two = Counter(draft.answer_text for candidate, draft in rows if candidate.kind == "presence")
    assert min(four.values()) > 0.8 * four.total() / 4 and min(two.values()) > 0.8 * two.total() / 2, (four, two)


def test_the_order_of_images_does_not_matter_and_the_seed_does() -> None:
    found = detections(3)
    rows, _ = kept(found)
    assert kept(found[::-1]) == kept(found) and rows != kept(found, seed=1)[0]
    moved = [replace(one, image=Path("elsewhere") / one.image) for one in found]
    assert [draft for _, draft in kept(moved)[0]] == [draft for _, draft in rows]


def test_whether_is_asked_only_where_both_answers_occur() -> None:
    """A class that all images show would always be answered yes."""
    found = [one for one in detections(4, classes=("mass",)) if one.boxes]
    assert not [candidate for candidate in candidates(found, 0) if candidate.kind == "presence"]
    box = found[0].boxes["mass"]
    mixed = [replace(one, boxes=one.boxes | ({"scar": box} if n % 2 else {})) for n, one in enumerate(found)]
    assert {candidate.finding for candidate in candidates(mixed, 0) if candidate.kind == "presence"} == {"scar"}
    rows, rejected = kept(found)
    assert rejected["no other class"] == len(found) and {candidate.kind for candidate, _ in rows} == {"quadrant", "side"}


def test_the_rule_rejects_what_the_boxes_do_not_say() -> None:
    detection = Detection(Path("a.png"), "a", (100, 100), {"mass": (Box(10, 10, 30, 30, "original"),)})
    asked = {candidate.kind: candidate for candidate in candidates([detection, replace(detection, sha256="b", boxes={})], 0)}
    writer = TemplateWriter(CLASSES, 0)
    writer.verify(asked["quadrant"], Draft("Where?", ("upper left", "lower right"), "A"))
    for options, answer, reason in (
        (("upper left", "lower right"), "B", "another option fits"),
        (("upper right", "lower right"), "B", "no option fits"),
        (("upper left", "left"), "A", "several options fit"),
    ):
        with pytest.raises(Rejected, match=reason):
            writer.verify(asked["quadrant"], Draft("Where?", options, answer))


def test_thoughts_fit_what_is_looked_at() -> None:
    writer = TemplateWriter(CLASSES, 0)
    seen = set()
    for candidate, draft in kept(detections(5), kinds=(*KINDS, "part", "count"))[0]:
        before, after = writer.thoughts(candidate, draft)
        assert "{" not in before + after
        if candidate.kind == "presence" and draft.answer_text == "No":
            others = candidate.detection.boxes
            seen.add(bool(others))
            assert "not" in after and all(name in after for name in others)
            assert len(candidate.look) == (sum(map(len, others.values())) or 1)
            assert others or candidate.look[0].area == candidate.detection.size[0] * candidate.detection.size[1]
        else:
            assert candidate.look == candidate.boxes and candidate.finding in after
            if draft.answer_text in ("No", "0"):
                assert " no " in after
            else:
                assert draft.answer_text == "Yes" or draft.answer_text in after and "not" not in after
    assert seen == {True, False}


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--kinds=part,size"], "--kinds: got size, expected some of finding, quadrant, side, presence, part, count"),
        (["--kinds="], "--kinds: got , expected some of finding"),
        (
            ["--kinds=part", "--endpoint=http://x", "--model=y", "--verifier_model=z"],
            "--kinds: got part, expected some of finding, quadrant, side, presence (with --endpoint)",
        ),
    ],
)
def test_wrong_kinds_are_named(flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        curate.main(["--format=coco", "--annotations=a.json", "--images=.", f"--output={tmp_path / 'out'}", *flags])
    assert words in capsys.readouterr().err

"""Scores of a folder, by hand: errors both ways, breakdowns, and judgements."""

import dataclasses
import json

import numpy as np
import pytest

from vitar_jax.episodes.object_masks import ObjectMask
from vitar_jax.episodes.regions import Mask
from vitar_jax.episodes.sample import Sample, SegmentedObject
from vitar_jax.episodes.trajectory_files import TrajectoryWriter, read_trajectories
from vitar_jax.errors import DataError
from vitar_jax.evaluation.judge import Judgements
from vitar_jax.evaluation.outcomes import read_outcomes, record_samples
from vitar_jax.evaluation.report_episode import row
from vitar_jax.evaluation.results import read_marks, read_scores, table, to_be_judged, write_scores
from vitar_jax.evaluation.rules import RULES, find_rules
from vitar_jax.evaluation.statistics import score_interval
from vitar_jax.evaluation.summary import summary_rows, summary_table

ANSWERS = {  # by question: reference, what the data set says of it, organ, what was answered
    "0": ("yes", "CLOSED", "HEAD", "yes"),
    "1": ("no", "CLOSED", "HEAD", "yes"),
    "2": ("left lung", "OPEN", "CHEST", "lung"),
    "3": ("left lung", "OPEN ", "CHEST", None),  # runs out of room
    "4": ("yes", "CLOSED", "CHEST", None),  # never answers
    "5": ("yes", "CLOSED", "HEAD", None),  # cannot be played
}
SAMPLES = [
    Sample(
        key,
        f"Question {key}?",
        (f"image{int(key) // 2}.png",),
        answer,
        metadata={"answer_type": kind, "image_organ": organ, "number": int(key) + 0.5, "same": "x"},
    )
    for key, (answer, kind, organ, _) in ANSWERS.items()
]


@pytest.fixture
def folder(tmp_path, make_trajectory):
    """An evaluation of six samples, of which five were played."""
    assert list(record_samples(SAMPLES, tmp_path)) == SAMPLES
    trajectories = []
    for sample in SAMPLES[:5]:
        said = ANSWERS[sample.sample_id][3]
        trajectory = make_trajectory(int(sample.sample_id), answer=said, gold=None)
        if said is not None:
            last = dataclasses.replace(trajectory.turns[-1], answer_tokens=(3, 4))
            trajectory = dataclasses.replace(trajectory, turns=(*trajectory.turns[:-1], last))
        trajectory = dataclasses.replace(
            trajectory,
            sample_id=sample.sample_id,
            question=sample.question,
            options=(),
            answer=sample.answer,
            end_reason="overflow" if sample.sample_id == "3" else trajectory.end_reason,
        )
        trajectories.append(trajectory)
    extra = make_trajectory(9, sample_id="of another time")
    TrajectoryWriter(tmp_path).write([*trajectories, extra])
    (tmp_path / "timing.jsonl").write_text('{"episodes": 3, "seconds": 6.0}\n')
    (tmp_path / "timing-00001.jsonl").write_text('{"episodes": 2, "seconds": 1.0}\n')
    return tmp_path


def test_scores_by_hand(folder):
    found = write_scores(folder, find_rules(["medevalkit-em", "llava-med", "vitar-letter"]))
    assert found == json.loads((folder / "scores.json").read_text())
    assert (found["samples"], found["measures"]["answered"]["n"], found["primary"]) == (6, 5, "medevalkit-em/2")
    assert found["measures"]["answered"]["value"] == 3 / 5 and found["measures"]["iou"]["n"] == 0
    assert (found["failures"], found["truncated"], found["unanswered"]) == (1, 1, 1)
    assert found["per_sample"] == {"seconds": 7 / 5, "tokens": 4, "images": 2}
    assert found["clusters"] == {"of": "image", "n": 3}

    strict = found["rules"]["medevalkit-em/2"]
    assert (strict["n"], strict["score"]) == (6, 1 / 6)
    assert strict["interval"] == list(score_interval([1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 2, 2]))
    assert (strict["answered"]["n"], strict["answered"]["score"]) == (3, 1 / 3)
    assert {kind: (share["n"], share["score"]) for kind, share in strict["kinds"].items()} == {
        "open": (2, 0),
        "closed": (4, 0.25),
    }
    recall = found["rules"]["llava-med/1"]
    assert recall["kinds"]["open"]["score"] == 0.25
    assert recall["breakdowns"].keys() == {"image_organ", "answer_type"}  # what says something, of a few values
    organs = recall["breakdowns"]["image_organ"]
    assert {name: (share["n"], share["score"]) for name, share in organs.items()} == {"CHEST": (3, 0.5 / 3), "HEAD": (3, 1 / 3)}
    assert strict["kinds"]["open"]["interval"] == list(score_interval([0], [0]))  # of one image
    assert recall["calibration"]["n"] == 3 and recall["calibration"]["at_coverage"]["1.0"]["score"] == 0.5
    assert found["rules"]["vitar-letter/2"]["n"] == 0
    lines = table(found).splitlines()
    assert lines[1].split()[:4] == ["medevalkit-em/2", "*", "6", "16.7%"] and lines[4].startswith("llava-med/1 ")
    kinds = [line.split()[:4] for line in lines[2:4]]
    assert kinds == [["closed", "questions", "4", "25.0%"], ["open", "questions", "2", "0.0%"]]
    assert not any(line.startswith(("vitar-letter", "iou")) for line in lines)  # they score nothing


def test_verdicts_by_sample(folder):
    write_scores(folder, find_rules(["llava-med"]))
    lines = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    assert [line["sample_id"] for line in lines] == list(ANSWERS)
    assert [line["status"] for line in lines] == ["answered"] * 3 + ["truncated", "unanswered", "failed"]
    assert lines[2]["rules"] == {"llava-med/1": {"correct": 0.5, "parsed": "lung", "kind": "open"}}
    assert lines[2]["probability"] == pytest.approx(0.6065, abs=1e-4) and lines[3]["probability"] is None


def test_a_judge_is_asked_about_open_answers_alone(folder):
    judge = RULES["medevalkit-judge"]
    (asked,) = to_be_judged([judge, RULES["vitar-letter"]], read_outcomes(folder))
    assert asked == ("Question 2?", "left lung", "lung")
    kept = Judgements(folder / "judgements.jsonl", "stub")

    def scores(judgements=None):
        found = write_scores(folder, [judge], judgements)["rules"]["medevalkit-judge/2"]
        return found["n"], found["score"], found["unjudged"]

    assert scores() == scores(kept) == (5, 1 / 5, 1)
    assert "medevalkit-judge/2: 1 answers are unjudged" in table(write_scores(folder, [judge]))

    class Kind:
        def verdict(self, question, gold, prediction):
            return True

    kept.ask(Kind(), [asked])
    assert scores(kept) == (6, 2 / 6, 0)


def test_a_question_without_a_reference_is_not_scored(folder):
    path = folder / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["answer"] = ""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert write_scores(folder, [RULES["exact"]])["rules"]["exact/1"]["n"] == 5


def test_any_of_several_gold_answers_counts(folder):
    """By hand: "lung" is one of the answers to question 2; a judge is asked about each gold answer."""
    path = folder / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2] |= {"answer": "", "answers": ["left lung", "lung"]}
    rows[3]["answers"] = ["left lung", "lung"]  # not answered
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rules = find_rules(["exact", "medevalkit-em", "llava-med", "llava-med-published", "token-f1"])
    write_scores(folder, rules)
    lines = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    assert [lines[2]["rules"][str(rule)]["correct"] for rule in rules] == [1] * 5
    assert [lines[3]["rules"][str(rule)]["correct"] for rule in rules] == [0] * 5
    asked = to_be_judged([RULES["medevalkit-judge"]], read_outcomes(folder))
    assert [question.gold for question in asked] == ["left lung", "lung"]
    kept = Judgements(folder / "judgements.jsonl", "stub")

    class Kind:
        def verdict(self, question, gold, prediction):
            return gold == "lung"

    kept.ask(Kind(), asked[:1])
    assert write_scores(folder, [RULES["medevalkit-judge"]], kept)["rules"]["medevalkit-judge/2"]["unjudged"] == 1
    kept.ask(Kind(), asked)
    found = write_scores(folder, [RULES["medevalkit-judge"]], kept)["rules"]["medevalkit-judge/2"]
    assert (found["n"], found["score"], found["unjudged"]) == (6, 2 / 6, 0)


def test_answers_are_marked_by_the_primary_rule(folder):
    rules = find_rules(["exact", "llava-med"])
    write_scores(folder, rules)
    assert read_marks(folder) == ("exact/1", {"0": 1, "1": 0, "2": 0, "3": 0, "4": 0, "5": 0})
    write_scores(folder, rules, primary=RULES["llava-med"])
    assert read_marks(folder) == ("llava-med/1", {"0": 1, "1": 0, "2": 0.5, "3": 0, "4": 0, "5": 0})
    write_scores(folder, rules, primary=RULES["vitar-letter"])  # it scores questions with options
    assert set(read_marks(folder)[1].values()) == {None}


def test_scores_of_an_earlier_version_are_made_again(folder):
    (folder / "scores.json").write_text(json.dumps({"accuracy": 0.5}))
    with pytest.raises(DataError, match="earlier version; --phase=score"):
        read_scores(folder)
    write_scores(folder, [RULES["exact"]])
    assert read_scores(folder)["primary"] == "exact/1"


def test_looks_are_scored_without_opening_an_image(tmp_path, make_trajectory):
    once = make_trajectory(0, gold=(100, 100, 200, 200))
    list(record_samples([Sample(once.sample_id, once.question, (), once.answer)], tmp_path))
    TrajectoryWriter(tmp_path).write([once])
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    assert write_scores(tmp_path, [RULES["exact"]])["measures"]["iou"]["value"] == 1


# --- masks ------------------------------------------------------------------------------------------

COLUMNS = np.arange(10) + np.zeros((2, 1))  # masks are columns of an image of 10 x 2 pixels


def columns(start, stop):
    return Mask.of((start <= COLUMNS) & (stop > COLUMNS), "original")


OBJECTS = (
    SegmentedObject("obj1", columns(0, 4), "", in_reasoning=True),
    SegmentedObject("obj2", columns(4, 10), "", in_reasoning=True, in_answer=True),
)
TRACES = {  # by sample: classes of its question, masks of the reasoning and of the answer; None: cannot be played
    "a": (["comp"], [columns(0, 4), columns(4, 7)], [columns(4, 10)]),  # IoU 1 and 1/2, and 1
    "b": (["comp", "loc"], [columns(0, 3)], [columns(4, 9), columns(0, 2)]),  # 3/4 and 0, and 5/6; one that no one asked for
    "c": (["loc"], None, None),
}


@pytest.fixture
def traces(tmp_path, make_trajectory):
    """An evaluation of three samples with two objects each, of which two were played. No sample has an answer in words."""
    samples, played = [], []
    for name, (classes, reasoning, answer) in TRACES.items():
        metadata = {"classes": classes}
        samples.append(Sample(name, "Which is larger?", (f"{name}.png",), "", metadata=metadata, objects=OBJECTS))
        if reasoning is not None:
            made = [*(("reasoning", mask) for mask in reasoning), *(("answer", mask) for mask in answer)]
            trajectory = make_trajectory(0, sample_id=name, answer="That one.", objects=OBJECTS)
            last = dataclasses.replace(trajectory.turns[-1], masks=tuple(ObjectMask(0, None, *one) for one in made))
            played.append(dataclasses.replace(trajectory, turns=(*trajectory.turns[:-1], last), options=()))
    list(record_samples(samples, tmp_path))
    TrajectoryWriter(tmp_path).write(played)
    return tmp_path


def test_masks_are_scored_by_hand(traces):
    """The masks of the sample that could not be played are missing ones."""
    found = write_scores(traces, find_rules(["exact", "vrt", "vrt-strict"]))
    assert found["rules"]["exact/1"]["n"] == 0 and "masks" not in found["rules"]["exact/1"]
    by_hand = {"r_lq": (2 / 6, 6), "r_sq": ((1 + 3 / 4) / 2, 2), "a_miou": ((1 + 5 / 6) / 3, 3)}
    scores = found["rules"]["vrt/1"]
    assert {key: (each["value"], each["n"]) for key, each in scores["masks"].items()} == {
        key: (pytest.approx(value, rel=1e-6), n) for key, (value, n) in by_hand.items()
    }
    assert (scores["n"], scores["score"]) == (3, scores["masks"]["a_miou"]["value"])
    assert scores["masks"]["r_lq"]["interval"] == list(score_interval([1, 0, 1, 0, 0, 0], [*"aabbcc"]))
    assert {name: each["r_lq"]["n"] for name, each in scores["classes"].items()} == {"comp": 4, "loc": 4}
    assert scores["classes"]["loc"]["a_miou"]["value"] == pytest.approx((5 / 6 + 0) / 2, rel=1e-6)
    assert found["rules"]["vrt-strict/1"]["score"] == pytest.approx((1 + 5 / 6) / 4, rel=1e-6)
    strict = found["rules"]["vrt-strict/1"]["masks"]
    assert (strict["a_miou"]["n"], strict["r_lq"]["n"]) == (4, 6)
    assert strict["a_miou"]["value"] == pytest.approx((1 + 5 / 6) / 4, rel=1e-6)
    # A measure is of the samples that were played.
    assert (found["measures"]["r_lq"]["value"], found["measures"]["r_lq"]["n"]) == (0.5, 4)
    assert found["measures"]["a_miou"]["value"] == pytest.approx((1 + 5 / 6) / 2, rel=1e-6)


def test_scores_of_masks_are_printed_and_in_the_summary(traces):
    found = write_scores(traces, find_rules(["vrt", "vrt-strict", "exact"]))
    lines = {line[:24].strip(): line[24:].split()[:2] for line in table(found).splitlines()}
    assert lines["vrt/1 R-LQ *"] == ["6", "33.3%"] and lines["vrt/1 R-SQ *"] == ["2", "87.5%"]
    assert lines["vrt/1 A-mIoU *"] == ["3", "61.1%"] and lines["vrt-strict/1 A-mIoU"] == ["4", "45.8%"]
    assert lines["comp R-LQ"] == ["4", "50.0%"]
    assert not {"r_lq", "exact/1", "vrt/1 *"} & lines.keys()
    rows = summary_rows("bench", found)
    assert list(rows)[:3] == ["bench", "bench, vrt/1, comp", "bench, vrt/1, loc"]
    shown = summary_table(rows)
    assert {"Episodes", "Score", "R-LQ", "R-SQ", "A-mIoU"} <= set(shown.columns)
    of = dict(shown.rows)
    place = {title: shown.columns.index(title) for title in ("R-LQ", "A-mIoU", "Score")}
    assert of["bench"][place["R-LQ"]][0] == "33.3 %" and of["bench"][place["Score"]][0] == "61.1 %"
    assert of["bench, vrt-strict/1"][place["A-mIoU"]][0] == "45.8 %"


def test_each_row_of_the_report_has_scores_of_its_masks(traces):
    rows = {one.sample_id: row(one, None, "vrt/1") for one in read_trajectories(traces)}
    assert (rows["a"]["r_lq"], rows["a"]["r_sq"], rows["a"]["a_miou"]) == (0.5, 1, 1)
    assert (rows["b"]["r_lq"], rows["b"]["a_miou"]) == (0.5, pytest.approx(5 / 6, rel=1e-6))


def test_marks_and_matched_masks_are_kept_by_sample(traces):
    write_scores(traces, find_rules(["vrt", "exact"]))
    rule, marks = read_marks(traces)
    assert rule == "vrt/1" and marks == {"a": 1, "b": pytest.approx(5 / 6, rel=1e-6), "c": 0}
    lines = [json.loads(line) for line in (traces / "verdicts.jsonl").read_text().splitlines()]
    assert lines[0]["rules"]["vrt/1"]["masks"] == {"reasoning": [1, 0.5], "answer": [1]}
    assert lines[2]["rules"]["vrt/1"]["masks"] == {"reasoning": [0, 0], "answer": [0]}
    assert "masks" not in lines[0]["rules"]["exact/1"]

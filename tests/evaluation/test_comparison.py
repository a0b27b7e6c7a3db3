"""Two evaluations side by side, against scipy and by hand."""

import json

import numpy as np
import pytest
from scipy.stats import beta, binomtest, bootstrap, norm, t

from vitar_jax.errors import DataError
from vitar_jax.evaluation.comparison import compare


def write(directory, verdicts, rule="exact/1", **changes):
    """A folder of verdicts {sample: (cluster, correct)} under a rule."""
    directory.mkdir(exist_ok=True)
    records = [
        {"sample_id": sample, "cluster": cluster, "gold": "x", "rules": {rule: {"correct": correct}}} | changes
        for sample, (cluster, correct) in verdicts.items()
    ]
    (directory / "verdicts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return directory


@pytest.fixture
def runs():
    """200 answers of two runs, the second better; every sample is a cluster."""
    rng = np.random.default_rng(0)
    first, second = rng.random(200) < 0.5, rng.random(200) < 0.65
    return first.astype(float), second.astype(float)


def named(values, clusters=None):
    return {f"s{i}": (str(i if clusters is None else clusters[i]), value) for i, value in enumerate(values)}


def combined(gained: float, lost: float, count: float) -> list[float]:
    """The interval of gained - lost, shares of `count` independent pairs (Newcombe, 1998, from Clopper and Pearson's)."""

    def ends(share: float) -> tuple[float, float]:
        right, wrong = share * count, (1 - share) * count
        return float(beta.ppf(0.025, right, wrong + 1)), float(beta.ppf(0.975, right + 1, wrong))

    (gained_low, gained_high), (lost_low, lost_high) = ends(gained), ends(lost)
    both = 2 * (gained * lost / ((1 - gained) * (1 - lost))) ** 0.5  # shares of one multinomial are correlated negatively

    def reach(a: float, b: float) -> float:
        return (a * a + b * b + both * a * b) ** 0.5

    below, above = reach(gained - gained_low, lost_high - lost), reach(gained_high - gained, lost - lost_low)
    return [gained - lost - below, gained - lost + above]


def test_right_and_wrong(tmp_path, runs):
    first, second = runs
    shuffled = dict(reversed(named(second).items()))  # samples are known by name
    found = compare(write(tmp_path / "a", named(first)), write(tmp_path / "b", shuffled))
    row = found["rules"]["exact/1"]
    gained, lost = int(np.sum(second > first)), int(np.sum(second < first))
    assert (row["first"], row["second"]) == (first.mean(), second.mean())
    assert row["difference"] == pytest.approx(second.mean() - first.mean())
    assert (row["better_in_first"], row["better_in_second"]) == (lost, gained)
    assert row["test"] == "mcnemar" and row["p_value"] == pytest.approx(binomtest(lost, lost + gained).pvalue)
    assert row["p_value_clustered"] == pytest.approx(row["p_value"], abs=0.02)
    theirs = bootstrap(
        (second - first,), np.mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(0)
    ).confidence_interval
    assert row["interval"] == pytest.approx([theirs.low, theirs.high], abs=0.02)  # which is another method
    assert row["interval"] == pytest.approx(combined(gained / 200, lost / 200, 200))
    back = compare(tmp_path / "b", tmp_path / "a")["rules"]["exact/1"]
    assert back["difference"] == -row["difference"] and back["p_value"] == row["p_value"]


def test_copies_prove_nothing(tmp_path, runs):
    """Every answer nine times, in clusters: McNemar's test is fooled, the clustered one and the interval are not."""
    first, second = (np.tile(values[:40], 9) for values in runs)
    clusters = [*range(40)] * 9
    once = compare(write(tmp_path / "a", named(runs[0][:40])), write(tmp_path / "b", named(runs[1][:40])))["rules"]["exact/1"]
    row = compare(write(tmp_path / "c", named(first, clusters)), write(tmp_path / "d", named(second, clusters)))["rules"][
        "exact/1"
    ]
    assert row["clusters"] == 40 and row["n"] == 360
    gained, lost = (float(np.mean(part)) for part in (second > first, second < first))
    # The jackknife takes one of 40 clusters away, and Student's quantile of 39 degrees of freedom widens the interval.
    assert once["interval"] == pytest.approx(combined(gained, lost, 40))
    assert row["interval"] == pytest.approx(combined(gained, lost, 39 * (norm.ppf(0.975) / t.ppf(0.975, 39)) ** 2))
    assert row["p_value_clustered"] == pytest.approx(once["p_value_clustered"], abs=0.02)
    assert row["p_value"] < once["p_value"]


def test_shares_of_an_answer(tmp_path):
    first, second = {"a": ("1", 0.5), "b": ("2", 0.0), "c": ("3", None)}, {"a": ("1", 1.0), "b": ("2", 0.25), "c": ("3", 1.0)}
    row = compare(write(tmp_path / "a", first, "token-f1/1"), write(tmp_path / "b", second, "token-f1/1"))["rules"][
        "token-f1/1"
    ]
    assert row["n"] == 2 and row["test"] == "sign_flip"
    assert row["p_value"] == row["p_value_clustered"] == 0.5


def test_what_is_in_one_alone_is_counted(tmp_path):
    one = write(tmp_path / "a", {"a": ("1", 1.0), "b": ("2", 0.0)})
    two = write(tmp_path / "b", {"b": ("2", 1.0), "c": ("3", 0.0), "d": ("4", 0.0)})
    found = compare(one, two)
    assert (found["samples"], found["only_in_first"], found["only_in_second"]) == (1, 1, 2)
    assert found["rules"]["exact/1"]["interval"] is None  # of one cluster


def test_what_cannot_be_compared(tmp_path):
    one = write(tmp_path / "a", {"a": ("1", 1.0)})
    with pytest.raises(DataError, match="nowhere"):
        compare(one, tmp_path / "nowhere")
    for other in (dict(rule="exact/2"), dict(sample_id="b")):
        with pytest.raises(DataError, match="no sample in common"):
            compare(one, write(tmp_path / "b", {"a": ("1", 1.0)}, **other))
    with pytest.raises(DataError, match="gold answers of 'a'"):
        compare(one, write(tmp_path / "b", {"a": ("1", 1.0)}, gold="y"))
    (tmp_path / "b" / "verdicts.jsonl").write_text("no JSON\n")
    with pytest.raises(DataError, match="damaged"):
        compare(one, tmp_path / "b")


def test_the_primary_rule_is_first(tmp_path):
    """Rows keep their order under other rules, and there is none without a rule that is primary in both."""
    both = {"exact/1": {"correct": 1.0}, "mine/1": {"correct": 0.0}}
    folders = [write(tmp_path / name, {"s": ("s", 1.0)}, rules=both) for name in "ab"]
    assert compare(*folders)["primary"] is None and list(compare(*folders)["rules"]) == ["exact/1", "mine/1"]
    (folders[0] / "scores.json").write_text('{"primary": "mine/1"}')
    (folders[1] / "scores.json").write_text('{"primary": "exact/1"}')
    assert compare(*folders)["primary"] is None
    (folders[1] / "scores.json").write_text('{"primary": "mine/1"}')
    assert compare(*folders)["primary"] == "mine/1" and list(compare(*folders)["rules"]) == ["mine/1", "exact/1"]


# --- masks ------------------------------------------------------------------------------------------


def write_masks(directory, samples, rule="vrt/1", **changes):
    """A folder of verdicts whose masks are {sample: (cluster, IoUs of the reasoning, IoUs of the answer)}."""
    directory.mkdir(exist_ok=True)
    lines = []
    for sample, (cluster, reasoning, answer) in samples.items():
        verdict = {"correct": float(np.mean(answer)), "masks": {"reasoning": list(reasoning), "answer": list(answer)}}
        record = {"sample_id": sample, "cluster": cluster, "gold": "", "gold_masks": [len(reasoning), len(answer)]}
        lines.append(json.dumps(record | {"rules": {rule: verdict}} | changes))
    (directory / "verdicts.jsonl").write_text("\n".join(lines) + "\n")
    return directory


@pytest.fixture
def traced():
    """60 samples of 30 images in two runs, of which the second finds more masks and outlines them better."""
    rng = np.random.default_rng(3)
    runs = []
    counts = rng.integers(1, 5, 60)
    for shift in (0.0, 0.15):
        ious = [np.clip(rng.normal(0.5 + shift, 0.25, count), 0, 1).tolist() for count in counts]
        runs.append({f"s{i}": (str(i // 2), ious[i], ious[i][:1]) for i in range(60)})
    return runs


def test_masks_are_paired(tmp_path, traced):
    """The differences of R-LQ and A-mIoU are those of masks, that of R-SQ is of two means over different masks."""
    found = compare(*(write_masks(tmp_path / str(i), run) for i, run in enumerate(traced)))
    assert list(found["rules"]) == ["vrt/1 R-LQ", "vrt/1 R-SQ", "vrt/1 A-mIoU"]
    first, second = ([np.array(sample[1]) for sample in run.values()] for run in traced)
    hits = [np.concatenate(run) > 0.5 for run in (first, second)]
    row = found["rules"]["vrt/1 R-LQ"]
    assert (row["n"], row["clusters"]) == (len(hits[0]), 30) and row["test"] == "mcnemar"
    assert row["difference"] == pytest.approx(hits[1].mean() - hits[0].mean())
    lost, gained = int((hits[0] & ~hits[1]).sum()), int((hits[1] & ~hits[0]).sum())
    assert (row["better_in_first"], row["better_in_second"]) == (lost, gained)

    def quality(images):  # of the second run minus the first, over images drawn again
        means = []
        for run in (first, second):
            drawn = np.concatenate([run[i] for image in images for i in (2 * image, 2 * image + 1)])
            means.append(drawn[drawn > 0.5].mean())
        return means[1] - means[0]

    theirs = bootstrap((np.arange(30),), quality, vectorized=False, method="percentile", n_resamples=2000, rng=rng())
    row = found["rules"]["vrt/1 R-SQ"]
    assert row["difference"] == pytest.approx(quality(np.arange(30)))
    assert row["interval"] == pytest.approx([theirs.confidence_interval.low, theirs.confidence_interval.high], abs=0.015)
    back = compare(tmp_path / "1", tmp_path / "0")["rules"]["vrt/1 R-SQ"]
    assert back["interval"] == pytest.approx([-edge for edge in row["interval"][::-1]])


def rng():
    return np.random.default_rng(0)


def test_masks_that_no_one_asked_for_are_of_one_run(tmp_path, traced):
    """Under the strict rule, the runs count different masks of one sample, so samples are paired."""
    extra = {name: (cluster, [*reasoning, 0.0], answer) for name, (cluster, reasoning, answer) in traced[0].items()}
    one = write_masks(tmp_path / "a", extra, "vrt-strict/1", gold_masks=None)
    two = write_masks(tmp_path / "b", traced[0], "vrt-strict/1", gold_masks=None)
    row = compare(one, two)["rules"]["vrt-strict/1 R-LQ"]
    hits = [np.concatenate([sample[1] for sample in run.values()]) > 0.5 for run in (extra, traced[0])]
    assert (row["n"], row["first"], row["second"]) == (60, pytest.approx(hits[0].mean()), pytest.approx(hits[1].mean()))
    assert 0 < row["interval"][0] < row["difference"] < row["interval"][1]


def test_masks_of_other_objects_are_refused(tmp_path, traced):
    one = write_masks(tmp_path / "a", traced[0])
    with pytest.raises(DataError, match="the gold masks of 's0' differ"):
        compare(one, write_masks(tmp_path / "b", traced[0], gold_masks=[9, 9]))
    found = compare(one, write(tmp_path / "b", {"s0": ("0", 1.0)}, "vrt/1", gold="", gold_masks=[len(traced[0]["s0"][1]), 1]))
    assert list(found["rules"]) == ["vrt/1"]  # an evaluation whose masks were not scored


def test_runs_that_find_different_masks_are_paired_by_sample(tmp_path):
    runs = [{"a": ("a", ious, [0.5]), "b": ("b", [0.6], [0.5])} for ious in ([0.9, 0.1], [0.1, 0.9])]
    row = compare(*(write_masks(tmp_path / str(i), run) for i, run in enumerate(runs)))["rules"]["vrt/1 R-SQ"]
    assert (row["n"], row["difference"], row["interval"]) == (2, 0, [0, 0])  # no mask is found in both, none is better

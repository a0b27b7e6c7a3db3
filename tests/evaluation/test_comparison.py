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

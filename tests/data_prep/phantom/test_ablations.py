"""Ablations: each row's searches lack what its name says, fit the recipe, and the tables show the paper's order below ours."""

from collections import Counter

from data_prep.phantom import ablations
from data_prep.phantom.ablations import MOST_SEARCHES, TABLES, tables
from data_prep.phantom.search import source
from tests.kit.recipes import load_config

SAMPLES = [source("test", seed=0, length=30, spots=3)[n] for n in range(12)]


def searches(name):
    return [trace for sample in SAMPLES for trace in getattr(ablations, name)(sample)]


def modes(name):
    return Counter(tuple(step.mode for step in trace.steps) for trace in searches(name))


def most_looks(name):
    return max(len(trace.looks) for trace in searches(name))


def test_each_row_lacks_its_part():
    assert all(set(mode) <= {"scan"} for mode in modes("scan_alone"))
    assert all(mode.count("scan") == 1 and mode[0] == "scan" for mode in modes("drill_alone"))
    assert all("scan" not in mode for mode in modes("random_regions"))
    assert any(mode[:3] == ("scan", "drill", "scan") for mode in modes("full"))
    ends = Counter(trace.end for trace in searches("without_navigator"))
    assert "confident" not in ends and set(ends) <= {"none_left", "none_found", "most_gazes"}


def test_only_without_the_sampler_are_all_searches_of_a_sample_one():
    def differ(name):
        return sum(len({trace.steps for trace in getattr(ablations, name)(sample)}) > 1 for sample in SAMPLES)

    assert differ("without_sampler") == differ("without_navigator") == 0 and differ("full") > 8


def test_searches_are_as_long_as_their_row_allows():
    assert [most_looks(name) for name in ("gazes_2", "gazes_3", "full")] == [2, 3, 4]
    assert most_looks("gazes_5") <= 5
    assert all(len(getattr(ablations, name)(SAMPLES[0])) == MOST_SEARCHES for name in ("full", "gazes_2", "random_regions"))


def test_the_recipe_has_a_stage_for_each_row():
    config = load_config("medeyes_ablations")
    rows = {row for table in TABLES for row in table.rows}
    assert set(config.proof.order) == {"one_gaze", *rows} == set(config.schedule) - {"warmup"}
    assert config.stages.without_expert.objective.experts is None
    named = {name: config.stages[name].objective.experts for name in rows - {"without_expert"}}
    assert [named.pop(f"replay_{kind}").replay for kind in ("newest", "best")] == ["newest", "best"]
    for name, experts in named.items():
        (traces,) = experts.traces
        _, _, function = traces.partition(":")
        assert function == ("full" if name.startswith("searches_") else name) and hasattr(ablations, function)
    assert {experts.searches for experts in named.values()} == {2, 4, 6, 8}
    config.seed = 5
    assert {config.stages[name].sources.search.options.seed for name in rows} == {5}


def test_tables_show_the_papers_order_below_ours():
    rows = [row for table in TABLES for row in table.rows]
    results = {row: {"accuracy": n / 100} for n, row in enumerate(rows)}
    said = tables(results).splitlines()
    assert len(said) == 2 * len(TABLES) and all(line.startswith("  in the paper: ") for line in said[1::2])
    for line, table in zip(said[::2], TABLES, strict=True):
        shares = [float(item.split()[-1]) for item in line.removeprefix(f"{table.title}: ").split(", ")]
        assert shares == sorted(shares, reverse=True) and len(shares) == len(table.rows)

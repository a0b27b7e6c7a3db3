"""The builder as a command: real VQA-RAD, no TensorFlow, builds that are there already or were killed."""

import pytest

from data_prep import build
from data_prep.building.own import OWN
from data_prep.sets import find_sets
from data_prep.sets.slake import SET
from tests.kit.datasets import read_back
from tests.kit.files import write_files
from tests.kit.slake import published
from vitar_jax.data.sources import SourceConfig, load_source
from vitar_jax.errors import ConfigError, DataError


def test_a_set_that_is_there_is_built_again_only_when_told(build_set, tmp_path, capsys):
    source = published(tmp_path / "slake")
    data_dir = build_set("slake", source)
    place = data_dir / "slake" / SET.version
    first = {path.name: path.stat().st_ino for path in place.iterdir()}
    capsys.readouterr()
    build_set("slake", source)
    assert "already built" in capsys.readouterr().out
    assert {path.name: path.stat().st_ino for path in place.iterdir()} == first
    (source / "test.json").write_text("[]")
    with pytest.raises(SystemExit):  # what is wrong leaves the old one in its place
        (source / "train.json").write_text("[1]")
        build_set("slake", source, "--overwrite")
    assert {path.name: path.stat().st_ino for path in place.iterdir()} == first
    published(source, answer="CT")
    build_set("slake", source, "--overwrite")
    assert read_back(data_dir, "slake", "test_en")[0].answer == "CT"
    assert [path.name for path in data_dir.iterdir()] == ["slake"]  # nothing else is left


def test_help_says_what_every_set_needs(monkeypatch, capsys):
    titles = {dataset.name: dataset for dataset in (*(module.SET for module in find_sets().values()), OWN)}
    for argv in ([], *([name] for name in titles)):
        monkeypatch.setattr("sys.argv", ["build", *argv, "--help"])
        with pytest.raises(SystemExit) as stopped:
            build.main()
        assert stopped.value.code == 0
        text = capsys.readouterr().out
        assert all(name in text for name in (argv or titles))
        assert not argv or ("--source" in text and titles[argv[0]].licence in text)


def test_a_module_that_describes_no_set_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("data_prep.sets.__path__", [str(write_files(tmp_path, {"half_a_set.py": "SET = None\n"}))])
    monkeypatch.setattr("sys.argv", ["build", "--help"])
    with pytest.raises(SystemExit) as stopped:
        build.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith("half_a_set.py: has no read, which each module of data_prep/sets needs\n")


@pytest.mark.parametrize("name", ["data_prep.sets.slake", "data_prep.sets.slake:source", "data_prep.sets.slake:SET", "slake"])
def test_a_module_without_a_source_is_one_line(name):
    with pytest.raises(ConfigError, match="slake") as caught:
        load_source(SourceConfig(name, "train"))
    assert "\n" not in str(caught.value)


def test_a_wrong_source_is_one_line(build_set, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        build_set("slake", tmp_path / "nowhere")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'nowhere'}: no such folder\n"
    assert not (tmp_path / "built").exists()


def test_a_split_that_is_not_there_is_named(build_set, tmp_path):
    data_dir = build_set("slake", published(tmp_path / "slake"))
    config = SourceConfig(
        "data_prep.built:source", "test", options={"set": "slake", "data_dir": str(data_dir), "language": "fr"}
    )
    with pytest.raises(ConfigError, match="slake has no split 'test_fr'; it has .*test_en"):
        load_source(config)
    with pytest.raises(DataError, match="2.0.0: no built set found.*available versions are 1.1.0"):
        load_source(
            SourceConfig(
                "data_prep.built:source", "test", options={"set": "slake", "data_dir": str(data_dir), "version": "2.0.0"}
            )
        )

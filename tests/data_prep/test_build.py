"""The builder as a command: real VQA-RAD, no TensorFlow, builds that are there already or were killed."""

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import grain
import pytest

from data_prep import build, vqa_rad
from data_prep.building.own import OWN
from tests.kit.datasets import card, read_back
from tests.kit.processes import run_code, start
from tests.kit.slake import published
from vitar_jax.data.sources import SourceConfig, load_source
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.processing.files import open_image


@pytest.fixture(scope="module")
def built_vqa_rad(test_data, tmp_path_factory):
    """VQA-RAD, built in an interpreter that has no TensorFlow."""
    data_dir = tmp_path_factory.mktemp("built")
    result = without_tensorflow(f"""
from data_prep import build
sys.argv = ["build", "vqa_rad", "--source={test_data / "vqa_rad"}", "--data_dir={data_dir}"]
build.main()
from data_prep import built
samples = built.source("test", set="vqa_rad", data_dir="{data_dir}")
print(len(samples), samples[450].sample_id, samples[450].images[0].size)
""")
    assert result.splitlines()[-1].startswith("451 vqa-rad-")
    return data_dir


def without_tensorflow(code: str) -> str:
    """What a program prints where TensorFlow cannot be found."""
    hide = """
import sys
from importlib.machinery import PathFinder
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] == "tensorflow" else PathFinder.find_spec(name, path, target)
sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
try:
    import tensorflow
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("TensorFlow is still there")
"""
    return run_code(hide + code)


def test_vqa_rad_has_the_published_counts_and_its_known_leak(built_vqa_rad):
    made = card(built_vqa_rad, "vqa_rad")
    assert made["splits"] == {"train": {"questions": 1793, "images": 313}, "test": {"questions": 451, "images": 203}}
    assert made["leaks"] == [{"splits": ["train", "test"], "images": 202, "patients": 0}]
    text = (built_vqa_rad / "vqa_rad" / "1.0.0" / "CARD.md").read_text()
    assert "202 of the 203 images of test are also in train." in text and "CC0-1.0" in text and "osf.io/89kps" in text
    assert not any("published are" in note for note in made["notes"])


def test_the_card_has_the_checksums_of_what_was_read(built_vqa_rad, test_data):
    made, listed = card(built_vqa_rad, "vqa_rad"), {}
    for line in (test_data / "SHA256SUMS").read_text().splitlines():
        sha256, name = line.split("  ", 1)
        listed[name] = sha256
    assert made["files"] == {vqa_rad.QUESTIONS: listed[f"vqa_rad/{vqa_rad.QUESTIONS}"]}
    used = {s.images[0] for split in ("train", "test") for s in vqa_rad.read(test_data / "vqa_rad", split)}
    sums = [f"{hashlib.sha256(Path(path).read_bytes()).hexdigest()}  {Path(path).name}\n" for path in sorted(used)]
    assert made["images_sha256"] == hashlib.sha256("".join(sums).encode()).hexdigest() and len(used) == 314


def test_what_is_read_back_is_what_was_read(built_vqa_rad, test_data):
    for split in ("train", "test"):
        config = SourceConfig("data_prep.built:source", split, options={"set": "vqa_rad", "data_dir": str(built_vqa_rad)})
        samples, published = load_source(config), vqa_rad.read(test_data / "vqa_rad", split)
        assert len(samples) == len(published)
        for n in range(0, len(published), 7):
            sample, expected = samples[n], published[n]
            assert sample.images[0].tobytes() == open_image(expected.images[0]).tobytes()
            fields = ("sample_id", "question", "answer", "options", "boxes", "metadata", "demonstration")
            assert all(getattr(sample, name) == getattr(expected, name) for name in fields)


def test_grain_reads_it(built_vqa_rad):
    """In threads, and with a position that can be kept: the same source again has the same name and no path in it."""
    options = {"set": "vqa_rad", "data_dir": str(built_vqa_rad)}
    samples, again = (load_source(SourceConfig("data_prep.built:source", "test", options=options)) for _ in range(2))
    assert repr(samples) == repr(again) and str(built_vqa_rad) not in repr(samples)
    stream = grain.MapDataset.source(samples).seed(0).shuffle().to_iter_dataset(grain.ReadOptions(num_threads=4))
    assert {sample.sample_id for sample in stream} == {samples[n].sample_id for n in range(len(samples))}
    for wrong in (451, -1):
        with pytest.raises(IndexError, match="a source of 451"):
            samples[wrong]


def test_a_set_that_is_there_is_built_again_only_when_told(build_set, tmp_path, capsys):
    source = published(tmp_path / "slake")
    data_dir = build_set("slake", source)
    place = data_dir / "slake" / "1.0.0"
    first = {path.name: path.stat().st_ino for path in place.iterdir()}
    capsys.readouterr()
    build_set("slake", source)
    assert "is built already" in capsys.readouterr().out
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


def test_a_killed_build_leaves_nothing_that_looks_finished(test_data, tmp_path, build_set):
    """It is killed after its shards are written, just before it would be moved to its place."""
    data_dir = tmp_path / "built"
    code = f"""
import sys, time
from data_prep import build
from data_prep.building import store
store.write_card = lambda card, made: (print("written", flush=True), time.sleep(60))
sys.argv = ["build", "slake", "--source={published(tmp_path / "slake")}", "--data_dir={data_dir}"]
build.main()
"""
    with start(sys.executable, "-c", code, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    assert [path.name[:7] for path in data_dir.iterdir()] == [".slake-"]
    with pytest.raises(DataError, match="holds no built set"):
        read_back(data_dir, "slake", "test_en")
    build_set("slake", tmp_path / "slake")
    assert len(read_back(data_dir, "slake", "test_en")) == 1


def test_help_says_what_every_set_needs(monkeypatch, capsys):
    titles = {dataset.name: dataset for dataset in (*(module.SET for module in build.SETS.values()), OWN)}
    for argv in ([], *([name] for name in titles)):
        monkeypatch.setattr("sys.argv", ["build", *argv, "--help"])
        with pytest.raises(SystemExit) as stopped:
            build.main()
        assert stopped.value.code == 0
        text = capsys.readouterr().out
        assert all(name in text for name in (argv or titles))
        assert not argv or ("--source" in text and titles[argv[0]].licence in text)


def test_a_wrong_source_is_one_line(build_set, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        build_set("slake", tmp_path / "nowhere")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'nowhere'}: there is no such folder\n"
    assert not (tmp_path / "built").exists()


def test_a_split_that_is_not_there_is_named(build_set, tmp_path):
    data_dir = build_set("slake", published(tmp_path / "slake"))
    config = SourceConfig(
        "data_prep.built:source", "test", options={"set": "slake", "data_dir": str(data_dir), "language": "fr"}
    )
    with pytest.raises(ConfigError, match="slake has no split 'test_fr'; it has .*test_en"):
        load_source(config)
    with pytest.raises(DataError, match="2.0.0: holds no built set.*versions there are 1.0.0"):
        load_source(
            SourceConfig(
                "data_prep.built:source", "test", options={"set": "slake", "data_dir": str(data_dir), "version": "2.0.0"}
            )
        )

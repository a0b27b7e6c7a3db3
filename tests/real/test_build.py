"""VQA-RAD, built by the command in an interpreter without TensorFlow."""

import hashlib
from pathlib import Path

import grain
import pytest

from data_prep.sets import vqa_rad
from tests.kit.datasets import card
from tests.kit.processes import run_code
from vitar_jax.data.sources import SourceConfig, load_source
from vitar_jax.processing.files import open_image

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built_vqa_rad(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def test_vqa_rad_has_the_published_counts_and_its_known_leak(built_vqa_rad: Path) -> None:
    made = card(built_vqa_rad, "vqa_rad")
    assert made["splits"] == {"train": {"questions": 1793, "images": 313}, "test": {"questions": 451, "images": 203}}
    assert made["leaks"] == [{"splits": ["train", "test"], "images": 202, "patients": 0}]
    text = (built_vqa_rad / "vqa_rad" / "1.0.0" / "CARD.md").read_text()
    assert "202 of the 203 images of test are also in train." in text and "CC0-1.0" in text and "osf.io/89kps" in text
    assert not any("the authors report" in note for note in made["notes"])


def test_the_card_has_the_checksums_of_what_was_read(built_vqa_rad: Path, test_data: Path) -> None:
    made, listed = card(built_vqa_rad, "vqa_rad"), {}
    for line in (test_data / "SHA256SUMS").read_text().splitlines():
        sha256, name = line.split("  ", 1)
        listed[name] = sha256
    assert made["files"] == {vqa_rad.QUESTIONS: listed[f"vqa_rad/{vqa_rad.QUESTIONS}"]}
    used = {s.images[0] for split in ("train", "test") for s in vqa_rad.read_folder(test_data / "vqa_rad", split)}
    sums = [f"{hashlib.sha256(Path(path).read_bytes()).hexdigest()}  {Path(path).name}\n" for path in sorted(used)]
    assert made["images_sha256"] == hashlib.sha256("".join(sums).encode()).hexdigest() and len(used) == 314


def test_what_is_read_back_is_what_was_read(built_vqa_rad: Path, test_data: Path) -> None:
    for split in ("train", "test"):
        config = SourceConfig("data_prep.built:source", split, options={"set": "vqa_rad", "data_dir": str(built_vqa_rad)})
        samples, published = load_source(config), vqa_rad.read_folder(test_data / "vqa_rad", split)
        assert len(samples) == len(published)
        for n in range(0, len(published), 7):
            sample, expected = samples[n], published[n]
            assert sample.images[0].tobytes() == open_image(expected.images[0]).tobytes()
            fields = ("sample_id", "question", "answer", "options", "boxes", "metadata", "demonstration")
            assert all(getattr(sample, name) == getattr(expected, name) for name in fields)


def check_grain(data_dir: Path, count: int) -> None:
    """In threads, and with a position that can be kept: the same source again has the same name and no path in it."""
    options = {"set": "vqa_rad", "data_dir": str(data_dir)}
    samples, again = (load_source(SourceConfig("data_prep.built:source", "test", options=options)) for _ in range(2))
    assert repr(samples) == repr(again) and str(data_dir) not in repr(samples) and len(samples) == 451
    chosen = grain.MapDataset.source(samples)[:count]
    stream = chosen.seed(0).shuffle().to_iter_dataset(grain.ReadOptions(num_threads=4))
    assert sorted(sample.sample_id for sample in stream) == sorted(samples[n].sample_id for n in range(count))
    for wrong in (451, -1):
        with pytest.raises(IndexError, match="a source of 451"):
            samples[wrong]


def test_grain_reads_it(built_vqa_rad: Path) -> None:
    check_grain(built_vqa_rad, 20)


@pytest.mark.sweep
def test_grain_reads_all_of_it(built_vqa_rad: Path) -> None:
    check_grain(built_vqa_rad, 451)

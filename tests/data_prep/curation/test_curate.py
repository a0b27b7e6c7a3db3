"""Curation for real: phantoms and MRI slices with experts' lesions become rows that a stage of SFT learns from."""

import json
import re
import sys
import textwrap
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep import curate
from data_prep.phantom import samples as phantom
from data_prep.phantom.__main__ import main as write_phantoms
from data_prep.phantom.pictures import KINDS
from tests.kit.datasets import lesions, write_boxes
from tests.kit.processes import ROOT
from tests.kit.processes import run as run_command
from tests.kit.recipes import load_config
from vitar_jax.data.pipeline import sft_batches
from vitar_jax.data.sources import SourceConfig, load_source
from vitar_jax.episodes.episode import Limits
from vitar_jax.episodes.experts import demonstrate
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.regions import Box, bounding_box
from vitar_jax.episodes.sample import Answer, Demonstration, Look, Sample
from vitar_jax.episodes.tools import widened
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.processing.chat import Chat
from vitar_jax.processing.files import open_image
from vitar_jax.processing.images import ImageProcessor
from vitar_jax.processing.packing import BatchShape
from vitar_jax.processing.positions import SizeClass, VisionLayout
from vitar_jax.processing.processor import Processor

LIMITS = Limits(tokens=1536, turn_tokens=256, images=2)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of 24 phantoms."""
    directory = tmp_path_factory.mktemp("phantoms")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["phantom", f"--output={directory}", "--count=24"])
        patch.setattr(phantom, "CACHE", tmp_path_factory.mktemp("cache"))
        write_phantoms()
    return ["--format=coco", f"--annotations={directory}/annotations.json", f"--images={directory}"]


def run(output: Path, *flags: str) -> dict[str, Any]:
    curate.main([*flags, f"--output={output}", f"--key={key_file(output)}"])
    return json.loads((output / "report.json").read_text())


def key_file(output: Path) -> Path:
    return output.with_name(f"{output.name}_key.json")


def source_of(row: Sample, output: Path) -> str:
    """Returns the name of the file that a row's image was made from."""
    return Path(json.loads(key_file(output).read_text())["images"][Path(str(row.images[0])).name]).name


def rows(output: Path, name: str = "questions") -> tuple[Sample, ...]:
    return tuple(load_source(SourceConfig("questions", options={"file": str(output / f"{name}.jsonl")})))  # type: ignore[arg-type]


def written(output: Path) -> list[bytes]:
    return [(output / f"{name}.jsonl").read_bytes() for name in ("questions", "interactive")]


@pytest.fixture(scope="module")
def processor(test_data: Path) -> Processor:
    """The real one, whose view of an image is small: 36 tokens."""
    real = test_data / "qwen2_5_vl_7b_instruct"
    images = ImageProcessor.from_pretrained(real)
    small = ImageProcessor(max_pixels=28 * 28 * 36, image_mean=images.image_mean, image_std=images.image_std)
    return Processor(Chat(real), small, (SizeClass(4, 64),), layout=VisionLayout(112))


@pytest.mark.slow
def test_phantoms(phantoms: list[str], tmp_path: Path) -> None:
    report = run(tmp_path, *phantoms, "--interactive=0.5")
    questions, interactive = rows(tmp_path), rows(tmp_path, "interactive")
    assert report["rows"] == {"questions": len(questions), "interactive": len(interactive)} and questions and interactive
    asked = len(questions) + len(interactive) + sum(report["rejected"].values())
    assert asked == 24 * 3 + report["kinds"]["presence"] and report["kinds"]["presence"] > 12
    assert report["failed"] == {} and report["malformed"] == {"records": 0}
    assert not {row.images for row in questions} & {row.images for row in interactive}
    assert all(row.demonstration is None for row in questions) and all(row.demonstration for row in interactive)
    looks = phantom.source("test", length=24)
    for row in (*questions, *interactive):
        truth = looks[int(re.findall(r"\d+", source_of(row, tmp_path))[0])]
        assert np.array_equal(np.asarray(open_image(row.images[0])), np.asarray(truth.images[0]))
        if row.metadata["kind"] == "finding":
            assert dict(row.options)[row.answer] == truth.metadata["kind"] and set(dict(row.options).values()) == set(KINDS)
        if row.boxes:
            assert row.boxes[0].xyxy == pytest.approx(truth.boxes[0].xyxy, abs=0.01)


@pytest.mark.slow
def test_the_same_again_and_another_with_another_seed(phantoms: list[str], tmp_path: Path) -> None:
    for name, flags in (("a", []), ("b", []), ("c", ["--seed=1"]), ("d", ["--count=7", "--concurrency=1"])):
        run(tmp_path / name, *phantoms, "--interactive=0.3", *flags)
    a, b, c, d = (written(tmp_path / name) for name in "abcd")
    assert a == b and a != c
    first, few = (b"".join(files).splitlines() for files in (a, d))
    assert len(few) == 7 and set(few) <= set(first)


@pytest.mark.slow
def test_real_lesions_are_learnt_from(test_data: Path, processor: Processor, tmp_path: Path) -> None:
    """Lesions of 6 px too: what is marked is what the tool takes, also in a view of 168 px."""
    images, records = lesions(test_data)
    flags = write_boxes(tmp_path, images, {Path(r["image"]).name: [("lesion", r["bbox_xyxy"])] for r in records}, "coco")
    report = run(tmp_path / "out", *flags, "--interactive=1")
    assert report["rows"]["questions"] == 0 and report["rejected"]["no other class"] == 10
    shown = rows(tmp_path / "out", "interactive")
    truth = {Path(record["image"]).name: record["bbox_xyxy"] for record in records}
    assert len(shown) == 20 - (sum(report["rejected"].values()) - 10) >= 15
    for sample in shown:
        episode = demonstrate(sample, PROTOCOLS["vitar"], processor, LIMITS)
        first, last = episode.turns
        assert first.action and first.action["name"] == "mark" and first.image == 1 and first.error is None
        assert first.thought and last.thought and episode.predicted_answer == sample.answer
        (gold,), (looked,) = sample.boxes, first.boxes_original
        assert list(gold.xyxy) == truth[source_of(sample, tmp_path / "out")]
        view = 256 / 168
        assert looked[0] <= gold.x1 + view and looked[1] <= gold.y1 + view
        assert looked[2] >= gold.x2 - view and looked[3] >= gold.y2 - view
        marks = np.asarray(episode.images[1].pixels.convert("RGB")).astype(int) - np.asarray(
            episode.images[0].pixels.convert("RGB")
        )
        down, across = np.nonzero(marks.any(-1))
        assert (across.min(), down.min()) == pytest.approx(looked[:2], abs=1.5)
        assert len(episode.example().token_ids) == len(episode.example().loss_mask) and any(episode.loss_mask)


@pytest.mark.slow
def test_a_stage_reads_them(phantoms: list[str], processor: Processor, tmp_path: Path) -> None:
    run(tmp_path, *phantoms, "--interactive=1")
    batches = sft_batches(
        [SourceConfig("questions", options={"file": str(tmp_path / "interactive.jsonl")})],
        protocols=PROTOCOLS,
        default_protocol="vitar",
        processor=processor,
        limits=LIMITS,
        shape=BatchShape(bins=1, rows=2, tokens=1024, images=4, size_class=processor.size_classes[0], policy_tokens=400),
        seed=0,
        batch_size=2,
        threads=0,
    )
    for batch in islice(iter(batches), 3):
        assert batch.loss_mask.sum() > 100 and (batch.vision_index >= 0).sum() == 4 * 36


@pytest.mark.slow
@pytest.mark.parametrize("width, height", [(31, 31), (31, 900), (40, 64), (448, 448), (3000, 500)])
def test_any_box_can_be_marked_in_any_view(width: int, height: int, test_data: Path) -> None:
    """A view of 28 px a side is the smallest that there is."""
    chat = Chat(test_data / "qwen2_5_vl_7b_instruct")
    least = Processor(
        chat, ImageProcessor(min_pixels=28 * 28, max_pixels=28 * 28), (SizeClass(16, 64),), layout=VisionLayout(112)
    )
    random = np.random.default_rng(width)
    image = Image.new("L", (width, height))
    for _ in range(12):
        x1, y1 = random.uniform(0, width - 1), random.uniform(0, height - 1)
        box = Box(x1, y1, x1 + random.uniform(0.5, width - x1), y1 + random.uniform(0.5, height - y1), "original")
        boxes = (widened(box, (width, height)),)
        shown = Demonstration((Look("I mark it.", "mark", boxes),), Answer("It is there.", "A"))
        demonstrate(Sample("a", "Which?", (image,), "A", demonstration=shown), PROTOCOLS["vitar"], least, LIMITS)


@pytest.mark.slow
def test_the_sheet_opens_from_disk(phantoms: list[str], tmp_path: Path) -> None:
    directory = tmp_path / "<b>"
    run(directory, *phantoms, "--interactive=0.5")
    page = (directory / "sheet" / "index.html").read_text()
    named = re.findall(r'src="([^"]+)"', page)
    assert len(named) >= 24 and all((directory / "sheet" / name).is_file() for name in named)
    assert not re.search(r"https?://|<script", page) and page.count("Rethought") == page.count("Action") > 5
    (one, *_) = rows(directory, "interactive")
    with Image.open(directory / "sheet" / f"{one.sample_id}.jpg") as picture:
        assert one.demonstration
        box = bounding_box(one.demonstration.looks[0].regions[0])
        red, green, _ = picture.getpixel((round(box.x1) - 2, round((box.y1 + box.y2) / 2)))  # type: ignore[misc]
        assert red > 180 and green < 90


def test_what_is_malformed_is_counted_and_the_rest_goes_on(
    phantoms: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(phantoms[2].partition("=")[2])
    content = json.loads((folder / "annotations.json").read_text())
    content["annotations"][3]["bbox"] = [0, 0, 0, 0]
    content["images"][5]["file_name"] = "missing.png"
    content["images"][7]["file_name"] = content["images"][6]["file_name"]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    report = run(tmp_path / "out", phantoms[0], f"--annotations={tmp_path}/boxes.json", phantoms[2])
    assert report["malformed"] == {"records": 4}
    texts = sorted(text.partition(", ")[2] for text in json.loads(key_file(tmp_path / "out").read_text())["malformed"])
    assert [text.split(":")[0] for text in texts] == ["annotation 3", "image 5", "image 6", "image 7"]
    assert "with other annotations" in texts[2] and "is a duplicate of" in texts[3]
    assert capsys.readouterr().err.count("skipped: ") == 4
    assert report["rows"]["questions"] > 40


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--format=yolo"], "--classes"),
        (["--annotations=nowhere.json"], "nowhere.json"),
        (["--images=nowhere"], "no usable image"),
        (["--concurrency=0"], "--concurrency"),
        (["--format=masks", "--boxes=normalized"], "always pixels"),
        (["--format=yolo", "--boxes=pixels"], "always normalized"),
        (["--model=x"], "--endpoint"),
        (["--endpoint=http://x", "--model=y"], "--verifier_model"),
        (["--endpoint=x", "--model=y", "--verifier_model=z"], "expected a URL"),
        (["--endpoint=http://x", "--model=y", "--verifier_model=z", "--request=[1"], "--request"),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    flags: list[str], words: str, phantoms: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, *phantoms, *flags)
    said = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and said.startswith("error: ") and words in said


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ({"a.png": [], "b.png": []}, "the images show no object"),
        ({"a.png": [("nodule", (24, 24, 40, 40))], "b.png": [("nodule", (4, 4, 200, 20))]}, "1 malformed: records"),
    ],
)
def test_no_rows_are_an_error_with_its_reason(
    boxes: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(boxes):
        Image.new("L", (64, 64), number).save(tmp_path / name)
    with pytest.raises(SystemExit):
        run(tmp_path / "out", *write_boxes(tmp_path / "boxes", tmp_path, boxes, "coco"))
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ") and "yields no rows" in said and words in said


def test_output_below_the_images_is_no_input(tmp_path: Path) -> None:
    """Its unlabelled pictures would be duplicates with other annotations, and images without a finding."""
    boxes = {f"{number}.png": [("mass", (2, 2, 20, 20))] for number in range(3)}
    for number, name in enumerate(boxes):
        Image.new("L", (64, 64), number).save(tmp_path / name)
    flags = write_boxes(tmp_path / "boxes", tmp_path, boxes, "yolo")
    first, again = (run(tmp_path / "out", *flags) for _ in range(2))
    assert again["rows"] == first["rows"] and sum(first["rows"].values()) == 6 and again["malformed"] == {"records": 0}


def test_classes_that_differ_in_case_are_one(tmp_path: Path) -> None:
    """As two, each would be absent where the other is annotated."""
    boxes = {f"{number}.png": [(("Nodule", "nodule")[number % 2], (2, 2, 20, 20))] for number in range(8)}
    boxes |= {f"{number}.png": [("cyst", (40, 40, 60, 60))] for number in range(8, 12)}
    for number, name in enumerate(boxes):
        Image.new("L", (64, 64), number).save(tmp_path / name)
    run(tmp_path / "out", *write_boxes(tmp_path / "boxes", tmp_path, boxes, "coco"), "--interactive=0")
    asked = [row for row in rows(tmp_path / "out") if row.metadata["kind"] == "presence"]
    assert {row.metadata["finding"] for row in asked} <= {"Nodule", "cyst"} and asked
    for row in asked:
        number = int(Path(source_of(row, tmp_path / "out")).stem)
        assert (dict(row.options)[row.answer] == "Yes") == ((number < 8) == (row.metadata["finding"] == "Nodule"))


def test_no_rows_of_sound_data_are_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A box in the middle is in no half, and a single class has no other to be confused with."""
    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    report = run(tmp_path / "out", *write_boxes(tmp_path / "boxes", tmp_path, {"a.png": [("mass", (24, 24, 40, 40))]}, "yolo"))
    assert report["rows"] == {"questions": 0, "interactive": 0}
    assert "warning: " in (said := capsys.readouterr().err) and "2 rejected: no option fits" in said


@pytest.mark.slow
def test_the_page_is_true(tmp_path: Path) -> None:
    """Its commands run, that with an endpoint apart, and its recipe reads what they wrote."""
    page = (ROOT / "docs" / "curation.md").read_text()
    commands = re.findall(r"^    (?:\w+=\S+ )?(python -m (?:[^\n]*\\\n)*[^\n]*)", page, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        if "--endpoint" in command:
            curate._parser().parse_args(command.replace("\\\n", " ").split()[3:])
        else:
            done = run_command("bash", "-c", command.replace("python", sys.executable, 1).replace("runs/", f"{tmp_path}/"))
            assert done.returncode == 0, done.stderr
    (recipe,) = re.findall(r"^    (config\.stages.*?)\n\n", page, re.MULTILINE | re.DOTALL)
    config = load_config("quickstart_smoke")
    exec(textwrap.dedent("    " + recipe.replace("runs/", f"{tmp_path}/")), {"config": config})
    stages = Recipe.from_config(config).stages
    (shown,), (asked,) = (stages[name].sources.values() for name in ("sft", "grpo"))
    assert shown.protocol == "vitar" and load_source(shown)[0].demonstration and load_source(asked)[0].answer

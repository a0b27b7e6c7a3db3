"""The output names no patient: neither headers nor comments, file names or records that were skipped."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from data_prep import curate
from tests.kit.curation import file_of, flags, well
from tests.kit.datasets import write_boxes
from tests.kit.endpoint import serving
from tests.kit.files import write_files
from tests.kit.images import dicom
from vitar_jax.data.questions import read
from vitar_jax.processing.files import open_image

NAME, NUMBER = "Doering^Johanna", "MRN-778812"


def image_file(path: Path, seed: int) -> None:
    """Writes a DICOM, JPEG or PNG file that names a patient in its metadata."""
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x013B] = NAME
    noted = PngImagePlugin.PngInfo()
    noted.add_text("Patient", NAME)
    if path.suffix == ".dcm":
        path.write_bytes(dicom(pixels, PatientName=NAME, PatientID=NUMBER))
    elif path.suffix == ".jpg":
        Image.fromarray(pixels).save(path, exif=exif, comment=NAME, icc_profile=NAME.encode())
    else:
        Image.fromarray(pixels).save(path, exif=exif, pnginfo=noted, icc_profile=NAME.encode())


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Flags of eight images, each called after a patient, as its annotations are. One has a box outside."""
    images = tmp_path / "images"
    images.mkdir()
    boxes = {}
    for number, suffix in enumerate((".dcm", ".jpg", ".png", ".dcm") * 2):
        image_file(images / f"{NAME}_{number}{suffix}", number)
        boxes[f"{NAME}_{number}{suffix}"] = [("mass" if number % 2 else "cyst", (4 * number, 4, 4 * number + 9, 20))]
    boxes[f"{NAME}_7.dcm"] = [("mass", (4, 4, 99, 9))]
    return write_boxes(tmp_path / NAME, images, boxes, "yolo")


def everything(output: Path) -> bytes:
    """Returns all names and contents of files, and the contents of pictures as they are and decoded."""
    parts = []
    for path in output.rglob("*"):
        parts += [str(path.relative_to(output)).encode(), path.read_bytes() if path.is_file() else b""]
        if path.suffix in (".png", ".jpg"):
            parts.append(repr(Image.open(path).info).encode())
    return b"\n".join(parts)


def named(text: bytes) -> bool:
    return any(part.encode() in text for part in (*NAME.split("^"), NUMBER))


def test_the_output_names_no_patient(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, key = tmp_path / "out", tmp_path / "key.json"
    curate.main([*data, f"--output={output}", "--interactive=0.5", f"--key={key}"])
    assert not named(everything(output)) and {path.suffix for path in (output / "images").iterdir()} == {".png"}
    said = capsys.readouterr()
    assert not named(said.out.encode())
    assert "7.txt" in said.err and "within the image" in said.err  # on the terminal alone
    names = json.loads(key.read_text())
    for row in (*read(output / "questions.jsonl"), *read(output / "interactive.jsonl")):
        source = names["images"][Path(str(row.images[0])).name]
        assert open_image(row.images[0]).tobytes() == open_image(source).tobytes()
    assert len(names["images"]) == 7 and len(names["malformed"]) == 1


def test_no_key_is_written_unless_asked_and_never_into_the_output(data: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out"
    before = {*tmp_path.iterdir(), output}
    curate.main([*data, f"--output={output}"])
    assert {*tmp_path.iterdir()} == before
    with pytest.raises(SystemExit):
        curate.main([*data, f"--output={output}", f"--key={output / 'key.json'}"])
    assert not (output / "key.json").exists()


@pytest.mark.parametrize("name", [f"images/{64 * 'a'}.dcm", "report.json"])
def test_the_output_of_an_earlier_version_is_refused(
    name: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(tmp_path / "out", {name: json.dumps({"malformed_records": [f"{NAME}.dcm: is damaged"]})})
    with pytest.raises(SystemExit):
        curate.main([*data, f"--output={tmp_path / 'out'}"])
    assert "earlier version" in capsys.readouterr().err


def test_no_request_names_a_patient(data: list[str], tmp_path: Path) -> None:
    with serving(well) as server:
        curate.main([*data, f"--output={tmp_path / 'out'}", "--interactive=0.5", *flags(server.url)])
    assert server.asked and not named(json.dumps(server.asked).encode()) and not named(everything(tmp_path / "out"))
    assert not any(file_of(body).info for body in server.asked)


def test_a_class_that_is_called_after_its_patient_is_refused(data: list[str], tmp_path: Path) -> None:
    classes = Path(data[3].partition("=")[2])
    classes.write_text(f"cyst of {NAME}\nmass\n")
    curate.main([*data, f"--output={tmp_path / 'out'}", f"--key={tmp_path / 'key.json'}"])
    refused = [text for text in json.loads((tmp_path / "key.json").read_text())["malformed"] if "PatientName" in text]
    assert len(refused) == 2 and not named((tmp_path / "out" / "report.json").read_bytes())

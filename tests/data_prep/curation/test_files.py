"""Layouts of other tools: lists, class names and thumbnails are ignored, and no image loses its label without a word."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_prep.curation import masks, yolo
from data_prep.curation.detections import Annotated
from data_prep.curation.files import Ignored
from tests.kit.files import write_files
from tests.kit.images import dicom, noise, picture
from vitar_jax.errors import DataError

ROW = "0 0.5 0.5 0.3 0.3\n"
LIST = "data/obj_train_data/0.png\ndata/obj_train_data/1.png\n"


def read(folder: Path, images: str = ".", labels: str = ".", classes: str = "classes.txt") -> dict[str, Any]:
    """Returns the number of objects by image, the ignored files, and the errors."""
    (folder / "names").write_text("nodule\ncyst\n")
    named = folder / classes if (folder / classes).is_file() else folder / "names"
    records = list(yolo.read(folder / labels, folder / images, named))
    return {
        "images": {str(one.image.relative_to(folder)): len(one.objects) for one in records if isinstance(one, Annotated)},
        "others": {one.file.name for one in records if isinstance(one, Ignored)} - {"names"},
        "errors": [str(one) for one in records if isinstance(one, DataError)],
    }


LAYOUTS: dict[str, tuple[dict[str, str], dict[str, str], dict[str, int]]] = {
    "labelImg": ({"0.png": ROW, "1.png": ""}, {"classes.txt": "nodule\n"}, {"0.png": 1, "1.png": 0}),
    "Darknet": (
        {"data/obj/0.jpg": ROW, "data/obj/1.JPG": ""},
        {"data/train.txt": LIST, "data/obj.names": "nodule\n", "data/obj.data": "classes = 1\n", "README": "?", "a.cfg": ""},
        {"data/obj/0.jpg": 1, "data/obj/1.JPG": 0},
    ),
    "CVAT YOLO 1.1": (
        {"obj_train_data/0.PNG": ROW + ROW, "obj_train_data/1.png": ""},
        {"train.txt": LIST, "obj.names": "nodule\n", "obj.data": "classes = 1\nnames = data/obj.names\n"},
        {"obj_train_data/0.PNG": 2, "obj_train_data/1.png": 0},
    ),
    "thumbnails": (
        {"0.png": ROW, "thumb_of_the_left_hand.png": ROW},
        {"Thumbs.db": "x", "0_thumb.jpg": "", "thumbnails/0.png": "", ".thumbs/1.png": "", "@eaDir/0.png/SYNOFILE.jpg": ""},
        {"0.png": 1, "thumb_of_the_left_hand.png": 1},
    ),
    "notes": (
        {"a/0.tif": ROW, "b/0.tif": ""},
        {"README.txt": "Numbers: 1 2 3.\n", "a/notes.txt": "a b c d e\n", ".DS_Store": "x", "a/._0.tif": "x", "x.json": "{}"},
        {"a/0.tif": 1, "b/0.tif": 0},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_of_another_tool(layout: str, tmp_path: Path) -> None:
    labelled, others, expected = LAYOUTS[layout]
    suffixes = {".jpg": "JPEG", ".png": "PNG", ".tif": "TIFF"}
    files: dict[str, Any] = dict(others)
    for number, (name, label) in enumerate(labelled.items()):
        files |= {name: picture(number, suffixes[Path(name).suffix.lower()]), str(Path(name).with_suffix(".txt")): label}
    write_files(tmp_path, files)
    found = read(tmp_path)
    assert found["images"] == expected and not found["errors"]
    hidden = {name for name in map(Path, others) if any(part.startswith(".") for part in name.parts)}
    assert found["others"] == {Path(name).name for name in others} - {name.name for name in hidden}


@pytest.mark.parametrize(
    ("images", "labels", "names"),
    [
        ("images", "labels", ("images/train/0.png", "labels/train/0.txt")),  # Ultralytics
        (".", ".", ("images/train/0.png", "labels/train/0.txt")),
        (".", ".", ("train/images/0.png", "train/labels/0.txt")),  # Roboflow
        ("train/images", "train/labels", ("train/images/0.png", "train/labels/0.txt")),
        (".", ".", ("1.2.840.113/0.png", "1.2.840.113/0.txt")),
    ],
)
def test_folders_of_images_and_labels(images: str, labels: str, names: tuple[str, str], tmp_path: Path) -> None:
    write_files(tmp_path, {names[0]: picture(1), names[1]: ROW, "data.yaml": "names: [nodule]\n"})
    assert read(tmp_path, images, labels, "data.yaml")["images"] == {names[0]: 1}


def test_dicom_files_without_a_suffix_are_images(tmp_path: Path) -> None:
    content = dicom(noise(16, 12, "L").tobytes(), (12, 16))
    write_files(tmp_path, {"IM0001": content, "IM0001.txt": ROW, "1.2.840.113": content, "1.2.840.113.txt": ROW})
    assert read(tmp_path)["images"] == {"IM0001": 1, "1.2.840.113": 1}


def test_a_label_without_its_image_makes_no_other_image_negative(tmp_path: Path) -> None:
    """An image without a label shows nothing, unless a label could be its own under another name."""
    write_files(tmp_path, {"0.png": picture(0), "0.txt": ROW, "1.png": picture(1)})
    assert read(tmp_path)["images"] == {"0.png": 1, "1.png": 0}
    write_files(tmp_path, {"l.txt": ROW})
    found = read(tmp_path)
    assert found["images"] == {"0.png": 1} and len(found["errors"]) == 2
    assert "l.txt: no image of this name" in found["errors"][0] and "1.png: has no label file" in found["errors"][1]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_byte_order_marks_and_line_ends(encoding: str, end: str, tmp_path: Path) -> None:
    texts = {"0.txt": ROW + ROW, "classes.txt": "nodule\ncyst\n", "data.yaml": "names:\n  '0': nodule\n"}
    files = {name: text.replace("\n", end).encode(encoding) for name, text in texts.items()}
    write_files(tmp_path, files | {"0.png": picture(0)})
    for classes in ("classes.txt", "data.yaml"):
        found = read(tmp_path, classes=classes)
        assert found["images"] == {"0.png": 2} and not found["errors"]


@pytest.mark.parametrize(
    ("row", "box"),
    [
        ("0 0.5 0.5 0.5 0.25", (0.25, 0.375, 0.75, 0.625)),
        ("0.0 0.5 0.5 0.5 0.25", (0.25, 0.375, 0.75, 0.625)),
        ("0 0.5 0.5 0.5 0.25 0.9", (0.25, 0.375, 0.75, 0.625)),  # a detector's confidence
        ("0 0.25 0.5 0.75 0.375 0.5 0.625", (0.25, 0.375, 0.75, 0.625)),  # a polygon
        ("0 0.25 0.375 0.75 0.375 0.75 0.625 0.25 0.625", (0.25, 0.375, 0.75, 0.625)),
    ],
)
def test_rows_of_yolo(row: str, box: tuple[float, ...], tmp_path: Path) -> None:
    write_files(tmp_path, {"0.png": picture(0), "0.txt": row + "\r\n", "names": "nodule\n"})
    (record,) = (one for one in yolo.read(tmp_path, tmp_path, tmp_path / "names") if isinstance(one, Annotated))
    ((name, found),) = record.objects
    assert name == "nodule" and found.xyxy == pytest.approx(box) and found.frame == "normalized"


@pytest.mark.parametrize(
    "row",
    ["0 .5 .5 .5 .25 1.5", "0 .1 .2 .3 .4 .5 .6 .7", "0 nan .5 .1 .1", "-1 .5 .5 .1 .1", "0.5 .5 .5 .1 .1", "0,.5,.5,.1,.1"],
)
def test_rows_that_are_no_yolo(row: str, tmp_path: Path) -> None:
    write_files(tmp_path, {"0.png": picture(0), "0.txt": row})
    (error,) = read(tmp_path)["errors"]
    assert "0.txt:1: got" in error


# --- masks --------------------------------------------------------------------------------------


def palette(values: Image.Image, *colours: int) -> Image.Image:
    values = values.convert("P")
    values.putpalette(colours)
    return values


def square(value: int, mode: str = "L") -> Image.Image:
    """Returns a mask whose upper left quarter has the value."""
    mask = Image.new("L", (8, 6))
    mask.paste(value, (0, 0, 4, 3))
    return mask.convert(mode)


def read_masks(folder: Path, classes: str = "background\nnodule\n", **given: Image.Image) -> list[Any]:
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    (folder / "names").write_text(classes)
    for name, mask in given.items():
        (folder / "images" / f"{name}.png").write_bytes(picture(1))
        mask.save(folder / "masks" / f"{name}.PNG")
    return list(masks.read(folder / "masks", folder / "images", folder / "names"))


@pytest.mark.parametrize(
    "mask",
    [square(1), square(255), square(255, "1"), square(1, "RGB"), square(255, "RGBA"), square(1, "I;16"), square(255, "LA")]
    + [palette(square(1), 0, 0, 0, 128, 0, 0)],
)
def test_masks_of_one_class(mask: Image.Image, tmp_path: Path) -> None:
    (record,) = read_masks(tmp_path, a=mask)
    assert [(name, box.xyxy) for name, box in record.objects] == [("nodule", (0, 0, 4, 3))] and record.size == (8, 6)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (square(2), "got value 2"),
        (Image.merge("RGB", [square(1), square(0), square(0)]), "colour image"),
        (Image.merge("LA", [square(1), square(9)]), "colour image"),
        (palette(square(1), 255, 255, 255, 0, 0, 0), "0 is not black"),
        (Image.linear_gradient("L").resize((8, 6)), "got value"),
    ],
)
def test_masks_whose_values_are_no_classes(mask: Image.Image, words: str, tmp_path: Path) -> None:
    (error,) = read_masks(tmp_path, a=mask)
    assert isinstance(error, DataError) and "a.PNG: got" in str(error) and words in str(error)


def test_white_is_no_class_where_there_are_several_or_a_number_is_used(tmp_path: Path) -> None:
    (error,) = read_masks(tmp_path / "several", "background\nnodule\ncyst\n", a=square(255))
    assert "got value 255" in str(error)
    with pytest.raises(DataError, match="value 255, but .*b.PNG has value 1"):
        read_masks(tmp_path / "both", a=square(255), b=square(1))


def test_masks_below_their_images(tmp_path: Path) -> None:
    write_files(tmp_path, {"images/a.png": picture(1), "masks/a.png": b"", "names": "background\nnodule\n", "notes.md": "?"})
    square(1).save(tmp_path / "masks" / "a.png")
    records = list(masks.read(tmp_path / "masks", tmp_path, tmp_path / "names"))
    assert [one.image for one in records if isinstance(one, Annotated)] == [tmp_path / "images" / "a.png"]
    assert {one.file.name for one in records if isinstance(one, Ignored)} == {"names", "notes.md"} and len(records) == 3

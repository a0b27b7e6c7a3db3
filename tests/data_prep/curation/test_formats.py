"""Four formats say the same of the same lesions; and what is wrong with a record is named."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_prep.curation import coco
from data_prep.curation.detections import Annotated, admit, class_names
from tests.kit.annotations import KINDS, admitted, malformed, read
from tests.kit.datasets import write_boxes
from vitar_jax.errors import DataError


@pytest.fixture
def made(tmp_path: Path) -> Callable[[str], list[str]]:
    """Three images: two classes on one, one on another, none on the last."""
    images = tmp_path / "images"
    images.mkdir()
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        Image.new("L", (64, 48), 60 * number).save(images / name)
    boxes = {"a.png": [("nodule", (2, 3, 20, 30)), ("mass", (40, 4, 64, 48))], "b.png": [("mass", (0, 0, 9, 9))], "c.png": []}
    return lambda kind: write_boxes(tmp_path, images, boxes, kind)


def test_all_formats_say_the_same(made: Callable[[str], list[str]]) -> None:
    one, *others = (admitted(made(kind)) for kind in KINDS)
    assert all(other == one for other in others)
    assert one["c.png"].boxes == {} and list(one["a.png"].boxes) == ["mass", "nodule"]
    assert one["a.png"].boxes["nodule"][0].xyxy == (2, 3, 20, 30)


COCO_CHANGES: list[tuple[str, int, dict[str, Any], str]] = [
    ("annotations", 1, {"bbox": [1, 2, 3]}, "annotation 1: bbox"),
    ("annotations", 1, {"bbox": [1, 2, 0, 3]}, "annotation 1: bbox"),
    ("annotations", 1, {"bbox": "1234"}, "annotation 1: bbox"),
    ("annotations", 1, {"bbox": [1, 2, float("nan"), 3]}, "annotation 1: bbox"),
    ("annotations", 1, {"bbox": [1, 2, 10**400, 3]}, "annotation 1: bbox"),
    ("annotations", 1, {"category_id": 9}, "annotation 1: category_id: unknown id 9"),
    ("annotations", 1, {"category_id": None}, "annotation 1: category_id: unknown id None"),
    ("annotations", 1, {"iscrowd": 1}, "annotation 1: iscrowd"),
    ("annotations", 1, {"bbox": [], "segmentation": {"size": [48, 64], "counts": [0, 9]}}, "annotation 1: bbox"),
    ("annotations", 1, {"bbox": [1, 2, -3, 3]}, "annotation 1: bbox: .* empty"),
    ("annotations", 0, {"bbox": [0.1, 0.2, 0.3, 0.4]}, "image 0: nodule: .* shares from 0 to 1.*--boxes"),
    ("annotations", 1, {"bbox": [60, 40, 10, 10]}, "image 0: mass: .* within the image"),
    ("annotations", 1, {"bbox": [70, 40, 10, 10]}, "image 0: mass: .* within the image"),
    ("images", 2, {"file_name": "d.png"}, "image 2: .*d.png"),
    ("images", 2, {"width": 63}, r"image 2: .*63, 48.*64, 48"),
    ("images", 2, {"width": "wide"}, "image 2: .* whole numbers"),
    ("images", 2, {"file_name": None}, "image 2: file_name: got None"),
]


@pytest.mark.parametrize("where, number, change, words", COCO_CHANGES)
def test_a_malformed_record_of_coco(made: Any, where: str, number: int, change: dict, words: str) -> None:
    flags = made("coco")
    path = Path(flags[1].partition("=")[2])
    content = json.loads(path.read_text())
    content[where][number] |= change
    path.write_text(json.dumps(content))
    (error,) = malformed(flags)
    assert error.startswith(str(path))
    assert re.search(words, error)


def changed(flags: list[str], change: Callable[[dict[str, Any]], Any], encoding: str = "utf-8") -> list[str]:
    """Changes the content of a COCO file."""
    path = Path(flags[1].partition("=")[2])
    content = json.loads(path.read_text())
    change(content)
    path.write_bytes(json.dumps(content).encode(encoding))
    return flags


def number_ids(content: dict[str, Any], image: Callable[[int], Any], category: Callable[[int], Any], own: Any = str) -> None:
    """Numbers images and categories from 3 on, and writes the annotations' references in another way."""
    images = {one["id"]: number for number, one in enumerate(content["images"], start=3)}
    for listed in ("images", "categories"):
        for number, one in enumerate(content[listed], start=3):
            one["id"] = number
    for number, one in enumerate(content["annotations"]):
        one |= {"id": own(number), "image_id": image(images[one["image_id"]]), "category_id": category(one["category_id"] + 3)}


@pytest.mark.parametrize("image", [int, str, float, "{:03d}".format, " {} ".format, "{}.0".format])
@pytest.mark.parametrize("category", [int, str])
def test_ids_are_text_or_numbers(made: Any, image: Any, category: Any) -> None:
    expected = {name: one.boxes for name, one in admitted(made("yolo")).items()}
    found = admitted(changed(made("coco"), lambda content: number_ids(content, image, category)))
    assert {name: one.boxes for name, one in found.items()} == expected


def test_numbers_are_text_too(made: Any) -> None:
    """As in files that were made from tables."""

    def change(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            annotation |= {"bbox": [str(number) for number in annotation["bbox"]], "iscrowd": "0"}

    expected = {name: one.boxes for name, one in admitted(made("yolo")).items()}
    assert {name: one.boxes for name, one in admitted(changed(made("coco"), change)).items()} == expected


def test_corners_may_be_counted_from_0(made: Any) -> None:
    flags = made("voc")
    path = Path(flags[1].partition("=")[2]) / "b.xml"
    path.write_text(path.read_text().replace("min>1<", "min>0<"))
    assert admitted(flags)["b.png"].boxes["mass"][0].xyxy == (0, 0, 9, 9)
    path.write_text(path.read_text().replace("min>0<", "min>-1<"))
    assert len(malformed(flags)) == 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_xml_with_a_byte_order_mark_in_subfolders(made: Any, encoding: str, tmp_path: Path) -> None:
    flags = made("voc")
    folder = Path(flags[1].partition("=")[2])
    for place in (folder, tmp_path / "images"):
        (place / "below").mkdir()
        (found,) = place.glob("a.*")
        found.rename(place / "below" / found.name)
    path = (folder / "below" / "a.xml").rename(folder / "below" / "a.XML")
    path.write_bytes(path.read_text().encode(encoding))
    assert len(admitted(flags)) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_in_another_form_of_unicode(made: Any, kind: str, tmp_path: Path) -> None:
    """As macOS writes names of files."""
    flags = made(kind)
    composed, apart = "\u00e4", "a\u0308"
    place = Path(flags[1].partition("=")[2])
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / f"{apart}.png")
    if place.is_file():
        place.write_text(place.read_text().replace("a.png", f"{composed}.png"), encoding="utf-8")
    for path in place.glob("a.*"):
        renamed = path.rename(path.with_name(f"{composed}{path.suffix}"))
        if kind == "voc":
            renamed.write_text(renamed.read_text().replace("a.png", f"{composed}.png"), encoding="utf-8")
    assert len(admitted(flags)) == 3


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_before_coco(made: Any, encoding: str) -> None:
    assert len(admitted(changed(made("coco"), lambda content: None, encoding))) == 3


def test_sizes_may_be_text_or_missing_and_paths_may_be_of_windows(made: Any, tmp_path: Path) -> None:
    flags = made("coco")
    (tmp_path / "images" / "below").mkdir()
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / "below" / "a.png")

    def change(content: dict[str, Any]) -> None:
        content["images"][0] |= {"file_name": "below\\a.png", "width": "64", "height": 48.0}
        content["images"][1] |= {"width": None, "height": None}

    assert len(admitted(changed(flags, change))) == 3


@pytest.mark.parametrize("image_id", ["d.png", 7, None, 1.5, True, [], ""])
def test_an_annotation_that_names_no_image_refuses_the_file(made: Any, image_id: Any) -> None:
    """Its image would otherwise count as one without the finding."""
    flags = changed(made("coco"), lambda content: content["annotations"][1].update(image_id=image_id))
    with pytest.raises(DataError, match="boxes.json, annotation 1: image_id: unknown id"):
        read(flags)
    with pytest.raises(DataError, match="annotation 1: 'image_id' is missing"):
        read(changed(flags, lambda content: content["annotations"][1].pop("image_id")))


@pytest.mark.parametrize("listed", ["images", "categories", "annotations"])
def test_an_id_that_occurs_twice_refuses_the_file(made: Any, listed: str) -> None:
    def change(content: dict[str, Any]) -> None:
        number_ids(content, int, int, int)
        content[listed][1]["id"] = str(content[listed][0]["id"])

    with pytest.raises(DataError, match="1: got id .* that occurs once"):
        read(changed(made("coco"), change))


def corners(content: dict[str, Any]) -> None:
    for annotation in content["annotations"]:
        left, top, width, height = annotation["bbox"]
        annotation |= {"bbox": [left, top, left + width, top + height], "area": width * height}


def test_corners_in_coco_are_refused(made: Any) -> None:
    """One exceeds its image as left, top, width, height; without it, only the areas tell."""
    with pytest.raises(DataError, match="seem to be corners"):
        read(changed(made("coco"), corners))


def test_one_box_too_large_does_not_make_others_corners(made: Any) -> None:
    """Of corners, each would lie right of and below the first."""
    flags = changed(made("coco"), lambda content: content["annotations"][2].update(bbox=[4, 4, 62, 30]))
    (error,) = malformed(flags)
    assert "image 1: mass: got box" in error


def test_areas_tell_corners_too(made: Any) -> None:
    def change(content: dict[str, Any]) -> None:
        del content["annotations"][1]
        content["annotations"][1]["bbox"] = [3, 3, 9, 9]
        corners(content)

    with pytest.raises(DataError, match="seem to be corners"):
        read(changed(made("coco"), change))


@pytest.mark.parametrize("kind", ["coco", "voc"])
@pytest.mark.parametrize("unit, whole", [("normalized", 1), ("1000", 1000)])
def test_a_declared_unit(made: Any, kind: str, unit: Any, whole: int) -> None:
    expected = {name: one.boxes for name, one in admitted(made("yolo")).items()}
    flags = made(kind)
    if kind == "coco":

        def change(content: dict[str, Any]) -> None:
            for annotation in content["annotations"]:
                left, top, width, height = annotation["bbox"]
                annotation["bbox"] = [left / 64 * whole, top / 48 * whole, width / 64 * whole, height / 48 * whole]

        changed(flags, change)
    else:

        def share(found: re.Match[str]) -> str:
            side = 64 if found[1] == "x" else 48
            return f"<{found[1]}{found[2]}>{(int(found[3]) - (found[2] == 'min')) / side * whole}<"

        for path in Path(flags[1].partition("=")[2]).glob("*.xml"):
            path.write_text(re.sub(r"<([xy])(min|max)>(\d+)<", share, path.read_text()))
    found = {one.image.name: admit(one, unit).boxes for one in read(flags, unit) if isinstance(one, Annotated)}
    assert found == expected
    if whole == 1:
        assert any("--boxes" in error for error in malformed(flags))


def test_every_malformed_record_is_named(made: Any) -> None:
    flags = made("coco")
    path = Path(flags[1].partition("=")[2])
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["bbox"] = []
    path.write_text(json.dumps(content))
    assert [error.split(":")[0] for error in sorted(malformed(flags))] == [f"{path}, annotation {n}" for n in range(3)]


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "cannot be read as JSON"),
        ("[]", "no list 'images'"),
        ('{"images": [], "annotations": [], "categories": {}}', "no list 'categories'"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": ""}]}', "category 0: name"),
        ('{"images": [{"id": 1}, {"id": 1}], "annotations": [], "categories": []}', "image 1: got id 1, .* occurs once"),
        ('{"images": [1], "annotations": [], "categories": []}', "image 0: 'id' is missing"),
    ],
)
def test_a_file_that_is_no_coco(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text(content)
    with pytest.raises(DataError, match=f"boxes.json.*{words}"):
        list(coco.read(tmp_path / "boxes.json", tmp_path))


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("<xmin>3</xmin>", "", "object 0: bndbox/xmin is missing"),
        ("<xmin>3</xmin>", "<xmin>three</xmin>", "object 0: bndbox/xmin: got 'three'"),
        ("<xmin>3</xmin>", "<xmin>1e999</xmin>", "object 0: bndbox/xmin"),
        ("<xmin>3</xmin>", "<xmin>50</xmin>", "object 0: .* empty"),
        ("<name>mass</name>", "", "object 1: name is missing"),
        ("<filename>a.png</filename>", "", "filename is missing"),
        ("a.png", "d.png", "d.png"),
        ("<width>64</width>", "<width>65</width>", "65, 48"),
        ("</annotation>", "", "cannot be read as XML"),
    ],
)
def test_a_malformed_record_of_voc(made: Any, old: str, new: str, words: str) -> None:
    flags = made("voc")
    path = Path(flags[1].partition("=")[2]) / "a.xml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    (error,) = malformed(flags)
    assert re.search(f"a.xml.*{words}", error)


@pytest.mark.parametrize(
    "lines, words",
    [
        ("0 0.5 0.5 0.1", "a.txt:1: .* centre"),
        ("0 0.5 0.5 0.1 0.1\n7 0.5 0.5 0.1 0.1", "a.txt:2: .* known class"),
        ("0 0.5 x 0.1 0.1", "a.txt:1: "),
        ("0 0.5 0.5 0 0.1", "a.txt:1: .* empty"),
        ("0 0.9 0.5 0.4 0.1", "a.txt: mass: .* within the image"),
    ],
)
def test_a_malformed_record_of_yolo(made: Any, lines: str, words: str) -> None:
    flags = made("yolo")
    (Path(flags[1].partition("=")[2]) / "a.txt").write_text(lines)
    (error,) = malformed(flags)
    assert re.search(words, error)


def test_labels_and_masks_without_their_images(made: Any, tmp_path: Path) -> None:
    yolo_flags, mask_flags = made("yolo"), made("masks")
    (tmp_path / "images" / "a.png").unlink()
    names = [str(tmp_path / "yolo" / "a.txt"), str(tmp_path / "images" / "c.png")]  # no label of its own, or of another name?
    assert [error.partition(":")[0] for error in malformed(yolo_flags)] == names
    assert [error.partition(":")[0] for error in malformed(mask_flags)] == [str(tmp_path / "masks" / "a.png")]
    (tmp_path / "masks" / "b.png").unlink()
    assert len(malformed(mask_flags)) == 2
    Image.new("L", (64, 48)).save(tmp_path / "images" / "b.jpg")
    for flags in (yolo_flags, mask_flags):
        with pytest.raises(DataError, match="b.png"):
            read(flags)


@pytest.mark.parametrize(
    "mask, words",
    [
        (Image.new("L", (64, 48), 9), "got value 9, expected 0 or a named class"),
        (Image.new("RGB", (64, 48), (1, 0, 0)), "got a colour image"),
        (Image.new("L", (48, 64)), "48, 64"),
        (b"nothing", "cannot be read as PNG"),
    ],
)
def test_a_malformed_mask(made: Any, mask: Any, words: str) -> None:
    flags = made("masks")
    path = Path(flags[1].partition("=")[2]) / "a.png"
    path.write_bytes(mask) if isinstance(mask, bytes) else mask.save(path)
    (error,) = malformed(flags)
    assert re.search(f"a.png.*{words}", error)


def test_names_of_classes(tmp_path: Path) -> None:
    def names(file: str, content: str) -> dict[int, str]:
        (tmp_path / file).write_text(content)
        return class_names(tmp_path / file)

    assert names("a.txt", "mass\nnodule\n\n") == names("a.yaml", "nc: 2\nnames: [mass, nodule]\n") == {0: "mass", 1: "nodule"}
    assert names("b.yaml", "names: {255: lesion}") == {255: "lesion"}
    for file, content in (("a.yaml", "names: mass"), ("a.yaml", "{"), ("a.yaml", "names: {a: b}"), ("a.txt", "mass\n\nx")):
        with pytest.raises(DataError, match=file):
            names(file, content)
    with pytest.raises(DataError, match="nowhere"):
        class_names(tmp_path / "nowhere.txt")


def test_folders_that_are_not_there(made: Any, tmp_path: Path) -> None:
    for kind in ("voc", "yolo", "masks"):
        flags = made(kind)
        with pytest.raises(DataError, match="nowhere"):
            read([flags[0], f"--annotations={tmp_path}/nowhere", *flags[2:]])

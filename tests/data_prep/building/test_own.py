"""Questions of one's own: patients stay whole, nothing says who they are, and what is shared is reported."""

import base64
import csv
import io
import json
import struct
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageDraw, ImageFont, PngImagePlugin
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from data_prep import built
from data_prep.building.own import Own, shares_from
from data_prep.reading.identifiers import identifiers, patient_of
from tests.kit.datasets import card, read_back
from tests.kit.files import write_files
from tests.kit.images import noise, picture
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.processing.files import open_image

TAGS = ("PatientID", "AccessionNumber", "StudyID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
NAMES = ("PatientName", "ReferringPhysicianName", "OperatorsName")
DATES = ("PatientBirthDate", "StudyDate", "SeriesDate", "ContentDate")


def table(file: Path, *rows: dict[str, object]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, columns)
        writer.writeheader()
        writer.writerows(rows)
    return file


def of_file(source: Path, **arguments: Any) -> Own:
    return Own(source, source.parent / "work", **arguments)


def tagged(file: Path, **values: str) -> Path:
    """Writes pydicom's CT_small.dcm with other values in its header."""
    header = dcmread(get_testdata_file("CT_small.dcm"))
    for keyword, value in values.items():
        setattr(header, keyword, value)
    header.save_as(file)
    return file


@pytest.fixture
def written(tmp_path):
    write_files(tmp_path, {f"{n}.png": picture(n) for n in range(7)})
    return table(tmp_path / "q.csv", *({"question": f"q{n}?", "image": f"{n % 7}.png", "patient": n % 50} for n in range(200)))


# --- who the patients are -----------------------------------------------------------------------

WORDS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=6, max_size=12).map("zq{}xj".format)  # in no other word
UIDS = st.lists(st.integers(1, 99999), min_size=6, max_size=10).map(lambda parts: "1.2." + ".".join(map(str, parts)))


@pytest.mark.slow
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_identifier_is_written(tmp_path_factory, capsys, monkeypatch, data):
    """The patient and study columns hold identifiers, and the file is named by one, as exports often are."""
    values = {tag: data.draw(UIDS) if tag.endswith("UID") else data.draw(WORDS)[:16] for tag in TAGS}
    values |= {tag: f"{data.draw(WORDS)}^{data.draw(WORDS)}" for tag in NAMES}
    values |= {tag: data.draw(st.dates(date(1900, 1, 1), date(2099, 1, 1))).strftime("%Y%m%d") for tag in DATES}
    tmp_path = tmp_path_factory.mktemp("own")
    image = tagged(tmp_path / f"{values['SOPInstanceUID']}.dcm", **values)
    row = {"question": "Is it large?", "image": image.name, "patient": values["PatientID"], "study": values["StudyInstanceUID"]}
    source = table(tmp_path / "q.csv", row | {"site": "north", "split": "train"})

    from data_prep import build

    monkeypatch.setattr("sys.argv", ["build", "own", f"--source={source}", f"--data_dir={tmp_path / 'built'}"])
    build.main()
    place = tmp_path / "built" / "own" / "1.0.0"
    (example,) = built.source("train", set="own", data_dir=str(tmp_path / "built")).records
    texts = [path.read_bytes() for path in place.iterdir()] + [capsys.readouterr().out.encode()]
    texts += [part for part in example.values() if isinstance(part, bytes)] + example["images"]
    written = b"\n".join(texts).lower()
    for value in values.values():
        for part in {value, *value.split("^")}:
            assert part.lower().encode() not in written
    assert [chunk for chunk, _ in chunks(example["images"][0])] == [b"IHDR", b"IDAT", b"IEND"]
    (sample,) = read_back(tmp_path / "built", "own", "train")
    assert sample.metadata == {"site": "north", "patient": "patient-1", "study": "study-1"}
    assert sample.images[0].tobytes() == open_image(image).tobytes()


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and content of each part of a PNG file."""
    found, at = [], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        found.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


@pytest.mark.parametrize(
    ("row", "keyword"),
    [
        ({"id": "a-1.2.3.4.5"}, "id repeats the StudyInstanceUID"),
        ({"question": "Does JANE DOE have a nodule?"}, "question repeats the PatientName"),
        ({"question": "Doe^Jane?"}, "question repeats the PatientName"),
        ({"answer": "As on 20310405."}, "answer repeats the StudyDate"),
        ({"note": "see number_MRN-77"}, "note repeats the PatientID"),
        ({"options": "no|QX99ABCD"}, "options repeats the PatientID"),
        ({"question": "Is 77 large? On 203104051?"}, ""),
    ],
)
def test_a_text_that_repeats_an_identifier_is_refused(tmp_path, row, keyword):
    values = {"PatientName": "Doe^Jane", "PatientID": "MRN-77", "StudyDate": "20310405", "StudyInstanceUID": "1.2.3.4.5"}
    nested = Dataset()
    nested.PatientID = "QX99ABCD"
    tagged(tmp_path / "a.dcm", OtherPatientIDsSequence=[nested], **values)
    source = table(tmp_path / "q.csv", {"question": "Is it large?", "image": "a.dcm"} | row)
    if not keyword:
        of_file(source).read()
        return
    with pytest.raises(DataError, match=f"q.csv:2: {keyword}") as caught:
        of_file(source).read()
    assert not any(value.lower() in str(caught.value).lower() for value in values.values())


def test_only_pixels_are_written(tmp_path):
    """Neither EXIF, comments, text nor colour profiles of a file come along."""
    noted = PngImagePlugin.PngInfo()
    noted.add_text("Patient", "Jane Roe")
    exif = Image.Exif()
    exif[0x013B] = "Jane Roe"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (30, 20), (1, 2, 3)).save(tmp_path / "a.png", pnginfo=noted, exif=exif, icc_profile=profile, dpi=(72, 72))
    Image.new("L", (30, 20), 9).save(tmp_path / "b.jpg", exif=exif, comment="Jane Roe", icc_profile=profile)
    source = table(tmp_path / "q.csv", *({"question": "q?", "image": name, "split": "train"} for name in ("a.png", "b.jpg")))
    for record in of_file(source).read()["train"]:
        content = record.images[0].read()
        assert [kind for kind, _ in chunks(content)] == [b"IHDR", b"IDAT", b"IEND"] and b"Jane" not in content


@pytest.mark.parametrize("text", ["Is the heart enlarged? None.", "anonymous", "An unknown mass"])
def test_a_placeholder_is_no_identifier_in_a_text(tmp_path, text):
    tagged(tmp_path / "a.dcm", PatientID="UNKNOWN", PatientName="Anonymous^None")
    assert of_file(table(tmp_path / "q.csv", {"question": text, "image": "a.dcm"})).read()


# --- splits -------------------------------------------------------------------------------------


def split_by_patient(source: Path, **arguments) -> dict[str, str]:
    """The split of each patient; fails where one is in two."""
    found: dict[str, str] = {}
    for split, records in of_file(source, **arguments).read().items():
        for record in records:
            assert found.setdefault(record.patient, split) == split
    return found


def test_a_patient_is_in_one_split_whatever_else_there_is(written, tmp_path):
    splits = split_by_patient(written)
    assert len(splits) == 50 and set(splits.values()) == {"train", "validation", "test"}
    assert split_by_patient(written) == splits != split_by_patient(written, seed=1)
    more = table(tmp_path / "more.csv", *({"question": f"{n}?", "patient": n} for n in reversed(range(5000))))
    many = split_by_patient(more)
    assert {patient: many[patient] for patient in splits} == splits
    for split, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):  # within five standard deviations
        assert list(many.values()).count(split) / 5000 == pytest.approx(share, abs=5 * (share * (1 - share) / 5000) ** 0.5)
    halves = split_by_patient(more, shares={"one": 0.5, "two": 0.5})
    assert list(halves.values()).count("one") / 5000 == pytest.approx(0.5, abs=0.036)


def test_patients_of_dicom_files_are_known(tmp_path):
    for n in range(8):
        tagged(tmp_path / f"{n}.dcm", PatientID=f"patient{n // 4}", SOPInstanceUID=f"1.2.3.{n}")
    source = table(tmp_path / "q.csv", *({"question": f"{n}?", "image": f"{n}.dcm"} for n in range(8)))
    for seed in range(5):
        assert set(split_by_patient(source, seed=seed)) == {"patient0", "patient1"}


def test_a_patient_whose_name_is_the_id_is_known(tmp_path):
    """As in anonymised exports; and where another element is damaged."""
    file = tmp_path / "a.dcm"
    tagged(file, PatientID="ANON-0001", PatientName="ANON-0001")
    assert patient_of(file) == "ANON-0001" and identifiers(file)["ANON-0001"]
    content = file.read_bytes()
    rows = content.index(b"\x28\x00\x10\x00US\x02\x00")  # Rows: two bytes become three
    file.write_bytes(content[: rows + 6] + b"\x03\x00" + content[rows + 8 : rows + 10] + b"\x00" + content[rows + 10 :])
    assert patient_of(file) == "ANON-0001" and "ANON-0001" in identifiers(file)


@pytest.mark.parametrize("form", ["{path}#frame=0", "{text}", "data:application/dicom;base64,{text}"])
def test_identifiers_are_known_of_frames_and_of_files_as_text(tmp_path, form):
    file = tagged(tmp_path / "a.dcm", PatientID="mrn-7788123", PatientName="Zqabcxj^Zqdefxj")
    image = form.format(path="a.dcm", text=base64.b64encode(file.read_bytes()).decode())
    (records,) = of_file(table(tmp_path / "q.csv", {"question": "Which?", "image": image})).read().values()
    assert records[0].patient == "mrn-7788123"
    with pytest.raises(DataError, match="question repeats the PatientName"):
        of_file(table(tmp_path / "r.csv", {"question": "Is Zqabcxj^Zqdefxj well?", "image": image})).read()


def test_frames_of_one_file_are_in_one_split(tmp_path):
    pages = [noise(20, 10, "L", seed) for seed in range(40)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    rows = [{"question": f"{n}?", "image": f"pages.tif#frame={n}"} for n in range(40)]
    (records,) = of_file(table(tmp_path / "q.csv", *rows)).read().values()
    assert [open_image(record.images[0].read()).tobytes() for record in records] == [page.tobytes() for page in pages]


def test_without_patients_an_image_is_in_one_split(tmp_path):
    write_files(tmp_path, {f"{n}.png": picture(n) for n in range(20)})
    rows = [{"question": f"{n}?", "image": f"{n % 20}.png"} for n in range(100)]
    places: dict[str, set[str]] = {}
    for split, records in of_file(table(tmp_path / "q.csv", *rows)).read().items():
        for record in records:
            places.setdefault(rows[int(record.sample.question[:-1])]["image"], set()).add(split)
    assert len(places) == 20 and all(len(splits) == 1 for splits in places.values())


def test_a_split_of_the_file_is_taken_and_its_leaks_are_reported(build_set, tmp_path, capsys):
    rows = [
        {"id": "a", "question": "q?", "image": "1.png", "patient": "x", "split": "train", "study": 5, "site": "north"},
        {"id": "b", "question": "q?", "image": "2.png", "patient": "y", "split": "train", "study": 6, "site": "south"},
        {"id": "c", "question": "q?", "image": "3.png", "patient": "y", "split": "held_out", "study": 5, "site": "south"},
        {"id": "d", "question": "q?", "image": "4.bmp", "patient": "z", "split": "held_out", "study": 7, "site": "east"},
    ]
    write_files(tmp_path / "images", {f"{n}.png": picture(n) for n in (1, 2, 3)} | {"4.bmp": picture(1, "BMP")})
    data_dir = build_set("own", table(tmp_path / "q.csv", *rows), f"--images={tmp_path / 'images'}")
    made = card(data_dir, "own")
    assert made["leaks"] == [{"splits": ["train", "held_out"], "images": 1, "patients": 1}]
    assert made["splits"]["held_out"] == {"questions": 2, "images": 2, "patients": 2}
    out = capsys.readouterr().out
    assert "1 of the 2 images of train are also in held_out. 1 of the 2 patients of train are also in held_out." in out
    metadata = [sample.metadata for split in ("train", "held_out") for sample in read_back(data_dir, "own", split)]
    assert [(m["patient"], m["study"], m["site"]) for m in metadata] == [
        ("patient-1", "study-1", "north"),
        ("patient-2", "study-2", "south"),
        ("patient-2", "study-1", "south"),
        ("patient-3", "study-3", "east"),
    ]
    assert list(made["files"]) == ["q.csv"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"question": "a?", "split": "train"}, {"question": "b?", "split": ""}], "q.csv:3: split is missing, but other"),
        ([{"question": "a?", "split": "Train"}], "q.csv:2: got split 'Train'"),
        ([{"question": ""}], "holds no questions"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, rows, words):
    with pytest.raises(DataError, match=words):
        of_file(table(tmp_path / "q.csv", *rows)).read()


def test_a_missing_image_is_named(build_set, tmp_path, capsys):
    with pytest.raises(SystemExit):
        build_set("own", table(tmp_path / "q.csv", {"id": "a", "question": "q?", "image": "none.png"}))
    error = capsys.readouterr().err
    assert "q.csv:2: image: " in error and "none.png: file does not exist" in error


@pytest.mark.parametrize("text", ["", "train", "train:1:2", "train:x", "train:0.5,test:0.6", "train:1.5,test:-0.5", "Train:1"])
def test_shares_are_checked(text):
    with pytest.raises(ConfigError, match=f"--shares={text}: "):
        shares_from(text)
    assert shares_from("train:0.9, test:0.1") == {"train": 0.9, "test": 0.1}


def test_text_in_an_image_is_said_in_the_card(build_set, tmp_path):
    write_files(tmp_path, {f"{n}.png": picture(n, size=(300, 200)) for n in range(3)})
    named = open_image(tmp_path / "1.png")
    ImageDraw.Draw(named).text((5, 5), "ROE JANE 1971-02-03", fill=(255, 255, 255), font=ImageFont.load_default(14))
    content = io.BytesIO()
    named.save(content, "PNG")
    write_files(tmp_path, {"1.png": content.getvalue()})
    rows = [{"id": f"q{n}", "question": "q?", "image": f"{n}.png", "split": "train"} for n in range(3)]
    data_dir = build_set("own", table(tmp_path / "q.csv", *rows))
    (note,) = card(data_dir, "own")["notes"]
    assert note.startswith("1 questions have an image") and note.endswith("They are q1.")


PLACEHOLDERS = "|NONE|none |Anonymous|anonymous^patient|0|0000|UNKNOWN|N/A|Not available|nan|-|XXX|de-identified|Removed|no_id"


@pytest.mark.parametrize("patient", PLACEHOLDERS.split("|"))
def test_a_placeholder_is_no_patient(tmp_path, patient):
    assert patient_of(tagged(tmp_path / "a.dcm", PatientID=patient)) == ""


def test_images_with_a_placeholder_are_patients_of_their_own(tmp_path):
    for number in range(16):
        tagged(tmp_path / f"{number}.dcm", PatientID="NONE")
    column = {"question": "Which?", "image": "0.dcm", "patient": "Unknown"}  # in the column, 0 may be a number
    own = of_file(table(tmp_path / "q.csv", column, *({"question": "Which?", "image": f"{n}.dcm"} for n in range(1, 16))))
    splits = own.read()
    assert {record.patient for records in splits.values() for record in records} == {""}
    assert len(splits) > 1 and not own.warnings()


@pytest.mark.parametrize("patient", ["1", "10", "MRN-77", "ANON-0001", "Anna", "patient 3", "xavier", "000123"])
def test_pseudonyms_are_patients(tmp_path, patient):
    assert patient_of(tagged(tmp_path / "a.dcm", PatientID=patient)) == patient


def test_one_patient_in_all_files_is_said(tmp_path):
    for number in range(4):
        tagged(tmp_path / f"{number}.dcm", PatientID="MRN-77" if number < 3 else "NONE")
    rows = [{"question": "Which?", "image": f"{number}.dcm"} for number in range(4)]
    own = of_file(table(tmp_path / "q.csv", *rows))
    own.read()
    said = own.warnings()[0]
    assert said.startswith("All 3 images with a patient have the same one") and "MRN-77" not in said
    own = of_file(table(tmp_path / "q.csv", *rows, {"question": "Where?", "image": "3.dcm", "patient": "b"}))
    own.read()
    assert not any("the same one" in said for said in own.warnings())


# --- objects with masks -----------------------------------------------------------------------------


def with_object(folder: Path, shape: tuple[int, int], caption: str = "cyst") -> Path:
    """A question about `a.png` whose object has a mask of another shape, or of the image's."""
    mask = {"size": [*shape], "counts": [1, 2, shape[0] * shape[1] - 3]}
    row = {"question": "Which?", "image": "a.png", "objects": [{"name": "obj1", "mask": mask, "caption": caption}]}
    (folder / "q.jsonl").write_text(json.dumps(row) + "\n")
    return folder / "q.jsonl"


def test_masks_must_have_the_size_of_their_image(tmp_path):
    write_files(tmp_path, {"a.png": picture(1, size=(40, 30))})
    (record,) = next(iter(of_file(with_object(tmp_path, (30, 40)), shares={"train": 1.0}).read().values()))
    assert record.sample.objects[0].mask.area == 2
    with pytest.raises(DataError, match=r"q.jsonl:1: objects: got a mask of shape \(40, 30\), expected .* \(30, 40\)"):
        of_file(with_object(tmp_path, (40, 30))).read()


def test_a_caption_repeats_no_identifier(tmp_path):
    image = tagged(tmp_path / "a.dcm", PatientID="ID-20771")
    file = with_object(tmp_path, (128, 128), "mass of ID-20771")
    file.write_text(file.read_text().replace("a.png", image.name))
    with pytest.raises(DataError, match="objects repeats the PatientID"):
        of_file(file).read()

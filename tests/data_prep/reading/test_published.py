"""A folder of published files: images in folders and archives, checksums, and repositories of the hub."""

import hashlib
import unicodedata
import zipfile

import pytest

from data_prep.reading import published
from data_prep.reading.published import Published, locate
from tests.kit.files import write_files
from vitar_jax.errors import DataError


def test_images_are_found_in_folders_and_archives(tmp_path):
    write_files(tmp_path, {"imgs/a/1.png": b"1", "t.json": "[]"})
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("outer/imgs/a/2.png", b"2")
    files = Published(tmp_path)
    images = files.images("imgs", "more.zip", "absent.zip")
    assert images.find("a/1.png", "").read() == b"1"
    assert images.find("a/2.png", "").read() == images.find("imgs/a/2.png", "").read() == b"2"
    for name in ("a/3.png", "../t.json", str(tmp_path / "t.json"), "imgs", ""):
        with pytest.raises(DataError, match="here: no such image"):
            images.find(name, "here")
    files.file("none.json", "t.json")
    assert files.checksums() == {
        "more.zip": hashlib.sha256((tmp_path / "more.zip").read_bytes()).hexdigest(),
        "t.json": hashlib.sha256(b"[]").hexdigest(),
    }


def test_an_end_of_several_paths_is_no_image(tmp_path):
    """Equal files are one image. A whole path is unique."""
    for archive, members in (("a.zip", {"x/1.png": b"1", "y/1.png": b"2", "x/2.png": b"2"}), ("b.zip", {"y/2.png": b"2"})):
        with zipfile.ZipFile(tmp_path / archive, "w") as opened:
            for name, content in members.items():
                opened.writestr(name, content)
    images = Published(tmp_path).images("a.zip", "b.zip")
    assert images.find("x/1.png", "").read() == b"1" and images.find("y/1.png", "").read() == b"2"
    assert images.find("2.png", "").read() == b"2"
    with pytest.raises(DataError, match="here: got image 1.png, expected a path that is unique .* x/1.png and y/1.png"):
        images.find("1.png", "here")


def test_names_are_compared_in_one_form(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "ä.png") for form in ("NFC", "NFD"))
    write_files(tmp_path, {f"imgs/{decomposed}": b"1"})
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr(f"b/{decomposed}", b"2")
    images = Published(tmp_path).images("imgs", "more.zip")
    assert images.find(composed, "").read() == b"1" and images.find(f"b/{composed}", "").read() == b"2"


def test_a_missing_file_is_named_with_what_may_hold_it(tmp_path):
    files = Published(write_files(tmp_path, {"all.zip": b""}))
    with pytest.raises(DataError, match="no a.json or b.json found; all.zip may need to be unpacked"):
        files.file("a.json", "b.json")
    with pytest.raises(DataError, match=r"no data/\*.parquet found"):
        files.files("data/*.parquet")


def test_a_source_is_a_folder_or_a_repository(tmp_path, monkeypatch):
    assert locate(str(tmp_path)) == (tmp_path, "a local folder")
    asked = []

    def download(name, repo_type, allow_patterns):
        asked.append((name, repo_type, allow_patterns))
        if name == "owner/absent":
            raise OSError("offline")
        return str(tmp_path / "snapshots" / "0ff1ce")

    monkeypatch.setattr(published, "snapshot_download", download)
    folder, origin = locate("owner/set", ("a/*",))
    assert folder.name == "0ff1ce" and origin == "owner/set on the Hugging Face hub, revision 0ff1ce"
    locate("owner/set")
    assert asked == [("owner/set", "dataset", ["a/*"]), ("owner/set", "dataset", None)]
    with pytest.raises(DataError, match="owner/absent: .*(offline)"):
        locate("owner/absent")
    with pytest.raises(DataError, match="no/such/folder: no such folder"):
        locate("no/such/folder")

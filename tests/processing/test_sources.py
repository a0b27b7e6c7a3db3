"""What a text names: a file, a frame of it, or an image that the text itself holds."""

import base64
from pathlib import Path

import numpy as np
import pytest

from tests.kit.images import dicom, noise
from vitar_jax.errors import ImageError
from vitar_jax.processing.files import open_image
from vitar_jax.processing.sources import image_name, inline_content, is_inline, open_source, split_frame

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "PPM")


def stored(tmp_path: Path, kind: str) -> bytes:
    if kind == "DICOM":
        return dicom(np.asarray(noise(40, 30, "L")))
    noise(40, 30, "L" if kind == "PPM" else "RGB").save(tmp_path / "image", kind)
    return (tmp_path / "image").read_bytes()


@pytest.mark.parametrize("kind", [*FORMATS, "DICOM"])
def test_base64_text_and_data_uris_are_images(tmp_path: Path, kind: str) -> None:
    content = stored(tmp_path, kind)
    text = base64.b64encode(content).decode()
    for written in (
        text,
        text.rstrip("="),
        base64.encodebytes(content).decode(),
        base64.urlsafe_b64encode(content).decode(),
        f"data:image/{kind.lower()};base64,{text}",
        f"DATA:;charset=utf-8;BASE64,{text}",
        f"data:image/png;base64,{text.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}",
    ):
        assert is_inline(written) and inline_content(written) == content
        assert open_image(written).tobytes() == open_image(content).tobytes()
        assert len(image_name(written)) < 100 and image_name(written) == image_name(written)


@pytest.mark.parametrize(
    "text",
    ["a.png", "/9j/" + "a" * 20, "/9j/" + "f/" * 90 + "a.png", "images/" * 30 + "source", "a" * 200, "ä" * 300, "a#frame=3"],
)
def test_other_texts_are_paths(text: str) -> None:
    assert not is_inline(text) and inline_content(text) is None and image_name(text) == text
    with pytest.raises(ImageError, match="does not exist|cannot be read"):
        open_image(text)


def test_no_error_shows_a_picture(tmp_path: Path) -> None:
    content = stored(tmp_path, "PNG")
    text = base64.b64encode(content).decode()
    unknown = base64.b64encode(b"unknown" + content).decode()
    for damaged, words in (
        (text[:100], "base64 text with SHA-256 .*damaged"),
        (text[:-1] + "!", "cannot be read|does not exist"),
        (f"data:image/png;base64,{text[:50]}!", "its base64 text is damaged"),
        ("data:image/png," + content.hex(), "not in base64"),
        (f"data:text/plain;base64,{base64.b64encode(b'no image').decode()}", "not an image"),
        (unknown, "cannot be read|does not exist"),
        (content.hex(), "cannot be read|does not exist"),
    ):
        with pytest.raises(ImageError, match=words) as caught:
            open_image(damaged)
        assert len(str(caught.value)) < 600 and text[20:60] not in str(caught.value)


def test_a_frame_stands_behind_a_path(tmp_path: Path) -> None:
    assert split_frame("a/b.dcm#frame=12") == ("a/b.dcm", 12)
    for path in ("a.dcm", "a#frame=", "a#frame=-1", "a#frame=1.dcm", "a#12"):
        assert split_frame(path) == (path, None)
    (tmp_path / "a.txt").write_bytes(b"content")
    for path in (tmp_path / "a.txt", f"{tmp_path / 'a.txt'}#frame=3"):
        with open_source(path) as file:
            assert file.read() == b"content"
    frames = np.stack([np.asarray(noise(20, 10, "L", seed)) for seed in range(3)])
    (tmp_path / "cine.dcm").write_bytes(dicom(frames)[132:])  # known by its name alone
    assert np.array_equal(open_image(tmp_path / "cine.dcm#frame=2"), frames[2])
    assert np.array_equal(open_image((tmp_path / "cine.dcm").read_bytes(), name="scan.dcm#frame=1"), frames[1])
    with pytest.raises(ImageError, match="cine.dcm#frame=3: it has no frame 3, only 0 to 2"):
        open_image(tmp_path / "cine.dcm#frame=3")

"""The phantoms' pictures: all kinds of the same mass, told by texture alone, which a small view does not hold."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep.phantom import pictures as phantom_pictures
from data_prep.phantom.pictures import (
    FRAME_PX,
    KINDS,
    MARGIN,
    SIZE,
    Lesion,
    add_lesion,
    background,
    draw_lesion,
    load_backgrounds,
)


def test_a_background_is_grey_flat_and_framed():
    pixels = background(np.random.default_rng(0)) / 255
    inside = pixels[FRAME_PX:-FRAME_PX, FRAME_PX:-FRAME_PX]
    assert pixels.shape == (SIZE, SIZE)
    assert pixels.mean() == pytest.approx(0.25, abs=0.04)
    assert pixels.std() == pytest.approx(0.08, abs=0.02)
    assert inside.std() < 0.06
    assert pixels[:FRAME_PX].max() < 0.12 <= inside.min()


@given(st.integers(0, 2**32), st.sampled_from(KINDS))
@settings(max_examples=40)
def test_all_kinds_have_the_same_mass_and_never_saturate(seed, kind):
    lesion = draw_lesion(np.random.default_rng(seed))
    assert MARGIN <= min(lesion.x, lesion.y) and max(lesion.x, lesion.y) <= SIZE - MARGIN
    brightest = round(0.36 * 255)  # no background is brighter
    masses = []
    for each in ("flat", kind):
        picture = np.full((SIZE, SIZE), brightest, np.uint8)
        add_lesion(picture, replace(lesion, kind=each))
        masses.append(picture.sum(dtype=np.int64) - brightest * SIZE**2)
    expected = 255 * lesion.amplitude * 2 * np.pi * lesion.sigma**2
    assert masses == pytest.approx([expected, expected], rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_textures_are_what_they_are_called(kind):
    picture = np.zeros((SIZE, SIZE), np.uint8)
    add_lesion(picture, Lesion(kind, 200.0, 200.0, 0.23, 7.0, 5.3, (0.0, 0.0)))
    inside = picture[190:211, 190:211].astype(float)
    along_y, along_x = np.abs(np.diff(inside, axis=0)).mean(), np.abs(np.diff(inside, axis=1)).mean()
    if kind == "rows":  # lines that run along x
        assert along_y > 3 * along_x
    elif kind == "columns":
        assert along_x > 3 * along_y
    else:
        assert along_x == pytest.approx(along_y, rel=0.05)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_first_view_does_not_hold_the_texture(kind):
    """Noiseless, so that nothing hides a difference: two grey levels of it are left at most."""
    flat = Lesion("flat", 203.7, 220.1, 0.2, 6.5, 5.3, (1.0, 2.0))
    views, differences = [], []
    for lesion in (flat, replace(flat, kind=kind)):
        picture = np.full((SIZE, SIZE), 100, np.uint8)
        add_lesion(picture, lesion)
        views.append(np.asarray(Image.fromarray(picture).resize((84, 84), Image.Resampling.BICUBIC)).astype(int))
        differences.append(picture.astype(int))
    assert np.abs(differences[0] - differences[1]).max() > 40
    assert np.abs(views[0] - views[1]).max() <= 2
    assert views[0].max() - 100 > 30


# Backgrounds on disk


@pytest.fixture
def few_backgrounds(monkeypatch):
    monkeypatch.setattr(phantom_pictures, "BACKGROUNDS", {"train": 3, "test": 2})
    monkeypatch.setattr(phantom_pictures, "_banks", {})


def test_backgrounds_are_made_once_and_damage_is_repaired(few_backgrounds, tmp_path, monkeypatch):
    first = load_backgrounds(tmp_path, "test", 0)
    (file,) = tmp_path.iterdir()
    written = file.read_bytes()
    for content in (written, written[:1000], b"", b"not an archive"):
        file.write_bytes(content)
        monkeypatch.setattr(phantom_pictures, "_banks", {})
        assert np.array_equal(load_backgrounds(tmp_path, "test", 0), first)
        assert [each.name for each in tmp_path.iterdir()] == [file.name]
        assert np.load(file)["backgrounds"].shape == first.shape
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0, 0] = 1


def test_splits_and_seeds_share_no_background(few_backgrounds, tmp_path):
    banks = [load_backgrounds(tmp_path, split, seed) for split in ("train", "test") for seed in (0, 1)]
    pictures = {each.tobytes() for bank in banks for each in bank}
    assert len(pictures) == 2 * (3 + 2)

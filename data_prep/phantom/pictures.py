"""Pictures of phantoms: organ-like backgrounds, and lesions whose texture is invisible in a small view.

The lesion is a Gaussian bump of about 20 px, which remains a faint spot when the picture shrinks from 448 to 84 px. All of its
textures have periods from 5.0 to 5.6 px. The antialiasing filter from 448 to 84 px has a (third-order) zero at
448 / 84 = 5.33 px, so flat, striped and checkered lesions become the same spot. The classifier of `data_prep.phantom.probe`
tries to distinguish them there, and must fail.
"""

import os
import tempfile
import threading
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

Split = Literal["train", "test"]

SIZE = 448
FRAME_PX = 14  # width of the dark border, which marks the patches of the first view that touch an edge of the picture
MARGIN = 58.0  # smallest distance of a lesion's centre from the edge
BACKGROUNDS = {"train": 192, "test": 48}
ERASED_PERIOD = (5.0, 5.6)
KINDS = ("flat", "rows", "columns", "checks")

_BACKGROUND_VERSION = 2  # part of the cache's file name; raise it whenever `background` changes
_LESION_RADIUS = 30  # pixels drawn on each side of the centre: 4 sigma of the widest envelope


# --- lesions --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lesion:
    """A bump `amplitude * G(x, y) * (1 + texture)`, where G is Gaussian and the texture is a cosine with mean zero.

    Only `kind` determines the texture. All other fields have the same distribution for every kind, so nothing else
    distinguishes the kinds. The total mass is amplitude * 2 pi sigma^2 for all of them, because G has almost no energy at the
    texture's frequency.

    Attributes:
      x, y: Centre, in pixels of the original picture (pixel 0 spans [0, 1]).
      amplitude: Height of the bump, where the picture's values span [0, 1].
      sigma, period: Standard deviation of G and period of the texture, in pixels of the original picture.
      phase: Phase of the cosine along (y, x), in radians.
    """

    kind: str
    x: float
    y: float
    amplitude: float
    sigma: float
    period: float
    phase: tuple[float, float]


def draw_lesion(rng: np.random.Generator, period: tuple[float, float] = ERASED_PERIOD) -> Lesion:
    """Draws a lesion, uniformly over kinds and over locations at least `MARGIN` from the edge."""
    kind = KINDS[rng.integers(len(KINDS))]
    unit = rng.random(7)
    return Lesion(
        kind=kind,
        x=MARGIN + float(unit[0]) * (SIZE - 2 * MARGIN),
        y=MARGIN + float(unit[1]) * (SIZE - 2 * MARGIN),
        amplitude=0.26 + 0.06 * float(unit[2]),
        sigma=6.0 + 1.5 * float(unit[3]),
        period=period[0] + float(unit[4]) * (period[1] - period[0]),
        phase=(2 * np.pi * float(unit[5]), 2 * np.pi * float(unit[6])),
    )


def add_lesion(picture: np.ndarray, lesion: Lesion) -> None:
    """Adds the lesion to `picture` (SIZE, SIZE) uint8, in place."""
    left, top = int(lesion.x) - _LESION_RADIUS, int(lesion.y) - _LESION_RADIUS
    steps = np.arange(2 * _LESION_RADIUS + 1, dtype=np.float32)
    y, x = steps + (top + 0.5 - lesion.y), steps + (left + 0.5 - lesion.x)
    envelope_y = np.exp(-0.5 * (y / lesion.sigma) ** 2)
    envelope_x = np.exp(-0.5 * (x / lesion.sigma) ** 2)
    bump = np.outer(255 * lesion.amplitude * envelope_y, envelope_x)
    if lesion.kind != "flat":
        # Bump and texture are separable: rows vary along y, columns along x, checks along both.
        wave_y = np.cos(2 * np.pi / lesion.period * y + lesion.phase[0])
        wave_x = np.cos(2 * np.pi / lesion.period * x + lesion.phase[1])
        along_y = envelope_y * wave_y if lesion.kind in ("rows", "checks") else envelope_y
        along_x = envelope_x * wave_x if lesion.kind in ("columns", "checks") else envelope_x
        bump += np.outer(255 * lesion.amplitude * along_y, along_x)
    patch = picture[top : top + len(steps), left : left + len(steps)]
    patch[...] = np.clip(patch + bump + 0.5, 0, 255)


def draw_picture(rng: np.random.Generator, backgrounds: np.ndarray, lesions: Iterable[Lesion]) -> Image.Image:
    """Draws one of `backgrounds` (N, SIZE, SIZE), turned or mirrored, and adds the lesions."""
    chosen, symmetry = int(rng.integers(len(backgrounds))), int(rng.integers(8))
    turned = np.rot90(backgrounds[chosen], symmetry % 4)
    picture = np.array(turned[:, ::-1] if symmetry >= 4 else turned, order="C")
    for lesion in lesions:
        add_lesion(picture, lesion)
    return Image.fromarray(picture)


# --- backgrounds ----------------------------------------------------------------------------------


def background(rng: np.random.Generator) -> np.ndarray:
    """Draws an organ-like background, (SIZE, SIZE) uint8.

    It has low-frequency noise, 3 to 6 soft ellipses and white noise inside a dark frame. Its contrast is deliberately low
    (interior standard deviation about .04), so that the frame and the lesion stand out. It is dark enough that no lesion
    saturates, because clipping would change the mean according to the texture.
    """
    picture = np.full((SIZE, SIZE), 0.27, np.float32)
    for cells, amplitude in ((4, 0.05), (8, 0.03), (16, 0.015)):
        coarse = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
        picture += 0.35 * amplitude * np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    grid = np.arange(SIZE, dtype=np.float32) + 0.5
    for _ in range(rng.integers(3, 7)):
        x, y = rng.uniform(0.15 * SIZE, 0.85 * SIZE, 2)
        radius_x, radius_y = rng.uniform(40, 140, 2)
        angle = rng.uniform(0, np.pi)
        amplitude = rng.uniform(0.015, 0.045) * rng.choice((-1.0, 1.0))
        cos, sin = np.cos(angle), np.sin(angle)
        along = ((grid - x) * cos)[None, :] + ((grid - y) * sin)[:, None]
        across = ((grid - y) * cos)[:, None] - ((grid - x) * sin)[None, :]
        radius = np.hypot(along / radius_x, across / radius_y)
        picture += amplitude / (1 + np.exp(np.clip((radius - 1) / 0.08, -30, 30)))
    picture += 0.03 * rng.standard_normal((SIZE, SIZE), dtype=np.float32)
    np.clip(picture, 0.12, 0.36, out=picture)  # a lesion of amplitude .32 raises the maximum to 1.0
    inside = slice(FRAME_PX, SIZE - FRAME_PX)
    framed = 0.05 + 0.01 * rng.standard_normal((SIZE, SIZE), dtype=np.float32)
    framed[inside, inside] = picture[inside, inside]
    return np.clip(255 * framed + 0.5, 0, 255).astype(np.uint8)


_banks: dict[tuple[str, str, int], np.ndarray] = {}
_banks_lock = threading.Lock()


def load_backgrounds(cache_dir: str | os.PathLike[str], split: Split, seed: int) -> np.ndarray:
    """Returns all backgrounds of a split, (N, SIZE, SIZE) uint8. Generates them once and caches them in `cache_dir`.

    Train and test use separate generators and share no background. Any number of threads and processes may call this at the
    same time: cache files are written atomically, and unreadable ones are generated again.
    """
    key = (os.path.abspath(cache_dir), split, seed)
    with _banks_lock:
        if key not in _banks:
            path = Path(key[0]) / f"phantom_backgrounds_v{_BACKGROUND_VERSION}_seed{seed}_{split}.npz"
            bank = _read_bank(path, BACKGROUNDS[split])
            if bank is None:
                salt = get_args(Split).index(split)
                bank = np.stack([background(np.random.default_rng([seed, salt, n])) for n in range(BACKGROUNDS[split])])
                _write_bank(path, bank)
            bank.setflags(write=False)
            _banks[key] = bank
        return _banks[key]


def _read_bank(path: Path, count: int) -> np.ndarray | None:
    try:
        with np.load(path, allow_pickle=False) as archive:
            bank = archive["backgrounds"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return bank if bank.shape == (count, SIZE, SIZE) and bank.dtype == np.uint8 else None


def _write_bank(path: Path, bank: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, backgrounds=bank)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise

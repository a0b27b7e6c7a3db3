"""Names of image files. Unicode has several spellings of one name; macOS and Linux prefer different ones."""

import os
import posixpath
import unicodedata
from functools import lru_cache
from pathlib import Path

from vitar_jax.processing.sources import image_name, split_frame


def nfc(name: str) -> str:
    """Returns the composed form of a name (NFC), in which names are compared."""
    return unicodedata.normalize("NFC", name)


def find_file(folder: Path, name: str) -> Path:
    """Returns the path of a file in `folder`, also if its name there has another Unicode form. The file need not exist.

    The name may end in a frame (`processing.sources`), which the path keeps.
    """
    name, frame = split_frame(name)
    if frame is not None:
        path = find_file(folder, name)
        return path.with_name(f"{path.name}#frame={frame}")
    path = folder / name
    if name.isascii() or os.path.exists(path):  # false where the name is too long
        return path
    for part in Path(name).parts:
        changed = os.stat(folder).st_mtime_ns if os.path.isdir(folder) else 0
        folder = folder / _names(folder, changed).get(nfc(part), part)
    return folder


@lru_cache(maxsize=64)
def _names(folder: Path, changed: int) -> dict[str, str]:
    """Returns the names in a folder by their composed form. `changed` is when the folder changed, or 0 if it does not exist."""
    return {nfc(name): name for name in os.listdir(folder)} if changed else {}


def path_key(path: str, folder: Path) -> str:
    """Returns the name of an image that does not depend on where its data set lies: its normalized path, relative to `folder`.

    The path of an image elsewhere stays absolute. Frames of one file have one name. An image in the text is named by its hash.
    """
    image = Path(split_frame(image_name(path))[0])
    start = next((start for start in (folder, folder.absolute()) if image.is_relative_to(start)), Path())
    return nfc(posixpath.normpath((image.relative_to(start) if start.parts else image).as_posix()))

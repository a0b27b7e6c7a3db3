"""Names of image files. Unicode has several spellings of one name; macOS and Linux prefer different ones."""

import posixpath
import unicodedata
from pathlib import Path


def nfc(name: str) -> str:
    """Returns the composed form of a name (NFC), in which names are compared."""
    return unicodedata.normalize("NFC", name)


def find_file(folder: Path, name: str) -> Path:
    """Returns the path of a file in `folder`, also if its name there has another Unicode form. The file need not exist."""
    path = folder / name
    if name.isascii() or path.exists():
        return path
    for part in Path(name).parts:
        folder = next((entry for entry in _entries(folder) if nfc(entry.name) == nfc(part)), folder / part)
    return folder


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def path_key(path: str, folder: Path) -> str:
    """Returns the name of an image that does not depend on where its data set lies: its normalized path, relative to `folder`.

    The path of an image elsewhere stays absolute.
    """
    image = Path(path)
    start = next((start for start in (folder, folder.absolute()) if image.is_relative_to(start)), Path())
    return nfc(posixpath.normpath((image.relative_to(start) if start.parts else image).as_posix()))

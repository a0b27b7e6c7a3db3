"""Access to the files of a published data set: tables, images in folders or archives, and checksums."""

import hashlib
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from vitar_jax.data.paths import find_file, nfc
from vitar_jax.data.tables import Row
from vitar_jax.errors import DataError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class ImageFile:
    """An image that has not been read: its name within the data set, and a function that returns its bytes."""

    name: str
    read: Callable[[], bytes]


class Published:
    """A folder of published files. Records which files are used, for their checksums.

    Args:
      bad: Collects the errors of single records, which are then left out. If None, the first one is raised.
    """

    def __init__(self, folder: str | Path, bad: list[DataError] | None = None):
        """Opens a folder.

        Raises:
          DataError: If the folder does not exist.
        """
        self.folder = Path(folder)
        self._used: set[Path] = set()
        self.bad = bad
        if not self.folder.is_dir():
            raise DataError(f"{folder}: no such folder")

    def file(self, *names: str) -> Path:
        """Returns the first of these files that exists.

        Raises:
          DataError: If none exists.
        """
        found = [self.folder / name for name in names if (self.folder / name).is_file()]
        if not found:
            raise self._missing(names)
        self._used.add(found[0])
        return found[0]

    def files(self, pattern: str) -> list[Path]:
        """Returns the files that match a pattern such as `data/test-*.parquet`, sorted by path.

        Raises:
          DataError: If no file matches.
        """
        found = sorted(path for path in self.folder.glob(pattern) if path.is_file())
        if not found:
            raise self._missing([pattern])
        self._used.update(found)
        return found

    def has(self, pattern: str) -> bool:
        return next(self.folder.glob(pattern), None) is not None

    def images(self, *places: str) -> "Images":
        """Returns the images in these places, each a folder or a zip archive. Ignores places that do not exist.

        Raises:
          DataError: If no place exists, or an archive is damaged.
        """
        found = [self.folder / place for place in places if (self.folder / place).exists()]
        if not found:
            raise self._missing(places)
        self._used.update(path for path in found if path.is_file())
        return Images(found)

    def records(self, rows: Iterable[T], make: Callable[[T], R]) -> Iterator[R]:
        """Yields the record of each row. Adds the errors of the others to `bad`."""
        for row in rows:
            try:
                record = make(row)
            except DataError as error:
                if self.bad is None:
                    raise
                self.bad.append(error)
            else:
                yield record

    def checksums(self) -> dict[str, str]:
        """Returns the SHA-256 of each used file, by its path in the folder."""
        sums = {}
        for path in sorted(self._used):
            with path.open("rb") as opened:
                sums[path.relative_to(self.folder).as_posix()] = hashlib.file_digest(opened, "sha256").hexdigest()
        return sums

    def _missing(self, names: Iterable[str]) -> DataError:
        archives = sorted(path.name for path in self.folder.glob("*.zip"))
        hint = f"; {' and '.join(archives)} may need to be unpacked" if archives else ""
        return DataError(f"{self.folder}: no {' or '.join(names)} found{hint}")


class Images:
    """Images by name, in folders and zip archives. Leading folders inside an archive are optional in a name that is unique."""

    def __init__(self, places: Iterable[Path]):
        self._folders: list[Path] = []
        # By each end of a path: a/b.png is found as a/b.png and as b.png.
        self._members: dict[str, list[tuple[zipfile.ZipFile, zipfile.ZipInfo]]] = defaultdict(list)
        for place in places:
            if place.is_dir():
                self._folders.append(place)
            else:
                self._index(place)

    def _index(self, place: Path) -> None:
        try:
            archive = zipfile.ZipFile(place)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{place}: cannot be read as a zip archive ({error})") from error
        for info in archive.infolist():
            parts = PurePosixPath(info.filename).parts
            for start in range(0 if info.is_dir() else len(parts)):
                self._members[nfc("/".join(parts[start:]))].append((archive, info))

    def find(self, name: str, where: str) -> ImageFile:
        """Finds an image by name.

        Raises:
          DataError: If the image does not exist, or archives hold several. Names `where`, the record that refers to it.
        """
        found = self.find_if_any(name, where)
        if found is None:
            raise DataError(f"{where}: no such image: {name}")
        return found

    def find_if_any(self, name: str, where: str) -> ImageFile | None:
        """Finds a file that may be missing, which may be of another kind than an image.

        Raises:
          DataError: If archives hold several.
        """
        inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
        for folder in self._folders if inside else ():
            if (path := find_file(folder, name)).is_file():
                return ImageFile(name, path.read_bytes)
        if found := self._members.get(nfc(name)):
            found = [member for member in found if nfc(member[1].filename) == nfc(name)] or found
            if len({(info.CRC, info.file_size) for _, info in found}) > 1:
                paths = " and ".join(info.filename for _, info in found[:2])
                raise DataError(f"{where}: got image {name}, expected a path that is unique in the archives, unlike {paths}")
            archive, info = found[0]
            return ImageFile(name, lambda: archive.read(info))
        return None


def embedded_image(row: Row, key: str, name: str) -> ImageFile:
    """Returns the image in a cell, in the form that `datasets` writes: {"bytes": ..., "path": ...}.

    Raises:
      DataError: If the cell contains no bytes.
    """
    value = row.values.get(key)
    content = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(content, bytes):
        raise DataError(f"{row.where}: {key}: got {type(content).__name__}, expected the bytes of an image")
    return ImageFile(name, lambda: content)


def locate(source: str, hub_files: tuple[str, ...] = ()) -> tuple[Path, str]:
    """Returns the folder of a data set, and a description of its origin that contains no local path.

    Args:
      source: Folder, or data set on the Hugging Face hub (owner/name), which is downloaded.
      hub_files: Patterns of the files to download. If empty, all files are downloaded.

    Raises:
      DataError: If `source` is neither, or cannot be downloaded.
    """
    if Path(source).is_dir():
        return Path(source), "a local folder"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise DataError(f"{source}: no such folder")
    try:
        folder = Path(snapshot_download(source, repo_type="dataset", allow_patterns=list(hub_files) or None))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{source}: no such folder, and no data set that can be downloaded from the hub ({reason})") from error
    return folder, f"{source} on the Hugging Face hub, revision {folder.name}"

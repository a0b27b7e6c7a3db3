"""Checkpoint storage: a local directory, a URL that fsspec opens (`gs://`, `memory://`), or a Hugging Face hub repository."""

import dataclasses
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub
from fsspec.implementations.local import LocalFileSystem

from vitar_jax.errors import CheckpointError

_SMALL = (".json", ".jinja", ".txt")  # suffixes of configs, tokenizers and image settings
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclasses.dataclass(frozen=True)
class CheckpointFolder:
    """Read access to the files of one checkpoint.

    Attributes:
      name: The name that the user gave; error messages start with it.
      fs: fsspec file system that holds the checkpoint.
      root: Path of the checkpoint in `fs`.
    """

    name: str
    fs: Any
    root: str

    @classmethod
    def open(cls, path: "str | Path | CheckpointFolder", *, weights: bool = True) -> "CheckpointFolder":
        """Opens a checkpoint. Returns a `CheckpointFolder` unchanged.

        Downloads `org/name` from the Hugging Face hub, unless a local directory has that name.

        Args:
          weights: Whether to download the weights too. If False, only the small files are downloaded.

        Raises:
          CheckpointError: If fsspec cannot open the URL, or the repository cannot be downloaded.
        """
        if isinstance(path, CheckpointFolder):
            return path
        name = str(path)
        if "://" in name:
            try:
                fs, root = fsspec.url_to_fs(name)
            except (ImportError, OSError, ValueError) as error:
                raise CheckpointError(f"{name}: cannot open this URL ({error})") from error
            return cls(name, fs, root.rstrip("/"))
        if isinstance(path, str) and _HUB_ID.fullmatch(path) and not Path(path).is_dir():
            try:
                suffixes = [*_SMALL, ".safetensors"] if weights else _SMALL
                path = huggingface_hub.snapshot_download(path, allow_patterns=[f"*{suffix}" for suffix in suffixes])
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{name}: no such directory, and the hub download failed ({error})") from error
        return cls(name, LocalFileSystem(), str(Path(path).absolute()))

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def label(self, file: str) -> str:
        """Returns the name of a file for error messages."""
        return f"{self.name.rstrip('/')}/{file}"

    def exists(self, file: str) -> bool:
        return self.fs.exists(f"{self.root}/{file}")

    def files(self, suffix: str) -> list[str]:
        """Returns the sorted names of the files with this suffix."""
        found = self.fs.ls(self.root, detail=False) if self.fs.isdir(self.root) else []
        return sorted(name for path in found if (name := path.rsplit("/", 1)[-1]).endswith(suffix))

    def size(self, file: str) -> int:
        """Returns the size of a file in bytes."""
        return self.fs.size(f"{self.root}/{file}")

    def fingerprint(self, file: str) -> bytes:
        """Returns a hash of a local file's content, or the key (size, time, checksum) that a remote file system reports."""
        path = f"{self.root}/{file}"
        if not self.is_local:
            return self.fs.ukey(path).encode()
        with open(path, "rb") as source:
            return hashlib.file_digest(source, "sha256").digest()

    def read(self, file: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Returns the bytes `[start, stop)` of a file, or fewer if the file ends earlier. None means unbounded."""
        return self.fs.cat_file(f"{self.root}/{file}", start, stop)

    def read_json(self, file: str) -> dict[str, Any]:
        """Reads a JSON object from a file.

        Raises:
          CheckpointError: If the file cannot be read or does not hold a JSON object.
        """
        try:
            values = json.loads(self.read(file))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.label(file)}: cannot be read ({error})") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{self.label(file)}: got a {type(values).__name__}, expected a JSON object")
        return values

    @contextmanager
    def small_files(self) -> Iterator[Path]:
        """Yields a local directory with the tokenizer and settings: the checkpoint itself, or a temporary copy."""
        if self.is_local:
            yield Path(self.root)
            return
        with tempfile.TemporaryDirectory() as directory:
            for file in (file for suffix in (*_SMALL, ".json.gz") for file in self.files(suffix)):
                (Path(directory) / file).write_bytes(self.read(file))
            yield Path(directory)


def weights_hash(checkpoint: str | Path | CheckpointFolder) -> str:
    """Returns a hash of the weight files: of their content if local, else of the metadata that the file system reports."""
    folder = CheckpointFolder.open(checkpoint)
    digest = hashlib.sha256()
    for file in folder.files(".safetensors"):
        digest.update(folder.fingerprint(file))
    return digest.hexdigest()

"""Where a checkpoint lies: a directory, a URL that fsspec opens (`gs://`, `memory://`), or a hub repository."""

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

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclasses.dataclass(frozen=True)
class CheckpointFolder:
    """The files of one checkpoint, to be read.

    Attributes:
      name: what the user called it; errors begin with it.
      fs: the file system of fsspec that it lies in.
      root: its path there.
    """

    name: str
    fs: Any
    root: str

    @classmethod
    def open(cls, path: "str | Path | CheckpointFolder", *, weights: bool = True) -> "CheckpointFolder":
        """Finds a checkpoint; a folder is given back as it is.

        A string like `org/name` that is no directory here is downloaded from the Hugging Face hub, without `weights` only
        its small files.

        Raises:
          CheckpointError: a URL that fsspec cannot open, or a repository that cannot be had.
        """
        if isinstance(path, CheckpointFolder):
            return path
        name = str(path)
        if "://" in name:
            try:
                fs, root = fsspec.url_to_fs(name)
            except (ImportError, OSError, ValueError) as error:
                raise CheckpointError(f"{name}: cannot be opened ({error})") from error
            return cls(name, fs, root.rstrip("/"))
        if isinstance(path, str) and _HUB_ID.fullmatch(path) and not Path(path).is_dir():
            try:
                path = huggingface_hub.snapshot_download(path, allow_patterns=["*.json"] + ["*.safetensors"] * weights)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{name}: no directory here, and not to be had from the hub ({error})") from error
        return cls(name, LocalFileSystem(), str(Path(path).absolute()))

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def label(self, file: str) -> str:
        """How errors call one of its files."""
        return f"{self.name.rstrip('/')}/{file}"

    def exists(self, file: str) -> bool:
        return self.fs.exists(f"{self.root}/{file}")

    def files(self, suffix: str) -> list[str]:
        """Names of the files that end so, sorted."""
        found = self.fs.ls(self.root, detail=False) if self.fs.isdir(self.root) else []
        return sorted(name for path in found if (name := path.rsplit("/", 1)[-1]).endswith(suffix))

    def size(self, file: str) -> int:
        """Its length in bytes."""
        return self.fs.size(f"{self.root}/{file}")

    def fingerprint(self, file: str) -> bytes:
        """Tells contents apart: a hash of them, or of what a remote file system says about them."""
        path = f"{self.root}/{file}"
        if not self.is_local:
            return self.fs.ukey(path).encode()
        with open(path, "rb") as source:
            return hashlib.file_digest(source, "sha256").digest()

    def read(self, file: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Its bytes, or those from `start` to `stop`, which are fewer where the file ends before."""
        return self.fs.cat_file(f"{self.root}/{file}", start, stop)

    def read_json(self, file: str) -> dict[str, Any]:
        """Reads a file that holds a JSON object.

        Raises:
          CheckpointError: it cannot be read, or holds something else.
        """
        try:
            values = json.loads(self.read(file))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.label(file)}: cannot be read ({error})") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{self.label(file)}: holds a {type(values).__name__}, not an object")
        return values

    @contextmanager
    def small_files(self) -> Iterator[Path]:
        """A local directory with its tokenizer and settings: itself, or a copy that goes away again."""
        if self.is_local:
            yield Path(self.root)
            return
        with tempfile.TemporaryDirectory() as directory:
            for file in self.files(".json") + self.files(".json.gz"):
                (Path(directory) / file).write_bytes(self.read(file))
            yield Path(directory)


def weights_hash(checkpoint: Path | CheckpointFolder) -> str:
    """Hash of a checkpoint's weight files; of a remote one, of what its file system says of them (size, time, checksum)."""
    folder = CheckpointFolder.open(checkpoint)
    digest = hashlib.sha256()
    for file in folder.files(".safetensors"):
        digest.update(folder.fingerprint(file))
    return digest.hexdigest()

"""Where a report's files go: into a folder, or all of them into one page.

Browsers refuse to fetch JSON for a page opened from disk but run scripts from there, so data are scripts, each a call with
JSON text. Whatever that text holds, the script is a call and nothing else.
"""

import base64
import hashlib
import json
import mimetypes
import re
from pathlib import Path
from urllib.parse import quote

from vitar_jax.errors import ConfigError
from vitar_jax.runtime.crash_safe import atomic_replace

FOLDERS = ("assets", "data", "images", "figures")
_WRITTEN = re.compile(r"[0-9a-f]{64}(-\d+x\d+)?\.(png|jpg)")  # names of images that a report writes


def call(function: str, *arguments: object) -> bytes:
    """A script that calls a function of `report` with strings of JSON.

    No "<" could end the script or start a comment, and no line separator the string. JSON can name lone surrogates but UTF-8
    cannot hold them: they become U+FFFD.
    """
    texts = (json.dumps(argument, separators=(",", ":"), ensure_ascii=False, allow_nan=False) for argument in arguments)
    literals = ", ".join(json.dumps(whole(text), ensure_ascii=False) for text in texts)
    for character in "<\u2028\u2029":
        literals = literals.replace(character, f"\\u{ord(character):04x}")
    return f"report.{function}({literals});\n".encode()


def whole(text: str) -> str:
    """`text` with U+FFFD for lone surrogates."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class FolderFiles:
    """Files beside the page. An older report's may stay, but for its images, which may not have been meant to.

    Raises:
      ConfigError: the directory holds trajectories; their images are no report's.
    """

    # Nothing from a network, and no script but the report's own.
    policy = "default-src 'none'; script-src 'self' file:; style-src 'self' file:; img-src 'self' file: data:"

    def __init__(self, directory: Path, *, images: bool):
        if any(directory.glob("trajectories*.jsonl")):
            raise ConfigError(f"{directory}: holds trajectories; a report needs a folder of its own")
        self._directory = directory
        for name in FOLDERS:
            (directory / name).mkdir(parents=True, exist_ok=True)
        for path in (directory / "images").iterdir():
            if not images and _WRITTEN.fullmatch(path.name):
                path.unlink()

    def has(self, name: str) -> bool:
        return (self._directory / name).exists()

    def add(self, name: str, content: bytes) -> str:
        """Writes a file, whole or not at all, and returns its address."""
        with atomic_replace(self._directory / name) as partial:
            partial.write_bytes(content)
        return quote(name)

    def script(self, name: str, content: bytes) -> dict[str, str]:
        """Adds a script; returns how the page runs it at its start."""
        return {"address": self.add(name, content)}

    def style(self, name: str, content: bytes) -> dict[str, str]:
        return {"address": self.add(name, content)}

    def on_demand(self, name: str, content: bytes) -> list[dict[str, str]]:
        """Adds a script that the page asks for; returns what of it has to run at its start."""
        self.add(name, content)
        return []

    def images(self) -> list[dict[str, str]]:
        return []


class SinglePage:
    """Everything inside the page."""

    def __init__(self) -> None:
        self._images: dict[str, str] = {}
        self._hashes: list[str] = []

    @property
    def policy(self) -> str:
        """Only the scripts that were added run."""
        return f"default-src 'none'; script-src {' '.join(self._hashes)}; style-src 'unsafe-inline'; img-src data:"

    def has(self, name: str) -> bool:
        return name in self._images

    def add(self, name: str, content: bytes) -> str:
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        address = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        if name.startswith("images/"):
            self._images[name] = address
        return address

    def script(self, name: str, content: bytes) -> dict[str, str]:
        self._hashes.append(f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'")
        return {"text": content.decode()}

    def style(self, name: str, content: bytes) -> dict[str, str]:
        return {"text": content.decode()}

    def on_demand(self, name: str, content: bytes) -> list[dict[str, str]]:
        return [self.script(name, content)]

    def images(self) -> list[dict[str, str]]:
        """The script that gives the page its images."""
        return [self.script("images", call("images", self._images))]

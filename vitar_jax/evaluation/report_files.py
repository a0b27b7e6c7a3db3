"""Destinations of a report's files: a folder, or a single page that contains all of them.

Browsers do not let a page opened from disk fetch JSON, but they run scripts. Data files are therefore scripts, each a single
function call with JSON text. Escaping guarantees that the text cannot add code to the script.
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
    """Returns a script that calls a function of `report` with JSON strings.

    Escapes "<", which could end the script or start a comment, and line separators, which could end the string. Replaces lone
    surrogates, which UTF-8 cannot encode, by U+FFFD.
    """
    texts = (json.dumps(argument, separators=(",", ":"), ensure_ascii=False, allow_nan=False) for argument in arguments)
    literals = ", ".join(json.dumps(whole(text), ensure_ascii=False) for text in texts)
    for character in "<\u2028\u2029":
        literals = literals.replace(character, f"\\u{ord(character):04x}")
    return f"report.{function}({literals});\n".encode()


def whole(text: str) -> str:
    """Replaces lone surrogates by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class FolderFiles:
    """Files in a folder, next to the page. Without `images`, an earlier report's images are deleted, but not its other files.

    Raises:
      ConfigError: If the directory holds trajectories, because their images would mix with the report's.
    """

    # Allows no network access, and only the report's own scripts.
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
        """Atomically writes a file and returns its address."""
        with atomic_replace(self._directory / name) as partial:
            partial.write_bytes(content)
        return quote(name)

    def script(self, name: str, content: bytes) -> dict[str, str]:
        """Adds a script that runs when the page opens. Returns its address or text."""
        return {"address": self.add(name, content)}

    def style(self, name: str, content: bytes) -> dict[str, str]:
        return {"address": self.add(name, content)}

    def on_demand(self, name: str, content: bytes) -> list[dict[str, str]]:
        """Adds a script that the page loads on demand. Returns the scripts that must run when the page opens."""
        self.add(name, content)
        return []

    def images(self) -> list[dict[str, str]]:
        return []


class SinglePage:
    """A single page in which all files are embedded."""

    def __init__(self) -> None:
        self._images: dict[str, str] = {}
        self._hashes: list[str] = []

    @property
    def policy(self) -> str:
        """Content security policy, which allows only the added scripts."""
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
        """Returns the script that passes the images to the page."""
        return [self.script("images", call("images", self._images))]

"""Errors that a user can fix.

Commands print a `VitarError` as one line, without a traceback, and exit with code 2. The message says where the error is
(file, record id or config key), what was found and what is allowed. Any other exception is a bug in this package.

A tool that cannot do what the model asked for raises nothing. It returns its error as a value, which the model sees.
"""


import re

# A data URI, a run of base64 that is longer than any hash, perhaps broken into lines, or bytes as Python prints them.
_DATA = re.compile(
    r"data:[\w/+.;=-]{0,100};base64,[\w+/=%-]*"
    r"|[A-Za-z0-9+/]{200,}={0,2}"
    r"|(?:[A-Za-z0-9+/]{60,}(?:\\r|\\n|\s)+){3,}[A-Za-z0-9+/]*={0,2}"
    r"""|(?<![\w'"])b'(?:[^'\\]|\\.){64,}'?|(?<![\w'"])b"(?:[^"\\]|\\.){64,}"?"""
)


def without_pictures(text: str) -> str:
    """Replaces each data URI, long run of base64 and long bytes literal by its length, so that no message shows a picture."""
    return _DATA.sub(lambda found: f"[data of {len(found[0])} characters]", text)


class VitarError(Exception):
    """Base class of errors that a user can fix. Its message shows no picture (`without_pictures`)."""

    def __init__(self, message: object = ""):
        super().__init__(without_pictures(str(message)))


class ConfigError(VitarError):
    """A config key or flag is unknown, missing or has an invalid value."""


class ImageError(VitarError):
    """A file or byte string is not a readable image, or the image is too large or too narrow."""


class CheckpointError(VitarError):
    """Weights or train state are missing, incomplete or do not match the config."""


class NonFiniteError(VitarError):
    """Too many consecutive training steps had a non-finite loss or gradient."""


class DataError(VitarError):
    """A data set or record is missing, malformed or inconsistent."""


class TooLongError(DataError):
    """A valid record exceeds the limits of the run."""


class EndpointError(VitarError):
    """A model endpoint gave no usable reply. `kind` classifies the failure for counting (see `runtime/endpoint.py`)."""

    def __init__(self, kind: str, message: str):
        super().__init__(f"{kind}: {message}")
        self.kind = kind

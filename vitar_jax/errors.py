"""Errors that a user can fix.

Commands print a `VitarError` as one line, without a traceback, and exit with code 2. The message says where the error is
(file, record id or config key), what was found and what is allowed. Any other exception is a bug in this package.

A tool that cannot do what the model asked for raises nothing. It returns its error as a value, which the model sees.
"""


class VitarError(Exception):
    """Base class of errors that a user can fix."""


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

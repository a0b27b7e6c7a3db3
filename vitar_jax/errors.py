"""Errors that a user can mend.

Entry points print a `VitarError` as one line, without a traceback, and exit with code 2. Its message says
what was wrong, where (file, record id or config key) and what is allowed. Anything else that is raised is a
bug of ours.

A tool that cannot do what the model asked for raises nothing: its error is a value, which the model sees.
"""


class VitarError(Exception):
    """Anything that a user can mend."""


class ConfigError(VitarError):
    """A config key is unknown, missing, or holds a value that is not allowed."""


class ImageError(VitarError):
    """A file or byte string is not an image that can be read or admitted."""


class CheckpointError(VitarError):
    """Weights or train state are missing, incomplete, or of another shape than the config asks for."""


class NonFiniteError(VitarError):
    """Training has gone on for too many steps without a finite loss and gradient."""


class DataError(VitarError):
    """A data set or record is missing, malformed, or contradicts itself."""


class TooLongError(DataError):
    """A record is sound, but a run's limits have no room for it."""


class EndpointError(VitarError):
    """A model behind an endpoint gave no answer that can be used; `kind` is for counting (see `runtime/endpoint.py`)."""

    def __init__(self, kind: str, message: str):
        super().__init__(f"{kind}: {message}")
        self.kind = kind

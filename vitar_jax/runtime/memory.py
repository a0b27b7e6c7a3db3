"""The memory of this process."""

import os
from pathlib import Path


def resident_memory() -> int | None:
    """Returns the resident memory of this process in bytes, or None on systems other than Linux."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")

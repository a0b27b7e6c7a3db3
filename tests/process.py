"""What Linux tells about this process: memory held and bytes read."""

from pathlib import Path


def bytes_read() -> int:
    """What this process has read from files so far, as Linux counts it."""
    return int(Path("/proc/self/io").read_text().split()[1])


def status(key: str) -> int:
    """A value of this process in bytes, by its name in Linux' status file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


class Peak:
    """The most memory that this process held in a `with` block, above that at its start."""

    def __enter__(self) -> "Peak":
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self._before = status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = status("VmHWM") - self._before

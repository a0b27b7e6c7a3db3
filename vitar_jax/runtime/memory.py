"""The memory of this process."""

from pathlib import Path


def anonymous_memory() -> int | None:
    """Returns the memory of this process that no file backs, swapped out or not, in bytes; None on systems other than Linux.

    Pages of files, such as those of libraries, are not counted: the system drops and reads them again as other processes need
    memory.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError:
        return None
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "VmSwap:")))

"""The records of recent episodes, for clients that ask the server to keep them."""

import io
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.episodes.trajectory_files import TrajectoryWriter
from vitar_jax.evaluation.report import ReportSection, write_report

MOST = 16  # requests whose records are kept


class KeptEpisodes:
    """The records of the latest requests, in memory. Several threads may use it.

    Args:
      pixels: Maximum number of pixels of all images. The newest request is kept even if it has more.
    """

    def __init__(self, pixels: int):
        self._pixels = pixels
        self._records: OrderedDict[str, list[Trajectory]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, request_id: str, trajectory: Trajectory) -> None:
        """Keeps a record of a request, and drops the oldest requests beyond the limits."""
        with self._lock:
            self._records.setdefault(request_id, []).append(trajectory)
            while len(self._records) > MOST or (len(self._records) > 1 and self._size > self._pixels):
                self._records.popitem(last=False)

    @property
    def _size(self) -> int:
        records = (record for request in self._records.values() for record in request)
        return sum(image.pixels.width * image.pixels.height for record in records for image in record.images)

    def find(self, request_id: str) -> Sequence[Trajectory]:
        """Returns the records of a request; none if it is not kept."""
        with self._lock:
            return tuple(self._records.get(request_id, ()))


def as_zip(trajectories: Sequence[Trajectory]) -> bytes:
    """Returns a ZIP of a folder that `read_trajectories` reads."""
    with TemporaryDirectory() as folder:
        TrajectoryWriter(Path(folder)).write(trajectories)
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for path in sorted(Path(folder).rglob("*")):
                archive.write(path, path.relative_to(folder))
        return content.getvalue()


def as_report(trajectories: Sequence[Trajectory], model: str, pieces: Callable[[Sequence[int]], Sequence[str]]) -> bytes:
    """Returns a report in a single page, with the images."""
    section = ReportSection(model, trajectories, rule="", marks={})
    with TemporaryDirectory() as folder:
        page = write_report(Path(folder), [section], title=f"Asked of {model}", pieces=pieces, images=True, single_file=True)
        return page.read_bytes()

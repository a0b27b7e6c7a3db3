"""Benchmark of experts' searches: searches per second, and how fast and small files of traces open."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from vitar_jax.data.traces import JSONL, Step, Trace
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import ConfigError

Searcher = Callable[[Sample], Sequence[Trace]]

SEARCHES = 6  # per question, as in MedEyes
SECONDS, MEGABYTES = 2.0, 200.0  # targets of opening the traces of 10,000 questions
PER_SECOND = 200.0  # target of searches on one core
_SIZE = (640, 480)
_SUFFIXES = (".jpg", ".jpeg", ".png")

# Runs in a process of its own, whose memory is that of the traces alone.
_OPEN = """
import json, resource, sys, time
from vitar_jax.data.traces import Traces

def peak():
    if sys.platform == "linux":  # there, ru_maxrss begins with the memory of the process that started this one
        with open("/proc/self/status") as status:
            return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2

began = time.perf_counter()
traces = Traces([sys.argv[1]])
seconds, opened = time.perf_counter() - began, peak()
began = time.perf_counter()
for sample_id in traces:
    traces[sample_id]
reading = time.perf_counter() - began
print(json.dumps({"questions": len(traces), "seconds": seconds, "megabytes": opened, "read_per_second": len(traces) / reading,
                  "megabytes_after_reading": peak()}))
"""


def opening(folder: Path, questions: int) -> dict[str, float]:
    """Returns the seconds and the memory (MiB) that opening traces takes, and the questions read per second.

    Args:
      folder: Folder to write the traces to: six searches of four steps per question, of about 1.3 kB each.
    """
    words = "Two regions may be abnormal. I enlarge the one at the upper left. " * 2
    scan = Step("scan", None, 0.25, 0.5, words)
    drill = Step("drill", Box(10.5, 20.25, 210.125, 320.0, "original"), 0.25, 0.5, words)
    with (folder / JSONL).open("w") as file:
        for question in range(questions):
            for search in range(SEARCHES):
                name, sha256 = f"question-{question}", f"{question:064x}"
                trace = Trace(name, sha256, search, (scan, drill) * 2, words, "B", True, "confident")
                file.write(json.dumps(trace.to_json()) + "\n")
    done = subprocess.run([sys.executable, "-c", _OPEN, str(folder)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def searching(searcher: Searcher, folder: Path, images: Path | None, count: int) -> dict[str, float]:
    """Returns searches per second, and per question, of questions about images that are opened from their files.

    Args:
      searcher: Function of a sample that returns its searches.
      folder: Folder to write generated images to.
      images: Folder of images. If None, generates noisy grey JPEGs of 640 x 480 pixels.
      count: Number of questions.

    Raises:
      ConfigError: If `images` holds no images.
    """
    if images:
        files = sorted(path for path in images.rglob("*") if path.suffix.lower() in _SUFFIXES)
        if not files:
            raise ConfigError(f"--images: {images} holds no images ({', '.join(_SUFFIXES)})")
    else:
        files = [folder / f"{number}.jpg" for number in range(min(count, 32))]
        for file in files:
            Image.effect_noise(_SIZE, 60).save(file, quality=90)
    samples = [_sample(number, files[number % len(files)]) for number in range(count)]
    searcher(samples[0])
    began = time.perf_counter()
    made = sum(len(searcher(sample)) for sample in samples)
    return {"searches_per_second": made / (time.perf_counter() - began), "searches_per_question": made / count}


def _sample(number: int, file: Path) -> Sample:
    """Returns a question with a box that shows the answer and two others, all within the smallest images of the sets."""
    boxes = [[10.0, 10.0, 60.0, 60.0], [70.0, 10.0, 120.0, 60.0], [10.0, 70.0, 60.0, 120.0]]
    options = tuple(zip("ABCD", ("flat", "rows", "columns", "grid"), strict=True))
    gold = Box(*boxes.pop(number % 3), frame="original")
    return Sample(str(number), "Which texture?", (str(file),), "ABCD"[number % 4], options, (gold,), {"other_boxes": boxes})


def table(opened: dict[str, float], searched: dict[str, float]) -> str:
    """Formats the measurements with their targets."""
    lines = [
        f"traces of {opened['questions']:,.0f} questions open in {opened['seconds']:.2f} s, in a process of "
        f"{opened['megabytes']:.0f} MiB (targets for 10,000: {SECONDS:g} s, {MEGABYTES:g} MiB)",
        f"{opened['read_per_second']:,.0f} questions read per second; {opened['megabytes_after_reading']:.0f} MiB after all",
    ]
    if searched:
        lines.append(f"{searched['searches_per_second']:,.0f} searches per second on one core (target {PER_SECOND:g})")
    return "\n".join(lines)

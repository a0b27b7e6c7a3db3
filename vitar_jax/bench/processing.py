"""Benchmark of image processing against Hugging Face's: images per second, from files and from decoded images.

Ours runs on threads. The peer is `Qwen2VLImageProcessorPil`, on threads or in the processes of a torch DataLoader, whichever is
faster. Its torch variant is not compared, because it needs torchvision and rounds differently.
"""

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vitar_jax.bench.images import list_images, make_images
from vitar_jax.bench.pairs import Pair, Row, check_agreement, fastest, run_pair
from vitar_jax.processing.files import open_image
from vitar_jax.processing.images import ImageProcessor, ProcessedImage

_TARGET = 2.0
Source = Path | Image.Image


def process_ours(processor: ImageProcessor, source: Source) -> ProcessedImage:
    return processor(open_image(source))


def process_peer(processor: Any, source: Source) -> Any:
    image = Image.open(source) if isinstance(source, Path) else source
    return processor(images=[image], return_tensors="pt")


class Images(Dataset[Any]):
    """Images that the workers of a DataLoader open and process."""

    def __init__(self, sources: Sequence[Source], process: Callable[[Source], Any]):
        self.sources, self.process = sources, process

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Any:
        return self.process(self.sources[index])


def on_threads(sources: Sequence[Source], process: Callable[[Source], Any], workers: int) -> Callable[[], Any]:
    if workers == 1:
        return lambda: [process(source) for source in sources]
    pool = ThreadPoolExecutor(workers)
    return lambda: list(pool.map(process, sources))


def in_processes(sources: Sequence[Source], process: Callable[[Source], Any], workers: int) -> Callable[[], Any]:
    loader = DataLoader(
        Images(sources, process),
        batch_size=None,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="spawn",  # forking a process that has threads may hang
    )
    return lambda: list(loader)


_WAYS = {"threads": on_threads, "processes": in_processes}


def measure(folder: Path | None, *, count: int, workers: Sequence[int], rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Checks that the patches of both sides agree, then times both sides alternately.

    Args:
      folder: Folder of images. If None, generates noise images.
      count: Number of images.
      workers: Numbers of parallel workers to measure.
      rounds: Number of timings per side.
      say: Prints a line of progress.

    Raises:
      ImageError: If the folder holds no images.
      Disagreement: If patches have a relative difference above 1e-3.
    """
    torch.set_num_threads(1)  # parallelism comes only from the workers
    ours, peer = partial(process_ours, ImageProcessor()), partial(process_peer, Qwen2VLImageProcessorPil())
    with tempfile.TemporaryDirectory() as scratch:
        files = list_images(folder, count) if folder else make_images(Path(scratch), count)
        decoded = [open_image(file).convert("RGB") for file in files]
        errors = [
            check_agreement(str(file), ours(file).patches, peer(image)["pixel_values"])
            for file, image in zip(files, decoded, strict=True)
        ]
        side = np.sqrt(np.mean([image.width * image.height for image in decoded]))
        say(f"{len(files)} images from {folder or 'noise'}, about {side:.0f} px square; patches agree to {max(errors):.1e}")
        rows = []
        works: dict[str, Sequence[Source]] = {"decode and process": files, "process": [open_image(file) for file in files]}
        for name, sources in works.items():
            for number in workers:
                ways = ["threads", "processes"] if number > 1 else ["threads"]
                best, note = fastest(ways, lambda way, s=sources, n=number: _WAYS[way](s, peer, n))
                say(f"{name}, workers {number}: torch: {note}")
                pair = Pair(
                    name=name,
                    size=f"{number} workers" if number > 1 else "1 worker",
                    ours=on_threads(sources, ours, number),
                    peer=_WAYS[best](sources, peer, number),
                    target=_TARGET,
                    items=len(sources),
                    peer_settings=best if number > 1 else "",
                )
                rows.append(run_pair(pair, rounds))
    return rows

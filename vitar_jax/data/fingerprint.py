"""Fingerprints of data sets: whether a source still returns the samples that it returned before."""

import hashlib
import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

from PIL import Image

from vitar_jax.data.sources import Source
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import VitarError
from vitar_jax.processing.files import pixels_sha256
from vitar_jax.processing.sources import file_digest

_PROBES = 16  # samples read of a source that is not a list
_THREADS = 8
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


@runtime_checkable
class Fingerprinted(Source, Protocol):
    """A source that knows its files, so that its fingerprint covers all samples without decoding them."""

    def fingerprint(self) -> str: ...


def fingerprint(source: Source) -> str:
    """Returns a SHA-256 of a source's number of samples and of their content.

    Covers every sample of a list, such as a question file, and what the source itself covers if it is `Fingerprinted`. Of any
    other source, for example one that draws its images, covers a few samples spread over it, with their pixels. Image files
    count by `file_digest`.
    """
    if isinstance(source, tuple | list):
        parts = [str(len(source)), *_contents(source)]
    elif isinstance(source, Fingerprinted):
        parts = [str(len(source)), source.fingerprint()]
    else:
        probes = sorted({number * len(source) // _PROBES for number in range(_PROBES)} if len(source) else ())
        parts = [str(len(source)), *(_probe(source, number) for number in probes)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _probe(source: Source, number: int) -> str:
    try:
        return _contents([source[number]])[0]
    except VitarError as error:  # training skips the sample, or ends with this error
        return str(error)


def _contents(samples: Iterable[Sample]) -> list[str]:
    samples = list(samples)
    images = [image for sample in samples for image in sample.images]
    paths = sorted({image for image in images if isinstance(image, str)})
    with ThreadPoolExecutor(_THREADS) as pool:
        files = dict(zip(paths, pool.map(file_digest, paths), strict=True))

    def digest(image: Image.Image | str) -> str:
        return files[image] if isinstance(image, str) else pixels_sha256(image)

    return [_content(sample, [digest(image) for image in sample.images]) for sample in samples]


def _content(sample: Sample, images: list[str]) -> str:
    values = {name: value for name, value in vars(sample).items() if name not in ("images", "demonstration")}
    values["demonstration"] = sample.demonstration and sample.demonstration.to_json()
    return json.dumps(values | {"images": images}, default=lambda value: _ADDRESS.sub("", repr(value)))

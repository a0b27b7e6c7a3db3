"""Programs that load and save weights, each in its own process, where `python -c` calls one by its name.

This module imports only what they need, because their memory is measured.
"""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from safetensors import safe_open

from tests.kit.processes import Peak, bytes_read
from vitar_jax.models.config import ModelConfig
from vitar_jax.models.pretrained import leaf_paths, load_pretrained, save_pretrained
from vitar_jax.models.qwen2_5_vl import QWEN2_5_VL, Qwen2_5_VL
from vitar_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig, TextConfig, VisionConfig
from vitar_jax.models.registry import abstract_model
from vitar_jax.parallel.mesh import ShardingRules, make_mesh, shardings
from vitar_jax.runtime.remote import CheckpointFolder

MIB = 2**20
ALLOWED = 256 * MIB  # in addition to the largest shard of a leaf


def model_config(*, width: int, mlp: int, layers: int, vocab: int, dtype: str) -> ModelConfig:
    """Returns the config of a decoder of the given size with a small vision tower."""
    return Qwen2_5_VLConfig(
        text=TextConfig(
            vocab_size=vocab,
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            mrope_section=(width // 32, width // 32, width // 16),
        ),
        vision=VisionConfig(
            depth=2, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=width, fullatt_block_indexes=(1,)
        ),
        image_token_id=1,
        video_token_id=2,
        vision_start_token_id=3,
        vision_end_token_id=4,
        dtype=dtype,
    )


# three stacked tensors of 256 MiB each; 1.1 GiB in total
LARGE = model_config(width=1024, mlp=8192, layers=16, vocab=65_536, dtype="bfloat16")
SMALL = model_config(width=256, mlp=512, layers=3, vocab=4096, dtype="float32")
ODD = model_config(width=256, mlp=510, layers=3, vocab=12_001, dtype="float32")  # four devices do not divide its rows


def numbered(config: ModelConfig, spread: Any) -> Qwen2_5_VL:
    """Returns a model in which every weight encodes its place. Integers up to 250 are exact in bf16."""

    def fill(number: int, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        places = sum((3 + axis) * jax.lax.broadcasted_iota(jnp.int32, leaf.shape, axis) for axis in range(leaf.ndim))
        return ((places + 17 * number) % 251).astype(config.dtype)

    def make() -> Qwen2_5_VL:
        leaves, structure = jax.tree.flatten(abstract_model(config))
        return jax.tree.unflatten(structure, [fill(i, leaf) for i, leaf in enumerate(leaves)])

    return jax.jit(make, out_shardings=spread)()


def spread_over(config: ModelConfig, *, fsdp: int, tensor: int, data: int = 1) -> Any:
    return shardings(abstract_model(config), make_mesh(data, fsdp, tensor), ShardingRules())


def join(number: str, port: str) -> None:
    """Connects this process to another one."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(number))


class Afar(DirFileSystem):
    """A local directory that counts as remote, and records the number of bytes of each request."""

    cachable = False  # each instance counts its own requests

    def __init__(self, directory: str):
        super().__init__(directory, LocalFileSystem())
        self.requests: list[int] = []

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        data = super().cat_file(path, start, end, **options)
        self.requests.append(len(data))
        return data


def measure_save(directory: str) -> None:
    """Prints the peak memory of saving the large model, whose largest tensor is the embedding."""
    model = jax.block_until_ready(numbered(LARGE, spread_over(LARGE, fsdp=2, tensor=2)))
    with Peak() as peak:
        save_pretrained(model, directory, max_shard_bytes=300 * MIB)
    print(json.dumps(peak.bytes))


def measure_load(directory: str, fsdp: str, tensor: str, how: str) -> None:
    """Prints the peak memory of loading the large model minus its parameters, its bound, and whether all weights are right."""
    spread = spread_over(LARGE, fsdp=int(fsdp), tensor=int(tensor))
    load = {"streamed": load_pretrained, "hoarded": load_hoarding}[how]
    jax.block_until_ready(jax.device_put(np.zeros(MIB, np.uint8)))  # excludes the start of JAX from the measurement
    with Peak() as peak:
        model = jax.block_until_ready(load(directory, dtype="bfloat16", shardings=spread))
    leaves = jax.tree.leaves(model)
    parameters = sum(leaf.nbytes for leaf in leaves)
    largest = max(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
    right = all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), model, numbered(LARGE, spread))))
    print(json.dumps([peak.bytes - parameters, largest + ALLOWED, right]))


def measure_load_from_afar(directory: str) -> None:
    """Prints the host's peak memory while it loads from a remote directory, and its bound.

    Counts only what Python allocates, because the rows that devices hold and exchange are in host memory only on a CPU.
    """
    spread = spread_over(LARGE, fsdp=2, tensor=2)
    tracemalloc.start()
    model = load_pretrained(CheckpointFolder("afar", Afar(directory), ""), dtype="bfloat16", shardings=spread)
    largest = max(shard.data.nbytes for leaf in jax.tree.leaves(model) for shard in leaf.addressable_shards)
    print(json.dumps([tracemalloc.get_traced_memory()[1], largest + ALLOWED]))


def load_hoarding(directory: str, dtype: str, shardings: Any) -> Qwen2_5_VL:
    """Loads without streaming: the library maps files into memory, and whole leaves are stacked on the host."""
    opened = [safe_open(file, framework="flax") for file in sorted(Path(directory).glob("*.safetensors"))]
    stored = {name: file for file in opened for name in file.keys()}
    model = abstract_model(LARGE)
    leaves = []
    for (path, leaf), target in zip(leaf_paths(model), jax.tree.leaves(shardings), strict=True):
        parts = [np.asarray(stored[name].get_tensor(name)) for name in QWEN2_5_VL.names.published(path, leaf.shape[0])]
        if path.endswith("/kernel"):
            parts = [part.reshape(len(part), -1).T for part in parts]
        leaves.append(jax.device_put(np.stack(parts).reshape(leaf.shape).astype(dtype), target))
    return jax.tree.unflatten(jax.tree.structure(model), leaves)


def load_and_save(number: str, port: str, source: str, target: str) -> None:
    """Loads and saves in one of two processes. Prints the number of bytes that it read, and whether the weights are right."""
    join(number, port)
    spread = spread_over(SMALL, fsdp=2, tensor=2)
    load_pretrained(source, shardings=spread)  # imports everything, so that only reads of weights are counted below
    before = bytes_read()
    model = load_pretrained(source, shardings=spread)
    read = bytes_read() - before
    right = jax.jit(lambda a, b: jnp.array([(x == y).all() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)]).all())
    save_pretrained(model, target, max_shard_bytes=4 * MIB)
    print(json.dumps([read, bool(right(model, numbered(SMALL, spread)))]), flush=True)
    jax.distributed.shutdown()


MESHES = [(1, 4, 1), (1, 2, 2), (2, 2, 1)]


def load_from_afar(number: str, port: str, source: str) -> None:
    """Loads in one of two processes. Prints the sizes of its requests for each mesh, and whether its shards are right."""
    join(number, port)
    whole = jax.tree.leaves(load_pretrained(source))
    found = []
    for data, fsdp, tensor in MESHES:
        afar = Afar(source)
        spread = spread_over(ODD, data=data, fsdp=fsdp, tensor=tensor)
        model = load_pretrained(CheckpointFolder("afar", afar, ""), shardings=spread)
        leaves = list(zip(jax.tree.leaves(model), jax.tree.leaves(spread), whole, strict=True))
        right = all(
            leaf.sharding == target and all(np.array_equal(part.data, there[part.index]) for part in leaf.addressable_shards)
            for leaf, target, there in leaves
        )
        found.append([afar.requests, right])
    print(json.dumps(found), flush=True)
    jax.distributed.shutdown()

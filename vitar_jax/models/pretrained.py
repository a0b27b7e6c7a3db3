"""Loads and saves weights as Hugging Face safetensors."""

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vitar_jax.errors import CheckpointError
from vitar_jax.models.config import ModelConfig
from vitar_jax.models.generation import GENERATION_FILE, Generation
from vitar_jax.models.names import TensorNames
from vitar_jax.models.registry import abstract_model, family_of, load_config
from vitar_jax.models.safetensors_files import Bounds, StoredTensor, TensorWriter, nbytes, read_block, read_headers, row_blocks
from vitar_jax.models.vision_language import VisionLanguageModel
from vitar_jax.parallel.reshard import reshard, row_layout
from vitar_jax.runtime.crash_safe import atomic_replace
from vitar_jax.runtime.distributed import is_main, wait_for_all
from vitar_jax.runtime.remote import CheckpointFolder

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_CONFIG = "config.json"
_THREADS = 8  # threads that read blocks of files
_STRIP = 64  # rows transposed at a time: few enough to stay in the processor's cache


def leaf_paths(tree: Any) -> list[tuple[str, Any]]:
    """Returns the leaves of a module with their paths, such as `model/layers/mlp/gate_proj/kernel`."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"), leaf) for path, leaf in paths]


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """Storage of one leaf in published files.

    Attributes:
      shape: Shape of the leaf.
      names: Names of its tensors, one per layer of a stacked leaf.
      stored_shape: Shape of each tensor.
      kernel: Whether the tensors are transposed.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...]
    stored_shape: tuple[int, ...]
    stacked: bool
    kernel: bool


def _layout(model: Any, names: TensorNames) -> list[_Leaf]:
    """Returns the storage of each leaf, in the order of the leaves."""
    layout = []
    for path, leaf in leaf_paths(model):
        stacked = names.is_stacked(path)
        shape = leaf.shape[1:] if stacked else leaf.shape
        stored_shape = names.stored_shape(path, shape)
        if path == names.patch_embed:
            stored_shape = (shape[1], *model.config.vision.patch_shape)
        layout.append(
            _Leaf(leaf.shape, names.published(path, leaf.shape[0]), stored_shape, stacked, path.endswith("/kernel"))
        )
    return layout


def _weight_files(folder: CheckpointFolder) -> list[str]:
    """Returns the names of a checkpoint's weight files.

    As in transformers, a single file goes before an index, which transformers leaves when it writes one file over several.
    """
    if folder.exists(_SINGLE):
        return [_SINGLE]
    if not folder.exists(_INDEX):
        raise CheckpointError(f"{folder.name}: has no weights; expected {_SINGLE} or {_INDEX}")
    weight_map = folder.read_json(_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{folder.label(_INDEX)}: expected a weight_map from tensors to files")
    return sorted(set(weight_map.values()))


def load_pretrained(
    path: str | Path | CheckpointFolder,
    *,
    dtype: str = "float32",
    param_dtype: str = "",
    shardings: Any = None,
    **computation: Any,
) -> VisionLanguageModel:
    """Reads a model. Each process reads only the shards of its own devices.

    Host memory holds one shard of one leaf at a time. Besides the parameters, loading needs room for the largest shard and a
    few blocks of files.

    From a remote directory, each device reads whole rows of a stored matrix, so that the processes together read it once, in
    few requests. The devices then reshard the rows, which needs room for a few shards on each device.

    Args:
      path: Location of `config.json` and safetensors: a directory, a URL that fsspec opens (`gs://` needs the package gcsfs),
        or a Hugging Face repository such as `Qwen/Qwen2.5-VL-7B-Instruct`.
      dtype: Type of computation.
      param_dtype: Type of the weights in memory. If empty, `dtype`.
      shardings: A tree of `NamedSharding`s like the model's. If None, the default device.
      computation: `remat`, `attention` and `generation` of `ModelConfig`.

    Raises:
      ConfigError: If `ModelConfig` rejects a name.
      CheckpointError: If files cannot be read, or tensors are missing, extra or misshapen. The error lists all of them, before
        any weight is read.
    """
    folder = CheckpointFolder.open(path)
    config = load_config(folder, dtype=dtype, **computation)
    names, tied = family_of(config).names, config.text.tie_word_embeddings
    return load_weights(
        folder, abstract_model(config), names, param_dtype=param_dtype or dtype, shardings=shardings, tied=tied
    )


def load_weights(
    folder: CheckpointFolder, abstract: Any, names: TensorNames, *, param_dtype: str, shardings: Any = None, tied: bool = False
) -> Any:
    """Reads the weights of any model; see `load_pretrained`.

    Args:
      abstract: The model's shapes, without values.
      tied: Whether the head is the table of embeddings.

    Raises:
      CheckpointError: As in `load_pretrained`.
    """
    layout = _layout(abstract, names)
    stored: dict[str, StoredTensor] = {}
    for tensor in read_headers(folder, _weight_files(folder)).values():
        if names.is_left_out(tensor.name):
            continue
        if (twin := stored.setdefault(names.from_memory(tensor.name), tensor)) is not tensor:
            raise CheckpointError(f"{folder.label(tensor.file)}: {tensor.name} and {twin.name} are one tensor of the model")
    for prefix, what in names.required.items():
        if not any(name.startswith(prefix) for name in stored):
            raise CheckpointError(f"{folder.name}: has no {what}; expected tensors {prefix}*")
    head = None
    if tied:
        head_name, table_name = (names.published(path, 0)[0] for path in ("lm_head/kernel", "model/embed_tokens"))
        head = stored.pop(head_name, None)  # some files also contain the tied copy
    _check_fit(layout, stored, folder.name)
    if head is not None:
        _check_tied(head, stored[table_name], folder)

    in_memory = np.dtype(jnp.dtype(param_dtype))
    targets = jax.tree.leaves(shardings) if shardings is not None else [None] * len(layout)
    with ThreadPoolExecutor(_THREADS) as pool:
        leaves = [
            _load_leaf(leaf, [stored[name] for name in leaf.names], folder, in_memory, target, pool)
            for leaf, target in zip(layout, targets, strict=True)
        ]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _check_fit(layout: list[_Leaf], stored: Mapping[str, StoredTensor], where: str) -> None:
    wanted = {name: leaf.stored_shape for leaf in layout for name in leaf.names}
    problems = [f"missing {name}" for name in wanted.keys() - stored.keys()]
    problems += [f"extra {name}" for name in stored.keys() - wanted.keys()]
    for name in wanted.keys() & stored.keys():
        if stored[name].shape != wanted[name]:
            problems.append(f"misshapen {name}: {stored[name].shape} in the file, {wanted[name]} in the model")
    if problems:
        raise CheckpointError(f"{where}: {len(problems)} tensors do not fit:\n  " + "\n  ".join(sorted(problems)))


def _check_tied(head: StoredTensor, table: StoredTensor, folder: CheckpointFolder) -> None:
    """Refuses a head that differs from the table to which the config ties it. Processes compare different rows.

    transformers 5 would keep such a head, and transformers 4 would drop it.
    """
    rows, columns = (0, table.shape[0]), (0, table.shape[1])
    same = head.shape == table.shape
    for block in itertools.islice(row_blocks(table, rows) if same else (), jax.process_index(), None, jax.process_count()):
        one, other = (read_block(folder, tensor, block, columns) for tensor in (head, table))
        same = same and np.array_equal(one.astype(np.float64), other.astype(np.float64), equal_nan=True)
    if not same:
        raise CheckpointError(
            f"{folder.label(head.file)}: {head.name} differs from {table.name}, to which tie_word_embeddings in {_CONFIG} ties "
            "it; set that key to false to keep the head, or remove the tensor"
        )


def _load_leaf(
    leaf: _Leaf,
    tensors: list[StoredTensor],
    folder: CheckpointFolder,
    dtype: np.dtype,
    target: NamedSharding | None,
    pool: Executor,
) -> jax.Array:
    """Reads a leaf into a sharding (None: the default device). Reads a remote matrix by rows, then reshards it."""
    if target is not None and not folder.is_local and len(leaf.stored_shape) > 1:
        axis = len(leaf.shape) - 1 if leaf.kernel else int(leaf.stacked)  # of our leaf, along which the stored rows lie
        shape, by_rows = row_layout(leaf.shape, axis, target)
        if not by_rows.is_equivalent_to(target, len(shape)):
            padded = _read_leaf(dataclasses.replace(leaf, shape=shape), tensors, folder, dtype, by_rows, pool)
            return jax.block_until_ready(reshard(padded, leaf.shape, axis, target))
    return _read_leaf(leaf, tensors, folder, dtype, target, pool)


def _read_leaf(
    leaf: _Leaf,
    tensors: list[StoredTensor],
    folder: CheckpointFolder,
    dtype: np.dtype,
    sharding: NamedSharding | None,
    pool: Executor,
) -> jax.Array:
    """Reads the shards of a leaf that this process's devices hold, each once."""
    indices: Mapping[Any, Any] = {None: [slice(None)] * len(leaf.shape)}
    if sharding is not None:
        indices = sharding.addressable_devices_indices_map(leaf.shape)
    holders: dict[tuple[Bounds, ...], list[Any]] = {}
    for device, index in indices.items():
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, leaf.shape, strict=True))
        holders.setdefault(bounds, []).append(device)
    shards = []
    for bounds, devices in holders.items():
        host = np.empty([stop - start for start, stop in bounds], dtype)
        if leaf.stacked:
            parts = zip(host, tensors[slice(*bounds[0])], strict=True)
            copies = [copy for part, tensor in parts for copy in _copies(part, tensor, bounds[1:], leaf.kernel, folder)]
        else:
            copies = list(_copies(host, tensors[0], bounds, leaf.kernel, folder))
        for copied in [pool.submit(copy) for copy in copies]:
            copied.result()
        # Waits, so that the host holds one shard at a time.
        shards += jax.block_until_ready([jax.device_put(host, device) for device in devices])
    return shards[0] if sharding is None else jax.make_array_from_single_device_arrays(leaf.shape, sharding, shards)


def _copies(
    host: np.ndarray, tensor: StoredTensor, bounds: tuple[Bounds, ...], kernel: bool, folder: CheckpointFolder
) -> Iterator[Callable[[], None]]:
    """Yields calls that together read the part of a tensor within `bounds`, along our axes, into `host`."""
    matrix = host.reshape(len(host), -1)  # a vector is a matrix with one column
    rows, columns = (*bounds, (0, 1))[:2]
    if len(bounds) > 2:  # only the first axis is ever sharded
        columns = (0, matrix.shape[1])
    if kernel:
        matrix, rows, columns = matrix.T, columns, rows

    def copy(first: int, stop: int) -> None:
        block = read_block(folder, tensor, (first, stop), columns)
        target = matrix[first - rows[0] : stop - rows[0]]
        for start in range(0, len(block), _STRIP):
            target[start : start + _STRIP] = block[start : start + _STRIP].astype(host.dtype, copy=False)

    return (partial(copy, *block) for block in row_blocks(tensor, rows))


def save_pretrained(
    model: VisionLanguageModel,
    directory: str | Path,
    max_shard_bytes: int = 5_000_000_000,
    *,
    generation: Generation | None = None,
) -> None:
    """Writes safetensors, `config.json` and `generation_config.json` that `transformers` loads, one tensor at a time.

    All processes must call it; the first one writes. Weights are first written under temporary names, and `config.json` is
    written last, so a directory without it is incomplete. All tensors get one type, the widest of the model's leaves.

    Args:
      directory: A local directory.
      max_shard_bytes: Maximum size of a weight file. Larger models are split into several files with an index.
      generation: Tokens that end and pad what the model writes. If None, the model's, which are its source's.

    Raises:
      CheckpointError: If the directory is a URL.
    """
    if "://" in str(directory):
        raise CheckpointError(f"{directory}: cannot write to a URL; write to a local directory and copy it")
    directory = Path(directory)
    config = model.config if generation is None else dataclasses.replace(model.config, generation=generation)
    dtype = np.dtype(jnp.result_type(*(leaf.dtype for leaf in jax.tree.leaves(model))))
    files = _plan(model, max_shard_bytes, dtype)
    writes = is_main()
    if writes:
        directory.mkdir(parents=True, exist_ok=True)
    for file, entries in files.items():
        write_tensors(directory / f"{file}.partial", entries)
    if writes:
        _publish(directory, files, config, dtype)
    wait_for_all("weights are saved")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor to write: a leaf, or one layer of it, in the type of `spec`. Kernels are transposed."""

    name: str
    leaf: jax.Array
    layer: int | None
    kernel: bool
    spec: jax.ShapeDtypeStruct


def _plan(model: VisionLanguageModel, max_shard_bytes: int, dtype: np.dtype) -> dict[str, list[Entry]]:
    """Assigns tensors to files. A tensor larger than the limit gets its own file."""
    entries: Iterator[Entry] = (
        Entry(name, leaf, layer if how.stacked else None, how.kernel, jax.ShapeDtypeStruct(how.stored_shape, dtype))
        for how, leaf in zip(_layout(model, family_of(model.config).names), jax.tree.leaves(model), strict=True)
        for layer, name in enumerate(how.names)
    )
    shards: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        if shards[-1] and filled + nbytes(entry.spec) > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += nbytes(entry.spec)
    if len(shards) == 1:
        return {_SINGLE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, start=1)}


def write_tensors(path: Path, entries: Sequence[Entry]) -> None:
    """Writes one file of tensors. All processes must call it; the first one writes."""
    specs = {entry.name: entry.spec for entry in entries}
    with TensorWriter(path, specs) if is_main() else contextlib.nullcontext() as writer:
        for entry in entries:
            _save_tensor(entry, writer)


def _save_tensor(entry: Entry, writer: TensorWriter | None) -> None:
    """Gathers a tensor on every host, and writes it if there is a writer."""
    whole = None
    if not entry.leaf.is_fully_addressable:
        whole = NamedSharding(entry.leaf.sharding.mesh, P())  # type: ignore[attr-defined]
    spec = entry.spec
    tensor = _as_stored(entry.leaf, entry.layer, kernel=entry.kernel, shape=spec.shape, dtype=spec.dtype, sharding=whole)
    if writer is not None:
        writer.append(np.asarray(tensor if whole is None else tensor.addressable_data(0)))
    else:
        # A process that runs ahead would hold many whole tensors, and on CPUs its gathers could deadlock.
        tensor.block_until_ready()


@partial(jax.jit, static_argnames=("kernel", "shape", "dtype", "sharding"))
def _as_stored(
    leaf: jax.Array,
    layer: int | None,
    *,
    kernel: bool,
    shape: tuple[int, ...],
    dtype: np.dtype,
    sharding: NamedSharding | None,
) -> jax.Array:
    # A copy, because an array keeps its numpy view alive. Without it, the model's leaves would keep their views.
    tensor = jnp.copy(leaf) if layer is None else leaf[layer]
    tensor = (tensor.T if kernel else tensor).reshape(shape).astype(dtype)
    return tensor if sharding is None else jax.lax.with_sharding_constraint(tensor, sharding)


def _publish(directory: Path, files: Mapping[str, list[Entry]], config: ModelConfig, dtype: np.dtype) -> None:
    """Renames the written files, replacing an older checkpoint; writes `config.json` last."""
    (directory / _CONFIG).unlink(missing_ok=True)
    for old in (directory / _INDEX, directory / GENERATION_FILE, *directory.glob("model*.safetensors")):
        old.unlink(missing_ok=True)
    for file in files:
        (directory / f"{file}.partial").rename(directory / file)
    for left_by_another in directory.glob("model*.safetensors.partial"):
        left_by_another.unlink()
    if len(files) > 1:
        index = {
            "metadata": {"total_size": sum(nbytes(entry.spec) for entries in files.values() for entry in entries)},
            "weight_map": {entry.name: file for file, entries in files.items() for entry in entries},
        }
        (directory / _INDEX).write_text(json.dumps(index, indent=2) + "\n")
    if config.generation.file is not None:
        (directory / GENERATION_FILE).write_text(json.dumps(config.generation.file, indent=2) + "\n")
    types = {"dtype": dtype.name, "torch_dtype": dtype.name}  # transformers 5 and 4
    with atomic_replace(directory / _CONFIG) as partial:
        partial.write_text(json.dumps(config.to_hf() | types, indent=2) + "\n")

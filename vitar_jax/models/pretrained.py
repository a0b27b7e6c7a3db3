"""Weights in and out as Hugging Face safetensors."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vitar_jax.errors import CheckpointError
from vitar_jax.models.config import ModelConfig
from vitar_jax.models.qwen2_5_vl import Qwen2_5_VL

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
# Our path of a leaf -> Hugging Face's name; `{}` is the layer of a stacked leaf.
_STACKS = (("model/layers/", "model.layers.{}."), ("visual/blocks/", "visual.blocks.{}."))
_RENAMED = {
    "visual.patch_embed.weight": "visual.patch_embed.proj.weight",
    "visual.merger.fc1.": "visual.merger.mlp.0.",
    "visual.merger.fc2.": "visual.merger.mlp.2.",
}


def leaf_paths(tree: Any) -> list[tuple[str, Any]]:
    """Leaves of a module with their paths, as `model/layers/mlp/gate_proj/kernel`."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"), leaf) for path, leaf in paths]


def hf_names(path: str, layers: int) -> tuple[str, ...]:
    """Hugging Face's names of one leaf: one name, or one for each of the stacked `layers`.

    >>> hf_names("model/layers/mlp/up_proj/kernel", 2)
    ('model.layers.0.mlp.up_proj.weight', 'model.layers.1.mlp.up_proj.weight')
    """
    name = re.sub(r"/kernel$", "/weight", path)
    name = name + "/weight" if name.endswith("embed_tokens") else name
    for ours, theirs in _STACKS:
        if path.startswith(ours):
            tail = name.removeprefix(ours).replace("/", ".")
            return tuple(theirs.format(i) + tail for i in range(layers))
    name = name.replace("/", ".")
    for ours, theirs in _RENAMED.items():
        name = name.replace(ours, theirs)
    return (name,)


def _hf_shape(path: str, shape: tuple[int, ...], config: ModelConfig) -> tuple[int, ...]:
    """The shape Hugging Face stores one (unstacked) leaf in."""
    if path == "visual/patch_embed/kernel":
        v = config.vision
        return (shape[1], v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size)
    return shape[::-1] if path.endswith("/kernel") else shape


def _is_stacked(path: str) -> bool:
    return path.startswith(tuple(ours for ours, _ in _STACKS))


def _layout(model: Qwen2_5_VL) -> Iterator[tuple[str, tuple[int, ...], tuple[str, ...], tuple[int, ...]]]:
    """Yields (our path, our shape, their names, their shape) for every leaf."""
    for path, leaf in leaf_paths(model):
        stacked = _is_stacked(path)
        names = hf_names(path, leaf.shape[0] if stacked else 1)
        yield (
            path,
            leaf.shape,
            names,
            _hf_shape(path, leaf.shape[1:] if stacked else leaf.shape, model.config),
        )


def _open_all(directory: Path) -> dict[str, Any]:
    """Name -> open safetensors file, under the names of the published files."""
    index = directory / _INDEX
    try:
        files = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {_SINGLE}
        opened = [safe_open(directory / file, framework="flax") for file in sorted(files)]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{directory}: cannot read safetensors weights ({error})") from error
    return {key: file for file in opened for key in file.keys()}


def _published_name(name: str) -> str:
    """transformers 5 nests the towers as model.visual and model.language_model in memory, not in its files."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def load_pretrained(directory: str | Path, *, dtype: str = "float32", remat: str = "none", shardings: Any = None) -> Qwen2_5_VL:
    """Reads a model from a directory that holds `config.json` and safetensors.

    Args:
      dtype: type of the weights in memory, and of computation.
      remat: what the backward pass keeps, by the name of a policy (`models/remat.py`).
      shardings: a tree of shardings like the model's, or None for the default device.

    Raises:
      ConfigError: `remat` names no policy.
      CheckpointError: unreadable files, or the one list of all missing, extra and misshapen tensors.
    """
    directory = Path(directory)
    config = ModelConfig.from_pretrained(directory, dtype=dtype, remat=remat)
    abstract = jax.eval_shape(lambda: Qwen2_5_VL(config, key=jax.random.key(0)))
    stored = _open_all(directory)
    names = {_published_name(name): name for name in stored}
    if config.text.tie_word_embeddings:
        names.pop("lm_head.weight", None)  # some files hold the tied copy too

    layout = list(_layout(abstract))
    wanted = {name: shape for _, _, leaf_names, shape in layout for name in leaf_names}
    problems = [f"missing {name}" for name in wanted if name not in names]
    problems += [f"extra {name}" for name in names if name not in wanted]
    for name in wanted.keys() & names.keys():
        shape = tuple(stored[names[name]].get_slice(names[name]).get_shape())
        if shape != wanted[name]:
            problems.append(f"misshapen {name}: {shape} in the file, {wanted[name]} in the model")
    if problems:
        raise CheckpointError(f"{directory}: {len(problems)} tensors do not fit:\n  " + "\n  ".join(sorted(problems)))

    targets = jax.tree.leaves(shardings) if shardings is not None else [None] * len(layout)
    leaves = []
    for (path, shape, leaf_names, _), target in zip(layout, targets, strict=True):
        parts = [np.asarray(stored[names[name]].get_tensor(names[name])) for name in leaf_names]
        if path.endswith("/kernel"):
            parts = [part.reshape(part.shape[0], -1).T for part in parts]
        value = np.stack(parts) if _is_stacked(path) else parts[0]
        leaves.append(jax.device_put(value.reshape(shape).astype(jnp.dtype(dtype)), target))
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def save_pretrained(model: Qwen2_5_VL, directory: str | Path) -> None:
    """Writes `config.json` and one safetensors file that `transformers` loads."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for (path, _, names, shape), (_, leaf) in zip(_layout(model), leaf_paths(model), strict=True):
        value = np.asarray(leaf)
        for name, part in zip(names, value if _is_stacked(path) else [value], strict=True):
            tensors[name] = np.ascontiguousarray((part.T if path.endswith("/kernel") else part).reshape(shape))
    save_file(tensors, directory / _SINGLE, metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(model.config.to_hf(), indent=2) + "\n")

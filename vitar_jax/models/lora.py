"""LoRA (Hu et al., 2021, arXiv 2106.09685): adds adapters to a model, merges them into it, and writes them for `peft`."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from vitar_jax.errors import ConfigError
from vitar_jax.models.layers import Linear, LowRank
from vitar_jax.models.pretrained import Entry, leaf_paths, write_tensors
from vitar_jax.models.registry import family_of
from vitar_jax.runtime.distributed import is_main, wait_for_all

_PREFIX = "base_model.model."  # peft wraps a model in two modules


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """The size of the adapters, and the projections that get one.

    Attributes:
      alpha: Adapters are scaled by `alpha / rank`.
      targets: Names of projections, such as "q_proj". Every trained projection with one of these names gets an adapter.

    Raises:
      ConfigError: If the rank is below 1.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"lora.rank: got {self.rank}, expected at least 1")


def add_lora(model: Any, config: LoraConfig, key: jax.Array, admits: Callable[[str], bool]) -> Any:
    """Returns the model with an adapter for each target whose kernel's path `admits` accepts.

    Raises:
      ConfigError: If a target names no projection.
    """
    found: list[str] = []

    def add(path: Any, leaf: Any) -> Any:
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        name = path.rpartition("/")[2]
        if not isinstance(leaf, Linear) or name not in config.targets or not admits(f"{path}/kernel"):
            return leaf
        found.append(name)
        linear, kernel = _copy(leaf), leaf.kernel
        linear.lora = LowRank(
            kernel.shape,
            rank=config.rank,
            scale=config.alpha / config.rank,
            axes=kernel.get_metadata()["logical_axes"],
            key=jax.random.fold_in(key, len(found)),
        )
        return linear

    adapted = jax.tree_util.tree_map_with_path(add, model, is_leaf=_is_linear)
    if missing := set(config.targets).difference(found):
        raise ConfigError(f"lora.targets: no trained projection is named {', '.join(sorted(missing))}")
    return adapted


def merge_lora(model: Any) -> Any:
    """Returns the model with adapters merged into their kernels, in fp32. Other kernels are unchanged."""

    def merge(leaf: Any) -> Any:
        if not isinstance(leaf, Linear) or leaf.lora is None:
            return leaf
        linear = _copy(leaf)
        linear.kernel = nnx.Param(leaf.kernel[...] + leaf.lora.product(), **leaf.kernel.get_metadata())
        linear.lora = None
        return linear

    return jax.tree.map(merge, model, is_leaf=_is_linear)


def _is_linear(leaf: Any) -> bool:
    return isinstance(leaf, Linear)


def _copy(linear: Linear) -> Linear:
    return jax.tree.map(lambda leaf: leaf, linear)


def save_adapter(model: Any, config: LoraConfig, directory: Path, base: str) -> None:
    """Writes the adapters of a model as `peft` loads them. All processes must call it.

    Args:
      base: The checkpoint that the adapters belong to.
    """
    entries = list(_entries(model))
    if is_main():
        directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory / "adapter_model.safetensors", entries)
    if is_main():
        described = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": config.rank,
            "lora_alpha": config.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "target_modules": sorted({entry.name.removeprefix(_PREFIX).rpartition(".lora_")[0] for entry in entries}),
        }
        (directory / "adapter_config.json").write_text(json.dumps(described, indent=2) + "\n")
    wait_for_all("the adapter is saved")


def _entries(model: Any) -> Iterator[Entry]:
    """Yields both matrices of each layer's adapters under peft's names: base_model.model.MODULE.lora_A.weight."""
    names = family_of(model.config).names
    for path, leaf in leaf_paths(model):
        projection, found, matrix = path.rpartition("/lora/")
        if found:
            shape = leaf.shape[-2:][::-1]
            for layer, name in enumerate(names.published(f"{projection}/kernel", leaf.shape[0])):
                module = names.to_memory(name).removesuffix(".weight")  # peft sees the module in memory
                yield Entry(
                    f"{_PREFIX}{module}.lora_{matrix.upper()}.weight",
                    leaf,
                    layer if leaf.ndim == 3 else None,
                    True,
                    jax.ShapeDtypeStruct(shape, leaf.dtype),
                )

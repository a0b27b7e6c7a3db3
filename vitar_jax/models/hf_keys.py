"""Reads sections of Hugging Face's `config.json`, whose keys are read, fixed to one value, or ignored."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from vitar_jax.errors import CheckpointError, ConfigError
from vitar_jax.runtime.config import to_dataclass

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclasses.dataclass(frozen=True)
class Keys:
    """How a family treats each key of one section of `config.json`.

    A key in none of the three groups is ignored too, because transformers' class does not have it.

    Attributes:
      read: Keys that the family's configuration is built from.
      fixed: Keys whose values the family's code assumes, with the allowed values. Null stands for a missing key. Each element
        of a list must be allowed.
      ignored: Keys that do not change the model's outputs, by the reason.
    """

    read: Collection[str]
    fixed: Mapping[str, Collection[Any]]
    ignored: Mapping[str, Collection[str]]

    @property
    def known(self) -> set[str]:
        """All keys of the three groups."""
        return {*self.read, *self.fixed, *(key for keys in self.ignored.values() for key in keys)}

    def check(self, values: Mapping[str, Any], where: str = "") -> None:
        """Checks the keys with fixed values.

        Args:
          where: Prefix of the section's keys in messages, such as "text_config.".

        Raises:
          CheckpointError: If a key has a value that the family does not compute.
        """
        for key, allowed in self.fixed.items():
            value = values.get(key)
            for element in value if isinstance(value, list) else [value]:
                if element is not None and element not in allowed:
                    expected = " or ".join(map(repr, allowed)) or "null"
                    raise CheckpointError(f"{where}{key}: got {element!r:.80}, expected {expected}")


_Config = TypeVar("_Config", bound="DataclassInstance")
_ROPE_SECTIONS = ("rope_scaling", "rope_parameters")  # of transformers 4 and 5


def check_rope(values: Mapping[str, Any], keys: Keys, where: str = "") -> None:
    """Checks the settings of a rotary embedding under both of their names.

    Args:
      values: The section that contains the settings.

    Raises:
      CheckpointError: If the type of the embedding is not one that the family computes.
    """
    for name in _ROPE_SECTIONS:
        if (settings := values.get(name)) is not None:
            if not isinstance(settings, dict):
                raise CheckpointError(f"{where}{name}: got {settings!r}, expected an object")
            keys.check(settings, f"{where}{name}.")


def read_rope(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Returns `mrope_section` and `rope_theta`, if they are set. They may be in several places with the same value.

    Raises:
      CheckpointError: If two places contradict each other.
    """
    places = {f"{where}{name}.": values.get(name) or {} for name in _ROPE_SECTIONS} | {where: values}
    read: dict[str, Any] = {}
    for name in ("mrope_section", "rope_theta"):
        for place, settings in places.items():
            if (value := settings.get(name)) is None:
                continue
            if read.setdefault(name, value) != value:
                raise CheckpointError(f"{place}{name}: got {value!r}, but {read[name]!r} elsewhere; expected one value")
    return read


TOKEN_IDS = ("image_token_id", "vision_start_token_id", "vision_end_token_id", "video_token_id")


def token_ids(hf: Mapping[str, Any]) -> dict[str, int]:
    """Returns the ids of the special tokens of images and videos.

    Raises:
      CheckpointError: If an id is missing or null.
    """
    for name in TOKEN_IDS:
        value = hf.get(name)
        if type(value) is not int or value < 0:
            raise CheckpointError(f"{name}: got {value!r}, expected a token's id")
    return {name: hf[name] for name in TOKEN_IDS}


def section(hf: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    """Returns a section, or None if it is missing or null.

    Raises:
      CheckpointError: If it is not an object.
    """
    found = hf.get(key)
    if not isinstance(found, dict | None):
        raise CheckpointError(f"{key}: got {found!r}, expected an object")
    return found


def read_section(cls: type[_Config], values: Mapping[str, Any], where: str) -> _Config:
    """Builds a dataclass from the keys that are its fields, with checked types. Counts and sizes are positive.

    Raises:
      CheckpointError: If a key is missing or has a wrong value.
    """
    fields = [field.name for field in dataclasses.fields(cls)]
    try:
        read = to_dataclass(cls, {name: values[name] for name in fields if name in values}, "")
    except ConfigError as error:
        raise CheckpointError(f"{where}{str(error).removeprefix('.')}") from error
    for name in fields:
        value = getattr(read, name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
            raise CheckpointError(f"{where}{name}: got {value}, expected more than 0")
    return read


def check_sizes(config: Any, own: Iterable[tuple[bool, str]], where: str = "") -> None:
    """Checks the sizes of a family's configuration against each other: those of all families, and its `own`.

    Args:
      own: Pairs of whether sizes fit, and the message if they do not.
      where: Prefix of the decoder's keys in messages, such as "text_config.".

    Raises:
      CheckpointError: If two sizes contradict each other. The message names the key.
    """
    text, vision = config.text, config.vision
    shared = (
        (
            min(text.mrope_section) >= 0 and 2 * sum(text.mrope_section) == text.head_dim,
            f"{where}mrope_section: got {text.mrope_section}, expected a sum of {text.head_dim / 2:g}, half the width of a "
            "head",
        ),
        (
            vision.out_hidden_size == text.hidden_size,
            f"vision_config.out_hidden_size: got {vision.out_hidden_size}, expected hidden_size {text.hidden_size}",
        ),
        (
            vision.hidden_size % (4 * vision.num_heads) == 0,
            f"vision_config.num_heads: got {vision.num_heads}, expected heads whose width is a multiple of 4, "
            f"of hidden_size {vision.hidden_size}",
        ),
        *(
            (getattr(config, name) < text.vocab_size, f"{name}: got {getattr(config, name)}, expected less than vocab_size")
            for name in TOKEN_IDS
        ),
    )
    for fits, message in (*own, *shared):
        if not fits:
            raise CheckpointError(message)


# Of transformers' base class, version 5 and 4. They occur in each section.
BASE_FIXED: Mapping[str, Collection[Any]] = {
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "compression_config": (),
    "cross_attention_hidden_size": (),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "per_layer_config": (),
    "pruned_heads": ({},),
    "quantization_config": (),
    "tie_encoder_decoder": (False,),
    "transformers_weights": ("model.safetensors", "model.safetensors.index.json"),
}
BASE_IGNORED: Mapping[str, Collection[str]] = {
    "describes the file": ("_name_or_path", "_commit_hash", "architectures", "transformers_version"),
    "custom code is never run": ("auto_map",),
    "the tensors have their own types, and the caller chooses the type in memory": ("dtype", "torch_dtype", "use_bfloat16"),
    "what transformers computes with, or returns": (
        *("attn_implementation", "_attn_implementation", "_attn_implementation_autoset", "experts_implementation"),
        *("output_attentions", "output_hidden_states", "return_dict", "torchscript", "use_cache"),
    ),
    "heads of classifiers": ("finetuning_task", "id2label", "label2id", "num_labels", "problem_type"),
}

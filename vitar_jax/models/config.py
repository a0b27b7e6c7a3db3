"""The interface that the configurations of all model families share."""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self

import jax

from vitar_jax.errors import CheckpointError
from vitar_jax.models.attention import find_back_end
from vitar_jax.models.generation import Generation
from vitar_jax.models.remat import check_policy
from vitar_jax.models.rope import Rotary
from vitar_jax.processing.chat import Chat
from vitar_jax.processing.images import ImageProcessor
from vitar_jax.processing.positions import VisionLayout


class TextSizes(Protocol):
    """The sizes that every family's decoder configuration has. Names are Hugging Face's."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def tie_word_embeddings(self) -> bool: ...

    def rotary(self, position_ids: jax.Array) -> Rotary:
        """Returns cosines and sines [*B, S, E/2] of position ids [*B, 3, S]."""
        ...


class VisionSizes(Protocol):
    """The sizes that every family's vision configuration has."""

    @property
    def spatial_merge_size(self) -> int: ...
    @property
    def patch_size(self) -> int: ...
    @property
    def patch_shape(self) -> tuple[int, int, int, int]: ...
    @property
    def patch_width(self) -> int: ...


class TowerSizes:
    """The sizes that follow from the fields of a vision tower's configuration."""

    hidden_size: int
    num_heads: int
    in_channels: int
    temporal_patch_size: int
    patch_size: int

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_shape(self) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of one patch."""
        return self.in_channels, self.temporal_patch_size, self.patch_size, self.patch_size

    @property
    def patch_width(self) -> int:
        """Number of values in one patch."""
        return math.prod(self.patch_shape)


@dataclasses.dataclass(frozen=True)
class ModelConfig(abc.ABC):
    """Sizes and constants of a model, and settings of its computation. Each family has a subclass.

    Attributes:
      image_token_id, vision_start_token_id, vision_end_token_id, video_token_id: Ids of special tokens. No compiled program
        depends on them, so a configuration for planning may leave them 0.
      dtype: Type of activations. Weights keep their own type.
      remat: Policy for what the backward pass keeps of a layer (`models/remat.py`).
      attention: Back end that computes attention over whole rows (`models/attention.py`).
      generation: Tokens that end and pad what the model writes. No compiled program depends on them, so configurations that
        differ only here are equal.

    Raises:
      ConfigError: If `remat` is not a policy, or `attention` is not a back end that supports `dtype`.
    """

    model_type: ClassVar[str]  # in `config.json`

    text: TextSizes
    vision: VisionSizes
    image_token_id: int = 0
    vision_start_token_id: int = 0
    vision_end_token_id: int = 0
    video_token_id: int = 0
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "xla"
    generation: Generation = dataclasses.field(default_factory=Generation, compare=False)

    def __post_init__(self) -> None:
        check_policy(self.remat, "remat")
        find_back_end(self.attention, dtype=self.dtype)

    @property
    def mask_side(self) -> int | None:
        """Side of the image that masks are made from; None in a family that makes no masks."""
        return None

    def check_processor(self, chat: Chat, images: ImageProcessor) -> None:
        """Checks that the tokens and patches of a processor are those of the model.

        Raises:
          CheckpointError: If a token has no row in the embedding, or a special token or a size of the patches differs.
        """
        if chat.vocab_size > self.text.vocab_size:
            raise CheckpointError(
                f"tokenizer.json: got ids up to {chat.vocab_size - 1}, expected less than vocab_size {self.text.vocab_size} of "
                "config.json; take the model's tokenizer, or enlarge the model's embedding"
            )
        for name, ours, theirs in (
            ("image_token_id", self.image_token_id, chat.image_pad),
            ("video_token_id", self.video_token_id, chat.video_pad),
            ("vision_start_token_id", self.vision_start_token_id, chat.vision_start),
            ("vision_end_token_id", self.vision_end_token_id, chat.vision_end),
            ("patch_size", self.vision.patch_size, images.patch_size),
            ("temporal_patch_size", self.vision.patch_shape[1], images.temporal_patch_size),
            ("spatial_merge_size", self.vision.spatial_merge_size, images.merge_size),
        ):
            if ours != theirs:
                raise CheckpointError(f"config.json: {name}: got {ours}, expected {theirs}, as the processor has it")

    @property
    def injection_levels(self) -> int:
        """Number of decoder layers after which image features are added to the hidden states (DeepStack)."""
        return 0

    @property
    def feature_width(self) -> int:
        """Width of a vision feature: the embedding of a token, followed by the levels that decoder layers add."""
        return self.text.hidden_size * (1 + self.injection_levels)

    @classmethod
    @abc.abstractmethod
    def from_hf(cls, hf: Mapping[str, Any], **computation: Any) -> Self:
        """Reads the dictionary in Hugging Face's `config.json`.

        Args:
          computation: Values of `dtype`, `remat`, `attention` and `generation`.

        Raises:
          CheckpointError: If a feature is not supported or a key is missing.
        """

    @property
    @abc.abstractmethod
    def layout(self) -> VisionLayout:
        """Layout of images for the vision tower."""

    @abc.abstractmethod
    def to_hf(self) -> dict[str, Any]:
        """Returns the dictionary that the family's configuration class in transformers reads, with `generation`'s ids."""

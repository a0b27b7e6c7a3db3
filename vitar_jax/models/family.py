"""A model family: everything that the package needs to know about models of one architecture."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from vitar_jax.models.config import ModelConfig
from vitar_jax.models.flops import Products
from vitar_jax.models.names import TensorNames
from vitar_jax.models.vision_language import VisionLanguageModel

LanguagePart = Literal["vision", "merger", "decoder", "embeddings", "head"]
MaskPart = Literal["bridge", "mask_decoder", "mask_encoder"]
Part = Literal[LanguagePart, MaskPart]  # parts of a model, which are trained or frozen
PARTS: tuple[Part, ...] = get_args(LanguagePart)  # of every family
MASK_PARTS: tuple[Part, ...] = get_args(MaskPart)  # of a family that outlines what it names


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
      config: Configuration class.
      text, vision: Classes of the configuration's `text` and `vision`, whose fields recipes may set.
      model: Model class.
      parts: Prefixes of parameter paths, with the part that each belongs to. The first match counts.
      names: Names of tensors in Hugging Face's files.
      sizes: Configurations of published models, by name.
      products: Counts the matrix products of each part; a part comes after the parts whose outputs it reads. Takes the
        configuration and the numbers of `images`, `windows`, `window_patches`, `rows`, `tokens` per row and `scored_tokens`. A
        family that makes masks also takes the numbers of images to encode for masks (`mask_images`), of sets of masks of one
        image (`mask_entries`), and of masks in all sets (`masks`).
      masks: Class of the configuration's `sam2`, whose fields recipes may set. None in a family that makes no masks.
    """

    config: type[ModelConfig]
    text: type[Any]
    vision: type[Any]
    model: Callable[..., VisionLanguageModel]
    parts: tuple[tuple[str, Part], ...]
    names: TensorNames
    sizes: Mapping[str, ModelConfig]
    products: Callable[..., dict[Part, Products]]
    masks: type[Any] | None = None

    @property
    def model_type(self) -> str:
        """The name in `config.json` and in recipes."""
        return self.config.model_type

    def part_of(self, path: str) -> Part:
        """Returns the part that a parameter belongs to, such as "decoder" for `model/layers/mlp/up_proj/kernel`."""
        return next(part for prefix, part in self.parts if path.startswith(prefix))

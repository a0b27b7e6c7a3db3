"""Configuration of Sa2VA on Qwen3-VL, whose files have Qwen3-VL's keys."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from vitar_jax.errors import CheckpointError
from vitar_jax.models.hf_keys import section
from vitar_jax.models.qwen3_vl.config import Qwen3VLConfig
from vitar_jax.models.sam2.config import HIERA_LARGE, Sam2Config
from vitar_jax.processing.chat import Chat
from vitar_jax.processing.images import ImageProcessor

SEG = "[SEG]"  # the token whose state becomes a mask


@dataclasses.dataclass(frozen=True)
class Sa2VAConfig(Qwen3VLConfig):
    """A Qwen3-VL that outlines what it names.

    Attributes:
      sam2: SAM 2's sizes. Published files do not have them, and stand for SAM 2's largest. Files written here have them as
        `sam2_config`.
    """

    model_type: ClassVar[str] = "sa2va_chat"

    sam2: Sam2Config = HIERA_LARGE

    @property
    def mask_side(self) -> int:
        return self.sam2.image_size

    def check_processor(self, chat: Chat, images: ImageProcessor) -> None:
        super().check_processor(chat, images)
        try:
            chat.token_id(SEG)
        except CheckpointError as error:
            raise CheckpointError(
                f"tokenizer.json: has no token {SEG}, whose states become masks; take the model's tokenizer"
            ) from error

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], **computation: Any) -> Self:
        """Reads the published form. Other language models than Qwen3-VL, which have this `model_type` too, are refused.

        Raises:
          CheckpointError: As `Qwen3VLConfig.from_hf` and `Sam2Config.from_hf`.
        """
        sam2 = section(hf, "sam2_config")
        # The key outside text_config may be that of the Qwen3-VL from which the model was made, which ties its head.
        text = section(hf, "text_config") or {}
        untied = {**hf, "tie_word_embeddings": bool(text.get("tie_word_embeddings"))}
        return super().from_hf(
            untied, sam2=HIERA_LARGE if sam2 is None else Sam2Config.from_hf(sam2, "sam2_config."), **computation
        )

    def to_hf(self) -> dict[str, Any]:
        """Returns the published form, which the published code reads, with SAM 2's sizes beside it."""
        return super().to_hf() | {"architectures": ["Sa2VAChatModelQwen"], "sam2_config": self.sam2.to_hf()}

"""Configuration of SAM 2, read from and written to Hugging Face's `config.json`."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Self

from vitar_jax.errors import CheckpointError
from vitar_jax.models.hf_keys import read_section, section
from vitar_jax.models.layers import period
from vitar_jax.models.sam2 import hf_keys

STAGES = 4
STRIDE = 32  # pixels of the image per place of the last stage's map


@dataclasses.dataclass(frozen=True)
class Run:
    """Consecutive blocks of one stage that are stored as one stack and scanned.

    Attributes:
      first: Number of the first block in the trunk.
      windows: Side of each block's attention windows. 0 is attention to the whole map.
      pools: Whether the run is the one block that halves the map and widens it to the stage's width.
    """

    first: int
    stage: int
    windows: tuple[int, ...]
    pools: bool


@dataclasses.dataclass(frozen=True)
class TrunkConfig:
    """The image encoder's trunk, Hiera (Ryali et al., 2023). Field names are Hugging Face's.

    Attributes:
      global_attention_blocks: Numbers of the blocks that attend to the whole map.
      window_positional_embedding_background_size: Rows and columns of the position table that is resized to the map.
    """

    embed_dim_per_stage: tuple[int, ...]
    num_attention_heads_per_stage: tuple[int, ...]
    blocks_per_stage: tuple[int, ...]
    window_size_per_stage: tuple[int, ...]
    global_attention_blocks: tuple[int, ...]
    window_positional_embedding_background_size: tuple[int, int] = (7, 7)
    mlp_ratio: float = 4.0

    @property
    def runs(self) -> tuple[Run, ...]:
        """The trunk's blocks in order, as runs of which each compiles as a scan over few blocks."""
        return tuple(self._runs())

    def _runs(self) -> Iterator[Run]:
        first = 0
        for stage, blocks in enumerate(self.blocks_per_stage):
            side = self.window_size_per_stage[stage]
            windows = [0 if i in self.global_attention_blocks else side for i in range(first, first + blocks)]
            if stage:
                yield Run(first, stage, (self.window_size_per_stage[stage - 1],), pools=True)
                first, windows = first + 1, windows[1:]
            for part in _cut(tuple(windows)):
                yield Run(first, stage, part, pools=False)
                first += len(part)


def _cut(windows: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Cuts a sequence into at most three parts, whose periods have the smallest sum.

        w w w w w w w g w w g w w g   ->   w w w w w | (w w g) x 3
    """
    count = range(len(windows) + 1)
    cuts = ((windows[:a], windows[a:b], windows[b:]) for a in count for b in count[a:])
    return min(([part for part in cut if part] for cut in cuts), key=lambda parts: (sum(map(period, parts)), len(parts)))


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The mask decoder, and the width of the image embedding. Field names are Hugging Face's."""

    hidden_size: int = 256
    mlp_dim: int = 2048
    num_attention_heads: int = 8
    attention_downsample_rate: int = 2
    iou_head_hidden_dim: int = 256


@dataclasses.dataclass(frozen=True)
class Sam2Config:
    """SAM 2's image path and mask decoder.

    Attributes:
      image_size: Side to which every image is resized, regardless of its aspect ratio (pixels).
      mask_input_channels: Width of the prompt encoder's mask embedding, which no prompt here uses.
    """

    trunk: TrunkConfig
    decoder: DecoderConfig = DecoderConfig()
    image_size: int = 1024
    mask_input_channels: int = 16

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], where: str = "") -> Self:
        """Reads the dictionary in `config.json`. `hf_keys.py` lists what becomes of each key.

        Args:
          where: Prefix of the keys in messages, such as "sam2_config.".

        Raises:
          CheckpointError: If a key has a value that is not supported, or contradicts another. The message names the key.
        """
        hf_keys.TOP.check(hf, where)
        vision = _present(section(hf, "vision_config"))
        prompt = _present(section(hf, "prompt_encoder_config"))
        decoder = _present(section(hf, "mask_decoder_config"))
        trunk = _present(section(vision, "backbone_config"))
        vision_where = f"{where}vision_config."
        for keys, values, name in (
            (hf_keys.VISION, vision, vision_where),
            (hf_keys.TRUNK, trunk, f"{vision_where}backbone_config."),
            (hf_keys.PROMPT, prompt, f"{where}prompt_encoder_config."),
            (hf_keys.DECODER, decoder, f"{where}mask_decoder_config."),
        ):
            keys.check(values, name)
        config = cls(
            read_section(TrunkConfig, _TRUNK_DEFAULTS | trunk, f"{vision_where}backbone_config."),
            read_section(DecoderConfig, decoder, f"{where}mask_decoder_config."),
            _square(prompt.get("image_size", 1024)),
            prompt.get("mask_input_channels", 16),
        )
        if problem := config.problem():
            key, message = problem
            part, _, name = key.rpartition(".")
            raise CheckpointError(f"{where}{_HF_PARTS[part]}.{name}: {message}")
        config._check_repeated(vision, trunk, prompt, where)
        return config

    def problem(self) -> tuple[str, str] | None:
        """Returns the key of an impossible size, such as "trunk.blocks_per_stage", and what is wrong with it."""
        return next(((key, message) for key, fits, message in self._checks() if not fits), None)

    def _checks(self) -> Iterator[tuple[str, bool, str]]:
        """Yields keys, whether their values fit, and messages if they do not. A check relies on those before it."""
        trunk, decoder, side, channels = self.trunk, self.decoder, self.image_size, self.mask_input_channels
        for name in ("embed_dim_per_stage", "num_attention_heads_per_stage", "blocks_per_stage", "window_size_per_stage"):
            values = getattr(trunk, name)
            fits = len(values) == STAGES and min(values) > 0
            yield f"trunk.{name}", fits, f"got {values}, expected {STAGES} numbers above 0"
        for name, value, divisor in (
            ("image_size", side, STRIDE),
            ("mask_input_channels", channels, 4),
            ("decoder.hidden_size", decoder.hidden_size, 8),
        ):
            fits = type(value) is int and value > 0 and value % divisor == 0
            yield name, fits, f"got {value!r}, expected a multiple of {divisor}"
        widths, heads, windows = trunk.embed_dim_per_stage, trunk.num_attention_heads_per_stage, trunk.window_size_per_stage
        yield (
            "trunk.embed_dim_per_stage",
            all(width != other for width, other in zip(widths, widths[1:], strict=False)),
            f"got {widths}, expected another width in each stage",
        )
        yield (
            "trunk.num_attention_heads_per_stage",
            all(width % count == 0 for width, count in zip(widths, heads, strict=True)),
            f"got {heads}, expected divisors of embed_dim_per_stage {widths}",
        )
        yield (
            "trunk.window_size_per_stage",
            side // 4 % windows[0] == 0,
            f"got {windows[0]} first, expected a divisor of the first map's side, {side} / 4",
        )
        yield (
            "trunk.window_size_per_stage",
            all(window % 2 == 0 for window in windows[:-1]),
            f"got {windows}, expected even numbers before the last, because maps are halved",
        )
        blocks, pooling = sum(trunk.blocks_per_stage), {run.first for run in trunk.runs if run.pools}
        whole = trunk.global_attention_blocks
        yield (
            "trunk.global_attention_blocks",
            {*whole} <= {*range(blocks)} - pooling,
            f"got {whole}, expected blocks below {blocks} without {sorted(pooling)}, which halve the map",
        )
        background = trunk.window_positional_embedding_background_size
        yield (
            "trunk.window_positional_embedding_background_size",
            min(background) > 0,
            f"got {background}, expected numbers above 0",
        )
        count, rate = decoder.num_attention_heads, decoder.attention_downsample_rate
        yield (
            "decoder.num_attention_heads",
            decoder.hidden_size % (count * rate) == 0,
            f"got {count}, expected a divisor of {decoder.hidden_size // rate}, the width of attention to the image",
        )

    def _check_repeated(
        self, vision: Mapping[str, Any], trunk: Mapping[str, Any], prompt: Mapping[str, Any], where: str
    ) -> None:
        """Raises CheckpointError if a size that the file repeats in several sections has two values."""
        side, width = self.image_size, self.decoder.hidden_size
        sizes = [[side // stride] * 2 for stride in (4, 8, 16)]
        for name, found, expected in (
            ("vision_config.backbone_config.image_size", _square(trunk.get("image_size", 1024)), side),
            ("vision_config.backbone_feature_sizes", vision.get("backbone_feature_sizes", _FEATURE_SIZES), sizes),
            (
                "vision_config.backbone_channel_list",
                vision.get("backbone_channel_list", _CHANNELS),
                list(self.trunk.embed_dim_per_stage[::-1]),
            ),
            ("vision_config.fpn_hidden_size", vision.get("fpn_hidden_size", 256), width),
            ("vision_config.fpn_top_down_levels", _inner(vision.get("fpn_top_down_levels", [2, 3])), [2]),
            ("prompt_encoder_config.hidden_size", prompt.get("hidden_size", 256), width),
        ):
            if found != expected:
                raise CheckpointError(f"{where}{name}: got {found}, expected {expected}")

    def to_hf(self) -> dict[str, Any]:
        """Returns the dictionary that `transformers.Sam2Config` reads."""
        trunk, decoder, side = self.trunk, self.decoder, self.image_size
        widths = list(trunk.embed_dim_per_stage)
        return {
            "architectures": ["Sam2Model"],
            "model_type": "sam2",
            "vision_config": {
                "model_type": "sam2_vision_model",
                "backbone_config": {
                    **{name: list(value) if isinstance(value, tuple) else value for name, value in vars(trunk).items()},
                    "model_type": "sam2_hiera_det_model",
                    "hidden_size": widths[0],
                    "num_attention_heads": trunk.num_attention_heads_per_stage[0],
                    "image_size": [side, side],
                },
                "backbone_channel_list": widths[::-1],
                "backbone_feature_sizes": [[side // stride] * 2 for stride in (4, 8, 16)],
                "fpn_hidden_size": decoder.hidden_size,
            },
            "prompt_encoder_config": {
                "model_type": "sam2_prompt_encoder",
                "hidden_size": decoder.hidden_size,
                "image_size": side,
                "mask_input_channels": self.mask_input_channels,
            },
            "mask_decoder_config": {"model_type": "sam2_mask_decoder", **dataclasses.asdict(decoder)},
        }


# Sections of Hugging Face's file that have the keys of ours.
_HF_PARTS = {
    "": "prompt_encoder_config",
    "trunk": "vision_config.backbone_config",
    "decoder": "mask_decoder_config",
}


def _present(values: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the keys that are not null, which stands for transformers' default."""
    return {key: value for key, value in (values or {}).items() if value is not None}


def _square(size: Any) -> Any:
    """Returns the side of a size that is given as height and width."""
    return size[0] if isinstance(size, list | tuple) and len(size) == 2 and size[0] == size[1] else size


def _inner(levels: Any) -> Any:
    """Returns the levels that receive the level above. The topmost, 3, has none above, whether it is listed or not."""
    return [level for level in levels if level != 3] if isinstance(levels, list | tuple) else levels


# Defaults of Hugging Face's classes, for files that omit keys.
_TRUNK_DEFAULTS: dict[str, Any] = {
    "embed_dim_per_stage": (96, 192, 384, 768),
    "num_attention_heads_per_stage": (1, 2, 4, 8),
    "blocks_per_stage": (1, 2, 7, 2),
    "window_size_per_stage": (8, 4, 14, 7),
    "global_attention_blocks": (5, 7, 9),
}
_CHANNELS = [768, 384, 192, 96]
_FEATURE_SIZES = [[256, 256], [128, 128], [64, 64]]

# facebook/sam2-hiera-large, which Sa2VA contains.
HIERA_LARGE = Sam2Config(
    TrunkConfig(
        embed_dim_per_stage=(144, 288, 576, 1152),
        num_attention_heads_per_stage=(2, 4, 8, 16),
        blocks_per_stage=(2, 6, 36, 4),
        window_size_per_stage=(8, 4, 16, 8),
        global_attention_blocks=(23, 33, 43),
    )
)

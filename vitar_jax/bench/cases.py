"""Cases of the model benchmark: sizes shaped like published models, and inputs that both sides get."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vitar_jax.models.config import ModelConfig, TextSizes
from vitar_jax.models.flops import BACKWARD
from vitar_jax.models.registry import DEFAULT_FAMILY, FAMILIES, family_of
from vitar_jax.processing.packing import Batch
from vitar_jax.processing.positions import Grid, SizeClass, append_positions, arrange

_FAMILY = FAMILIES[DEFAULT_FAMILY]
WORK = {
    "vision": "the vision tower on all images",
    "prefill": "from images and tokens to the logits of each row's last token, without a cache",
    "gradient": "forward and backward pass of the mean cross-entropy of each row's text, for all weights",
    "train step": "gradient, then clipping by global norm and AdamW on all weights",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and its inputs: `rows` rows of one square image and `text_tokens` text tokens.

    An image is a whole number of windows, so neither side pads.

    Attributes:
      image_side: Width and height of an image, in pixels.
      targets: Work to time, by its name in `WORK`, with the minimum speed of ours relative to the peer's. None means no target.
      dtype: Type of weights and computation, on both sides.
      remat: Our rematerialization policy in training. The peer keeps all activations.
    """

    name: str
    config: ModelConfig
    rows: int
    image_side: int
    text_tokens: int
    targets: Mapping[str, float | None]
    dtype: str = "float32"
    remat: str = "none"

    @property
    def grid(self) -> Grid:
        patches = self.image_side // self.config.vision.patch_size
        return (1, patches, patches)

    @property
    def image_tokens(self) -> int:
        return self.grid[1] * self.grid[2] // self.config.vision.spatial_merge_size**2

    @property
    def size_class(self) -> SizeClass:
        window = self.config.layout.window_size or self.image_side
        return SizeClass((self.image_side // window) ** 2, (window // self.config.vision.patch_size) ** 2)

    def flops(self, work: str) -> int:
        """Returns the FLOPs of a work of `WORK`."""
        products = family_of(self.config).products(
            self.config,
            images=self.rows,
            **dataclasses.asdict(self.size_class),
            rows=self.rows,
            tokens=self.image_tokens + self.text_tokens,
            scored_tokens=self.rows * (1 if work == "prefill" else self.text_tokens - 2),
        )
        parts = ("vision", "merger") if work == "vision" else tuple(products)
        flops = sum(products[part].weights + products[part].attention for part in parts)
        return flops if work in ("vision", "prefill") else (1 + BACKWARD) * flops


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of a case, in our layout and in the peer's.

    Attributes:
      batch: Our device batch, with one bin.
      token_ids, loss_mask: [rows, S].
      position_ids: [3, rows, S].
      patches: [rows * h * w, C] in the image processor's order.
      feature_slots: Index of an image's k-th token among our features of the image.
    """

    batch: Batch
    token_ids: np.ndarray
    loss_mask: np.ndarray
    position_ids: np.ndarray
    patches: np.ndarray
    feature_slots: np.ndarray


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    """Returns random rows of images and tokens: <vision_start> image <vision_end> text."""
    rng = np.random.default_rng(seed)
    config, vision = case.config, case.config.vision
    geometry: dict[str, Any] = {"patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size}
    count, tokens = case.image_tokens, case.image_tokens + case.text_tokens
    is_image = (np.arange(tokens) >= 1) & (np.arange(tokens) <= count)
    is_text = np.arange(tokens) > count + 1
    token_ids = rng.integers(0, config.vision_end_token_id, (case.rows, tokens))
    token_ids[:, 0], token_ids[:, count + 1] = config.vision_start_token_id, config.vision_end_token_id
    token_ids[:, is_image] = config.image_token_id
    position_ids, _ = append_positions(
        0,
        token_ids[0],
        [case.grid],
        image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
        merge_size=vision.spatial_merge_size,
        tokens_per_second=config.layout.tokens_per_second or 0,
    )
    position_ids = np.repeat(position_ids[:, None], case.rows, axis=1)
    loss_mask = np.broadcast_to(is_text, token_ids.shape)

    patches = rng.normal(size=(case.rows, case.grid[1] * case.grid[2], vision.patch_width)).astype(np.float32)
    laid_out = [arrange(p, case.grid, case.size_class, window_size=config.layout.window_size, **geometry) for p in patches]
    feature_slots = laid_out[0][2]
    index = np.full(token_ids.shape, -1)
    index[:, is_image] = np.arange(case.rows)[:, None] * count + feature_slots
    batch = Batch(
        token_ids=token_ids.astype(np.int32),
        segment_ids=np.ones(token_ids.shape, np.int32),
        loss_mask=loss_mask,
        vision_index=index.astype(np.int32),
        position_ids=position_ids,
        pixels=np.stack([pixels for pixels, _, _ in laid_out]),
        patch_positions=np.stack([p.reshape(*dataclasses.astuple(case.size_class), 2) for _, p, _ in laid_out]),
    )
    return Inputs(
        batch=jax.tree.map(lambda array: array[None], batch),
        token_ids=token_ids,
        loss_mask=loss_mask,
        position_ids=position_ids,
        patches=patches.reshape(-1, vision.patch_width),
        feature_slots=feature_slots,
    )


def model_config(text: TextSizes, *, depth: int, width: int, mlp: int, heads: int, dtype: str) -> ModelConfig:
    """Returns a model config whose last four ids are the vision tokens. Every eighth vision layer has full attention."""
    vision = _FAMILY.vision(
        depth=depth,
        hidden_size=width,
        intermediate_size=mlp,
        num_heads=heads,
        out_hidden_size=text.hidden_size,
        fullatt_block_indexes=tuple(range(7, depth, 8)) or (depth - 1,),
    )
    end, start, video, image = range(text.vocab_size - 4, text.vocab_size)
    return _FAMILY.config(text, vision, image, start, end, video, dtype=dtype)


def deepstack_config(
    text: tuple[int, ...], *, depth: int, width: int, mlp: int, heads: int, taken: tuple[int, ...]
) -> ModelConfig:
    """Returns a config of Qwen3-VL whose last four ids are the vision tokens.

    Args:
      text: Vocabulary, width, width of the MLP, layers, heads, key-value heads and width of a head.
      depth, width, mlp, heads, taken: Sizes of the tower, and its blocks that DeepStack takes.
    """
    family = FAMILIES["qwen3_vl"]
    half = text[-1] // 2
    sections = (half - 2 * (half // 3), half // 3, half // 3)
    end, start, video, image = range(text[0] - 4, text[0])
    return family.config(
        family.text(*text, sections, tie_word_embeddings=True),
        family.vision(depth, width, mlp, heads, out_hidden_size=text[1], deepstack_visual_indexes=taken),
        image,
        start,
        end,
        video,
    )


def without_deepstack(config: ModelConfig) -> ModelConfig:
    """Returns the config of a model whose tower gives the decoder nothing after its embeddings."""
    vision: Any = config.vision
    return dataclasses.replace(config, vision=dataclasses.replace(vision, deepstack_visual_indexes=()))


def _text(vocab: int, width: int, mlp: int, layers: int, heads: int, kv_heads: int, *, tie: bool = True) -> TextSizes:
    eighth = width // heads // 16
    sections = (2 * eighth, 3 * eighth, 3 * eighth)
    return _FAMILY.text(vocab, width, mlp, layers, heads, kv_heads, sections, tie_word_embeddings=tie)


_ON_CPU = {"vision": 1.0, "prefill": 0.9, "train step": 0.9}
_3B = model_config(_text(151_936, 2048, 11_008, 36, 16, 2), depth=32, width=1280, mlp=3420, heads=16, dtype="bfloat16")
_7B = model_config(
    _text(152_064, 3584, 18_944, 28, 28, 4, tie=False), depth=32, width=1280, mlp=3420, heads=16, dtype="bfloat16"
)
CASES = {
    case.name: case
    for case in (
        Case(
            "10m",
            model_config(_text(8192, 256, 1376, 4, 4, 2), depth=8, width=160, mlp=428, heads=2, dtype="float32"),
            rows=2,
            image_side=448,
            text_tokens=256,
            targets=_ON_CPU,
        ),
        Case(
            "150m",
            model_config(_text(16_384, 768, 4128, 8, 6, 2), depth=16, width=480, mlp=1284, heads=6, dtype="float32"),
            rows=1,
            image_side=448,
            text_tokens=256,
            targets=_ON_CPU | {"prefill": 0.75, "train step": 0.75},
        ),
        Case(
            "qwen3_10m",
            deepstack_config((8192, 256, 640, 4, 4, 2, 64), depth=8, width=160, mlp=640, heads=2, taken=(1, 3, 5)),
            rows=2,
            image_side=448,
            text_tokens=256,
            targets=_ON_CPU,
        ),
        Case(
            "qwen3_150m",
            deepstack_config((16_384, 768, 3072, 8, 6, 2, 128), depth=16, width=480, mlp=1920, heads=6, taken=(3, 7, 11)),
            rows=1,
            image_side=448,
            text_tokens=256,
            targets=_ON_CPU | {"prefill": 0.75, "train step": 0.75},
        ),
        Case(
            "3b",
            _3B,
            rows=2,
            image_side=1008,
            text_tokens=752,
            targets={"vision": None, "prefill": None, "train step": None},
            dtype="bfloat16",
            remat="dots",
        ),
        Case(
            "7b",
            _7B,
            rows=2,
            image_side=1008,
            text_tokens=752,
            targets={"prefill": None, "gradient": None},
            dtype="bfloat16",
            remat="dots",
        ),
    )
}
ON_CPU, ON_GPU = ("10m", "150m", "qwen3_10m", "qwen3_150m"), ("3b", "7b")
# Of `bench device`: what a device computes with these is compared with stored logits, and a CPU measures the first.
TINY = {
    case.name: case
    for case in (
        Case(
            "tiny",
            model_config(_text(288, 256, 384, 2, 2, 1), depth=2, width=160, mlp=320, heads=2, dtype="float32"),
            rows=2,
            image_side=224,
            text_tokens=24,
            targets={},
        ),
        Case(
            "qwen3_tiny",
            deepstack_config((288, 128, 256, 3, 2, 1, 128), depth=3, width=144, mlp=320, heads=2, taken=(0, 1)),
            rows=2,
            image_side=224,
            text_tokens=24,
            targets={},
        ),
    )
}

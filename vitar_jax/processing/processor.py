"""Input processing of a model: chat, images, and the static shapes that images are padded to."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32
from PIL import Image

from vitar_jax.errors import ConfigError, DataError, ImageError
from vitar_jax.processing.chat import Chat
from vitar_jax.processing.files import MAX_ASPECT_RATIO
from vitar_jax.processing.images import ImageProcessor, ProcessedImage
from vitar_jax.processing.positions import Grid, SizeClass, VisionLayout, append_positions, arrange, smallest_class


@dataclasses.dataclass(frozen=True)
class Processor:
    """The input processing of a model, which turns chat and images into arrays.

    Attributes:
      size_classes: Static shapes of one image on the device. Rollout compiles one program per size class.
      layout: How the model family's vision tower takes images.

    Raises:
      ConfigError: If a size class has several windows, and the model family has no windows.
    """

    chat: Chat
    images: ImageProcessor
    size_classes: tuple[SizeClass, ...]
    layout: VisionLayout

    def __post_init__(self) -> None:
        for size in self.size_classes:
            if size.windows > 1 and not self.layout.window_size:
                raise ConfigError(
                    f"config.processor.size_classes: got {size.windows} windows of {size.window_patches} patches, expected "
                    f"one window of {size.slots}; this model family has no windows"
                )

    def allowing(self, tokens: Iterable[str]) -> "Processor":
        """Returns a processor whose chat does not ban these added tokens; see `Chat.allowing`."""
        return dataclasses.replace(self, chat=self.chat.allowing(tokens))

    def process(self, image: Image.Image) -> ProcessedImage:
        """Returns the patches of an image.

        Raises:
          ImageError: If its aspect ratio is too extreme, or it fits no size class.
        """
        processed = self.images(image)
        self.size_class(processed.grid_thw)
        return processed

    def size_class(self, grid_thw: Grid) -> SizeClass:
        """Returns the smallest size class that fits an image, or each slice of a video."""
        return self.size_classes[smallest_class((1, *grid_thw[1:]), self.size_classes, **self._geometry)]

    def fitting_aspect_ratio(self) -> float:
        """Returns the aspect ratio up to which images of every size fit a size class; 0 if some square image does not.

        `images` admits ratios up to `MAX_ASPECT_RATIO`. A thin image has more windows than a square one of as many pixels.
        """
        fitting = 0.0
        for ratio in np.geomspace(1, MAX_ASPECT_RATIO, 1000):
            # Far more pixels than the budget, nearly as many, and so few that the image is enlarged.
            areas = 1e4 * self.images.max_pixels, 0.99 * self.images.max_pixels, 0.5 * self.images.min_pixels
            for height in (math.sqrt(area / ratio) for area in areas):
                sides = math.ceil(height), math.floor(math.ceil(height) * ratio)
                for size in (sides, sides[::-1]):
                    rows, columns = (side // self.images.patch_size for side in self.images.target_size(*size))
                    try:
                        self.size_class((1, rows, columns))
                    except ImageError:
                        return fitting
            fitting = float(ratio)
        return fitting

    def tokens(self, grid_thw: Grid) -> int:
        """Returns the number of tokens of an image or a video in a sequence."""
        return grid_thw[0] * grid_thw[1] * grid_thw[2] // self.images.merge_size**2

    def append_positions(
        self,
        next_position: int,
        token_ids: Sequence[int] | np.ndarray,
        grids: Sequence[Grid],
        seconds_per_grid: Sequence[float] = (),
    ) -> tuple[Int32[np.ndarray, "3 n"], int]:
        """Returns the M-RoPE ids of appended tokens, and the next position. See `positions.append_positions`.

        Raises:
          DataError: If there is a video, and the model family's videos are not supported.
        """
        if self.layout.tokens_per_second is None and np.isin(self.chat.video_pad, token_ids):
            raise DataError("got a video; videos are not supported for this model family, only images")
        return append_positions(
            next_position,
            token_ids,
            grids,
            image_token_id=self.chat.image_pad,
            video_token_id=self.chat.video_pad,
            merge_size=self.images.merge_size,
            tokens_per_second=self.layout.tokens_per_second or 0,
            seconds_per_grid=seconds_per_grid,
        )

    @property
    def patch_width(self) -> int:
        """Number of values per patch."""
        return 3 * self.images.temporal_patch_size * self.images.patch_size**2

    def features(self, size_class: SizeClass) -> int:
        """Returns the number of features per image of a size class, including padding."""
        return size_class.slots // self.images.merge_size**2

    def arrange(
        self, patches: np.ndarray, grid_thw: Grid, size_class: SizeClass, into: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lays out one image in a size class: pixels [P, C], patch_positions [W, X, 2] and feature_slots [tokens].

        See `positions.arrange`, also for `into`.
        """
        pixels, positions, slots = arrange(patches, grid_thw, size_class, into=into, **self._geometry)
        return pixels, positions.reshape(size_class.windows, size_class.window_patches, 2), slots

    @property
    def _geometry(self) -> dict[str, int]:
        return {
            "window_size": self.layout.window_size,
            "patch_size": self.images.patch_size,
            "merge_size": self.images.merge_size,
        }

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes the tokenizer and the image settings into a checkpoint directory."""
        self.chat.save_pretrained(directory)
        self.images.save_pretrained(directory)

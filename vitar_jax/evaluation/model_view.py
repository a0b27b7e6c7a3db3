"""Images as the model sees them, for reports and figures."""

from PIL import Image

from vitar_jax.episodes.trajectory import TrajectoryImage


def as_seen(image: TrajectoryImage) -> Image.Image:
    """Resizes an image to the size that the model sees, as its processor does."""
    height, width = image.size
    if image.pixels.size == (width, height):
        return image.pixels
    return image.pixels.resize((width, height), Image.Resampling.BICUBIC)

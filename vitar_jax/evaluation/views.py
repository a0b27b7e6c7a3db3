"""What a turn looked at, for reports and figures."""

from PIL import Image

from vitar_jax.episodes.trajectory import TrajectoryImage, Turn


def image_acted_on(turn: Turn) -> int:
    """The image index that a turn's action names: 0 where it names none, or nothing that is an index."""
    arguments = (turn.action or {}).get("arguments")
    image = arguments.get("image", 0) if isinstance(arguments, dict) else 0
    return image if isinstance(image, int) and image >= 0 else 0


def as_seen(image: TrajectoryImage) -> Image.Image:
    """The image at the size that the model sees, resized as its processor does."""
    height, width = image.size
    if image.pixels.size == (width, height):
        return image.pixels
    return image.pixels.resize((width, height), Image.Resampling.BICUBIC)

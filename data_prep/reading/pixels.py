"""Images without the metadata of their files: comments, EXIF, text and colour profiles may name a patient."""

import io

from PIL import Image


def only_pixels(image: Image.Image) -> Image.Image:
    """Returns a copy without metadata. An opened image carries that of its file, and PIL writes some of it to a new file."""
    return Image.frombytes(image.mode, image.size, image.tobytes())


def png_of(image: Image.Image) -> bytes:
    """Encodes an image of mode 'L' or 'RGB' as PNG, without metadata."""
    content = io.BytesIO()
    only_pixels(image).save(content, "PNG")
    return content.getvalue()

"""A conversation with images as Hugging Face's processors make it, from a tokenizer and an image processor of theirs.

Their processors of Qwen's families need torchvision, also where no video is read. The tokenizer and the image processor do not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image


def hf_prompt(
    tokenizer: Any, images: Any, image_token_id: int, messages: Sequence[Mapping[str, Any]], pictures: Sequence[Image.Image]
) -> tuple[list[int], dict[str, Any]]:
    """Returns the tokens of a prompt by the tokenizer's own chat template, and the image processor's tensors.

    Args:
      tokenizer, images: What `AutoTokenizer` and `AutoImageProcessor` of transformers return.
      messages: The conversation in the form of the template, whose parts {"type": "image"} stand for `pictures`, in order.
    """
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if not pictures:
        return tokenizer.encode(text, add_special_tokens=False), {}
    seen = images([picture.convert("RGB") for picture in pictures], return_tensors="pt")
    counts = (seen["image_grid_thw"].prod(dim=1) // images.merge_size**2).tolist()
    pad = tokenizer.decode([image_token_id])
    head, *rest = text.split(pad)
    whole = head + "".join(pad * count + part for count, part in zip(counts, rest, strict=True))
    return tokenizer.encode(whole, add_special_tokens=False), dict(seen)

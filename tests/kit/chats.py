"""Conversations, and the tokens that Hugging Face's templates turn them into."""

import re
from collections.abc import Sequence
from typing import Any

from vitar_jax.processing.chat import Content, Message, Video

SYSTEM: Message = ("system", ["You are an assistant for medical images."])


CONVERSATIONS: dict[str, list[Message]] = {
    "one image": [SYSTEM, ("user", [12, "Where is the lesion?\nOptions:\nA left\nB right"])],
    "text only": [SYSTEM, ("user", ["Is it Ménière's disease? 日本語 🩻  \n\n two  spaces "])],
    "images and text": [SYSTEM, ("user", ["First ", 4, " and then\n", 1, 9, "\n\nWhich?"])],
    "a look": [
        SYSTEM,
        ("user", [6, "What is it?"]),
        (
            "assistant",
            ['{"thought": "spot", "actions": [{"name": "zoom", "arguments": {"box": [[1, 2, 30, 44]]}}]}'],
        ),
        ("user", [4, "This is the region."]),
    ],
    "a video and an image": [SYSTEM, ("user", [Video(12), "Does it move?", 4, "Compare."])],
    "answered": [SYSTEM, ("user", ["1 + 1?"]), ("assistant", ["2"])],
    "odd white space": [("system", ["\n"]), ("user", [" ", 3, "\n"]), ("assistant", ["\t"])],
}


def for_template(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Converts messages to the input of Hugging Face's templates."""

    def content(part: Content) -> dict[str, str]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        return {"type": "video" if isinstance(part, Video) else "image"}

    return [{"role": role, "content": [content(part) for part in parts]} for role, parts in messages]


def expected(tokenizer: Any, template: str, messages: Sequence[Message], reply: bool) -> list[int]:
    """Returns the tokens of the template's text, tokenized as a whole.

    Each pad token is repeated once per token of its image or video.
    """
    text = tokenizer.apply_chat_template(
        for_template(messages), chat_template=template, tokenize=False, add_generation_prompt=reply
    )
    seen = [part for _, parts in messages for part in parts if not isinstance(part, str)]
    counts = [part.tokens if isinstance(part, Video) else part for part in seen]
    pieces = re.split(r"(<\|(?:image|video)_pad\|>)", text)
    pieces[1::2] = [pad * count for pad, count in zip(pieces[1::2], counts, strict=True)]
    return tokenizer.encode("".join(pieces), add_special_tokens=False)

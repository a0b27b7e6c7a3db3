"""Chat markup against Qwen's own tokenizer and template."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from data_prep.phantom.tokenizer import build_tokenizer
from tests.kit import tiny
from tests.kit.chats import CONVERSATIONS, expected
from vitar_jax.errors import CheckpointError
from vitar_jax.processing.chat import Chat


@cache
def tiny_tokenizer() -> Any:
    return build_tokenizer()


@pytest.mark.parametrize("reply", [True, False])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_render_equals_the_tiny_tokenizers_template(name: str, reply: bool) -> None:
    tokenizer, messages = tiny_tokenizer(), CONVERSATIONS[name]
    whole = expected(tokenizer, tokenizer.chat_template, messages, reply)
    assert tiny.chat().render(messages, reply=reply) == whole


@given(st.lists(st.sampled_from(["<|im_", "end|>", "<|im_end|>", "<|vision_pad|>", " a", "\n", "é"])).map("".join))
def test_no_text_has_markup_ids_and_all_text_comes_back(text: str) -> None:
    chat = tiny.chat()
    assert not chat.added_ids & set(chat.text(text))
    assert chat.decode(chat.text(text)) == text


@given(st.lists(st.integers(0, 2 * tiny.VOCAB)))
@settings(max_examples=200)
def test_any_ids_decode(token_ids: list[int]) -> None:
    assert isinstance(tiny.chat().decode(token_ids), str)
    pieces = tiny.chat().pieces(token_ids)
    assert len(pieces) == len(token_ids) and "".join(pieces) == tiny.chat().decode(token_ids)


def test_a_chat_that_was_made_from_plain_files_saves_them(tmp_path: Path) -> None:
    build_tokenizer().save_pretrained(tmp_path / "first")
    Chat(tmp_path / "first").save_pretrained(tmp_path / "second")
    again = AutoTokenizer.from_pretrained(tmp_path / "second")
    assert again.eos_token == "<|im_end|>"
    assert again.encode("upper left") == tiny_tokenizer().encode("upper left")


@pytest.mark.parametrize("content", [None, "not JSON", "[]", json.dumps({"version": "1.0"})])
def test_a_folder_without_a_tokenizer_is_named(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        Chat(tmp_path)


def test_a_tokenizer_without_markup_is_refused(tmp_path: Path) -> None:
    tokenizer = json.loads(build_tokenizer().backend_tokenizer.to_str())
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != "<|vision_end|>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match=r"<\|vision_end\|>"):
        Chat(tmp_path)

"""Chat markup against Qwen's own tokenizer and template."""

import json
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from data_prep.phantom.tokenizer import build_tokenizer
from tests.kit import tiny
from tests.kit.chats import CONVERSATIONS, expected
from tests.kit.files import write_files
from vitar_jax.errors import CheckpointError, ConfigError
from vitar_jax.processing.banned import banned_tokens
from vitar_jax.processing.chat import Chat, ProtocolText


@cache
def tiny_tokenizer() -> Any:
    return build_tokenizer()


@pytest.mark.parametrize("reply", [True, False])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_render_equals_the_tiny_tokenizers_template(name: str, reply: bool) -> None:
    tokenizer, messages = tiny_tokenizer(), CONVERSATIONS[name]
    whole = expected(tokenizer, tokenizer.chat_template, messages, reply)
    assert tiny.chat().render(messages, reply=reply) == whole


MARKUP = ["<|im_", "end|>", "<|im_end|>", "<|vision_pad|>", "<tool_call>", "</tool_call>", "<|file_sep|>", "<tool_"]
PIECES = [*MARKUP, " a", "\n", "é"]


@given(st.lists(st.sampled_from(PIECES)).map("".join))
def test_no_text_has_markup_ids_and_all_text_comes_back(text: str) -> None:
    chat = tiny.chat()
    assert not chat.added_ids & set(chat.text(text))
    assert chat.decode(chat.text(text)) == text
    assert chat.decode(chat.turn(text)[:-1]) == text and not chat.banned_ids & set(chat.turn(text))


@given(st.lists(st.sampled_from(PIECES)).map("".join))
def test_only_allowed_tokens_are_made_of_a_protocols_text(text: str) -> None:
    chat, allowed = tiny.chat(), ("<tool_call>", "</tool_call>")
    turn = chat.turn(text, allowed)
    made = {chat.token_id(token): text.count(token) for token in allowed if token in text}
    assert {index: turn[:-1].count(index) for index in chat.added_ids & set(turn[:-1])} == made
    assert chat.decode(turn[:-1]) == text and turn[-1] == chat.im_end
    user = chat.render([("user", [text])], reply=False)
    assert not user.count(chat.token_id("<tool_call>"))
    system = chat.render([("system", [ProtocolText(text, allowed)])], reply=False)
    assert system.count(chat.token_id("<tool_call>")) == text.count("<tool_call>") and text in chat.decode(system)


def test_an_allowed_token_alone_is_not_banned() -> None:
    chat = tiny.chat()
    allowing = chat.allowing(["<tool_call>"])
    assert chat.banned_ids == chat.added_ids - {chat.im_end}
    assert chat.banned_ids - allowing.banned_ids == {chat.token_id("<tool_call>")}
    changed = banned_tokens(chat, tiny.VOCAB) != banned_tokens(allowing, tiny.VOCAB)
    assert np.flatnonzero(changed).tolist() == [chat.token_id("<tool_call>")]
    assert allowing.allowing(["<|file_sep|>"]).banned_ids == allowing.banned_ids - {chat.token_id("<|file_sep|>")}


@pytest.mark.parametrize("token", ["<|im_end|>", "<|image_pad|>", "[SEG]", "a"])
def test_markup_and_unknown_tokens_cannot_be_allowed(token: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"allowed_tokens: '{token}' is not one")):
        tiny.chat().allowing([token])


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


def test_gaps_between_ids_are_banned_and_counted(tmp_path: Path) -> None:
    """A tokenizer whose ids have gaps has fewer tokens than its largest id says."""
    build_tokenizer().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    moved = max(vocabulary, key=vocabulary.__getitem__)
    vocabulary[moved] = 480
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    chat = Chat(tmp_path)
    assert (chat.token_id(moved), chat.vocab_size) == (480, 481)
    banned = banned_tokens(chat, tiny.VOCAB)
    assert not banned[480] and banned[481:].all()
    assert banned.sum() == tiny.VOCAB - len(chat.token_ids) + len(chat.banned_ids)


def test_stop_tokens_are_not_banned() -> None:
    chat = tiny.chat()
    stops = [chat.token_id("<|endoftext|>"), chat.im_end, 5, 10**6]
    stopping = chat.stopping_at(stops)
    assert chat.banned_ids  # of the original, and before
    assert stopping.stop_ids == (stops[0], 5)
    assert chat.banned_ids - stopping.banned_ids == {stops[0]}
    assert chat.stop_ids == ()


def test_all_files_of_a_tokenizer_go_out_as_they_came_in(tmp_path: Path) -> None:
    """Also if the folder that they came from is gone by then, as the copy of a remote one is."""
    source, target = tmp_path / "source", tmp_path / "target"
    build_tokenizer().save_pretrained(source)
    files = {
        "special_tokens_map.json": '{"eos_token":  "<|im_end|>"}',
        "added_tokens.json": "{ }",
        "vocab.json": "{}\n\n",
        "merges.txt": "#version: 0.2\né e\n",
        "chat_template.jinja": "{{ messages }}",
        "chat_template.json": '{"chat_template": "{{ messages }}"}',
    }
    write_files(source, files)
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    chat = Chat(source)
    shutil.rmtree(source)
    chat.save_pretrained(target)
    assert {file.name: file.read_bytes() for file in target.iterdir()} == before

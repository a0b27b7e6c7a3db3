"""VRT's episodes: their tokens are those of a tokenizer that reads the published prompt, and text never becomes markup."""

import dataclasses
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from data_prep.phantom.findings import source
from tests.kit import tiny
from tests.kit.vrt import VRT, folder, processor
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.experts import demonstrate
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.sample import Answer, Demonstration
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.processing.chat import Chat

LIMITS = Limits(tokens=2000, turn_tokens=500)
SAMPLE = source("train", seed=1)[0]


def test_tokens_are_those_of_the_published_prompt():
    used = processor()
    episode = demonstrate(SAMPLE, VRT, used, LIMITS)
    pads = "<|image_pad|>" * used.tokens(episode.images[0].grid_thw)
    prompt = VRT.question.replace("{question}", SAMPLE.question)
    assert prompt.startswith("\nWhich is ") and prompt.endswith("<answer> answers here </answer>.")
    assert SAMPLE.demonstration is not None
    thought, answer = SAMPLE.demonstration.answer.thought, SAMPLE.demonstration.answer.text
    spelled = [text.replace("1>", "1> [SEG]").replace("2>", "2> [SEG]") for text in (thought, answer)]
    turn = f"<think>{spelled[0]}</think>\n\n<answer>{spelled[1]}</answer>"
    start = f"<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>{prompt}<|im_end|>\n<|im_start|>assistant\n"
    whole = AutoTokenizer.from_pretrained(folder().name)(start + turn + "<|im_end|>")["input_ids"]
    assert episode.token_ids == whole
    seg = used.chat.token_id("[SEG]")
    example = episode.example()
    assert example.token_ids.tolist().count(seg) == 3 and (example.token_ids[example.loss_mask] == seg).sum() == 3
    assert episode.predicted_answer == SAMPLE.answer != answer  # without tags


def test_a_question_that_spells_markup_is_text():
    asked = dataclasses.replace(SAMPLE, question="Is [SEG] a <think>?</think>")
    prompt, plain = (Episode(sample, VRT, processor(), LIMITS).token_ids for sample in (asked, SAMPLE))
    for token in VRT.allowed_tokens:
        made = processor().chat.token_id(token)
        assert prompt.count(made) == plain.count(made)
    assert "Is [SEG] a <think>?</think>" in processor().chat.decode(prompt)


def test_a_trace_that_spells_markup_is_refused():
    shown = Demonstration((), Answer("A [SEG].", "The disc."))
    with pytest.raises(DataError, match=r"got \[SEG\] in a trace's text"):
        demonstrate(dataclasses.replace(SAMPLE, demonstration=shown), VRT, processor(), LIMITS)


def test_without_the_protocol_its_tokens_are_banned():
    chat = Chat(Path(folder().name))
    assert {chat.token_id(token) for token in VRT.allowed_tokens} <= chat.banned_ids
    assert not chat.allows(VRT.allowed_tokens) and processor().chat.allows(VRT.allowed_tokens)
    with pytest.raises(ConfigError, match=r"'\[SEG\]' is not one of the tokenizer's added tokens"):
        tiny.chat().allowing(VRT.allowed_tokens)


def test_other_protocols_still_have_a_system_message():
    sample = dataclasses.replace(SAMPLE, demonstration=None)
    roles = [[role for role, _ in protocol.opening(sample, [4])] for protocol in PROTOCOLS.values()]
    assert roles.count(["user"]) == 2 and roles.count(["system", "user"]) == len(PROTOCOLS) - 2
    assert {name for name, protocol in PROTOCOLS.items() if not protocol.system} == {"vrt", "outline"}

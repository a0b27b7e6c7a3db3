"""Demonstrations as examples to learn from: no token of theirs is banned, unless an error names the sample."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.kit import tiny
from tests.kit.episodes import CHAT, LIMITS, PROCESSOR, WIDE
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.experts import demonstrate
from vitar_jax.episodes.protocols import PROTOCOLS, Protocol
from vitar_jax.episodes.regions import Box, Mask, Region
from vitar_jax.episodes.sample import Answer, Demonstration, Look, Sample
from vitar_jax.episodes.trajectory_files import TrajectoryWriter, read_trajectories
from vitar_jax.errors import DataError
from vitar_jax.processing.banned import banned_tokens

TOKENS = ("<tool_call>", "</tool_call>")
PLAIN = PROTOCOLS["plain"]
CALLING = dataclasses.replace(PLAIN, system="Write <tool_call>.", allowed_tokens=TOKENS)
SPELT = "I look.<tool_call>{}</tool_call><|file_sep|>"


def spelt(text: str = SPELT) -> Sample:
    """A sample whose every text spells added tokens."""
    look = Look(f"A {text}", "zoom", regions=())
    shown = Demonstration((look,), Answer(f"So {text}", text))
    return Sample("odd", f"Why {text}?", (WIDE,), text, (("A", text), ("B", "rows")), demonstration=shown)


@pytest.mark.parametrize("protocol", [PLAIN, PROTOCOLS["direct"]])
def test_text_that_spells_an_added_token_is_learnt_as_text(protocol: Protocol) -> None:
    episode = demonstrate(spelt(), protocol, PROCESSOR, LIMITS)
    example = episode.example()
    assert not banned_tokens(CHAT, tiny.VOCAB)[example.token_ids[example.loss_mask]].any()
    assert {CHAT.token_id(token) for token in TOKENS}.isdisjoint(example.token_ids)
    assert CHAT.decode(episode.token_ids).count(SPELT) >= 3


def test_a_protocol_has_its_tokens_in_its_system_message_and_in_turns_alone() -> None:
    processor = PROCESSOR.allowing(TOKENS)
    example = demonstrate(spelt(), CALLING, processor, LIMITS).example()
    opening, closing, separator = (CHAT.token_id(token) for token in (*TOKENS, "<|file_sep|>"))
    learnt = example.token_ids[example.loss_mask].tolist()
    assert (learnt.count(opening), learnt.count(closing), learnt.count(separator)) == (1, 1, 0)
    assert np.count_nonzero(example.token_ids == opening) == 2  # and one in the system message, none in the question
    with pytest.raises(DataError, match=r"sample odd: got token \d+ \(<tool_call>\) under the loss mask"):
        demonstrate(spelt(), CALLING, PROCESSOR, LIMITS).example()


def looking(*regions: Region) -> Sample:
    look = Look("I zoom.", "zoom", regions)
    return Sample("odd", "Why?", (WIDE,), "A", demonstration=Demonstration((look,), Answer("So.", "A")))


@pytest.mark.parametrize(
    "sample, message",
    [
        (looking(Mask.of(np.zeros((200, 300), bool), "original")), "look: an empty mask has no box"),
        (looking(Box(10, 10, 10.000000000000004, 60, frame="original")), "its demonstration fails .box_reversed"),
        (looking(), "its demonstration fails"),
        (Sample("odd", "Why?", (WIDE,), "A"), "no demonstration"),
    ],
)
def test_a_demonstration_that_fails_names_its_sample(sample: Sample, message: str) -> None:
    with pytest.raises(DataError, match=f"sample odd: {message}"):
        demonstrate(sample, dataclasses.replace(PROTOCOLS["zoom"], frame="normalized"), PROCESSOR, LIMITS)


def test_a_question_without_an_answer_is_no_demonstration() -> None:
    with pytest.raises(DataError, match="sample odd: no answer to demonstrate"):
        demonstrate(Sample("odd", "Why?", (WIDE,), ""), PLAIN, PROCESSOR, LIMITS)


@pytest.mark.parametrize("wrong", ["<|image_pad|>", "<|endoftext|>", "<tool_call>", "a row without a token", "minus one"])
def test_a_banned_token_to_learn_is_refused_by_name(wrong: str, tmp_path: Path) -> None:
    episode = Episode(Sample("odd", "Why?", (WIDE,), "A"), PLAIN, PROCESSOR, LIMITS)
    token = {"a row without a token": CHAT.vocab_size, "minus one": -1}.get(wrong) or CHAT.token_id(wrong)
    twin = episode.fork(1)
    for one, learn in ((episode, True), (twin, False)):
        one.add_turn([*CHAT.text("so"), max(token, 0), CHAT.im_end], None, learn=learn)
        one.token_ids = [token if index == max(token, 0) and learn else index for index in one.token_ids]
    TrajectoryWriter(tmp_path).write(e.trajectory(stream="expert", policy_version=0, banned_sha256="") for e in (episode, twin))
    stored, unlearnt = read_trajectories(tmp_path)
    for make in (episode.example, lambda: stored.example(PROCESSOR)):
        with pytest.raises(DataError, match=f"sample odd: got token {token}"):
            make()
    twin.example(), unlearnt.example(PROCESSOR)
    if token in CHAT.banned_ids:  # an end of a turn by the sampling's own rule
        sampling = dataclasses.replace(stored.sampling, stop_ids=(token,))
        dataclasses.replace(stored, sampling=sampling).example(PROCESSOR)

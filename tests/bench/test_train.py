"""Both sides of the train bench learn the same from the same. No time is judged."""

import dataclasses
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

from tests.kit.recipes import load_config
from vitar_jax.bench import trl_peer
from vitar_jax.bench.pairs import Disagreement
from vitar_jax.bench.text_task import TextTask, train_cases
from vitar_jax.bench.torch_peer import Setting
from vitar_jax.bench.torch_text import TextPeer, text_weights
from vitar_jax.bench.train import Ours, compare, measure, phases_text
from vitar_jax.bench.trl_peer import TRLPeer, TRLSetting, trl_settings
from vitar_jax.experiment import build
from vitar_jax.experiment.recipe import Recipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("short_timings")]

TINY = dataclasses.replace(
    train_cases(Recipe.from_config(load_config("quickstart")))["quickstart"],
    name="tiny",
    target=1.0,
    questions=2,
    group_size=4,
    prompt_tokens=16,
    reply_tokens=8,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextTask, Path]:
    directory = tmp_path_factory.mktemp("task")
    return TextTask.write(TINY, directory), directory


def test_rows_have_no_padding(written: tuple[TextTask, Path]) -> None:
    """A side without padding does the same work only where our shapes are filled. A turn's end is learnt, never drawn."""
    task, directory = written
    for name, ends, prompts in (("sft", 8, 8), ("grpo", 0, 2)):
        ours = Ours(task, name, directory)
        batch, _ = ours.batches.next(ours.state)
        token_ids, segment_ids, loss_mask = (
            array.reshape(8, 24) for array in (batch.token_ids, batch.segment_ids, batch.loss_mask)
        )
        assert (segment_ids == 1).all() and (loss_mask == (np.arange(24) >= 16)).all()
        assert (token_ids[:, 16:] == ours.run.processor.chat.im_end).sum() == ends
        assert [len(np.unique(part, axis=0)) for part in (token_ids[:, :16], token_ids[:, 16:])] == [prompts, 8]


def test_only_the_decoder_learns(written: tuple[TextTask, Path]) -> None:
    """The vision tower, which the other side does not have, is frozen."""
    ours = Ours(written[0], "grpo", written[1])
    learnt, _ = build.trainable(written[0].recipe, ours.stage).split(ours.state.model)
    count = sum(leaf.size for leaf in jax.tree.leaves(learnt))
    assert count == sum(weight.numel() for weight in text_weights(written[0].model).values())


@pytest.fixture
def sides(written: tuple[TextTask, Path]) -> Iterator[tuple[TextTask, Ours, TRLPeer, Path]]:
    task, directory = written
    ours = Ours(task, "grpo", directory)
    with closing(TRLPeer(task, directory, ours.run.model_config.text, ours.run.banned)) as peer:
        peer.use(TRLSetting("sdpa", "dynamic"))
        yield task, ours, peer, directory


def test_a_grpo_step_is_trls(sides: tuple[TextTask, Ours, TRLPeer, Path]) -> None:
    assert compare(*sides) < 1e-3
    assert sides[2].trainer is not None and not sides[2].trainer.model.is_gradient_checkpointing


@pytest.mark.parametrize("wrong", ["reward", "bias", "prompt"])
def test_a_peer_that_learns_otherwise_is_not_timed(
    wrong: str, sides: tuple[TextTask, Ours, TRLPeer, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, ours, peer, directory = sides
    if wrong == "reward":
        monkeypatch.setattr(trl_peer, "odd_share", lambda token_ids: float(token_ids[0]))
    elif wrong == "bias":
        torch.nn.init.zeros_(peer.trainer.model.lm_head.bias)  # type: ignore[union-attr]
    else:
        peer.task = dataclasses.replace(task, prompts=tuple(prompt + " A" for prompt in task.prompts))
        peer.use(TRLSetting("sdpa", "dynamic"))
    with pytest.raises(Disagreement, match="prompts" if wrong == "prompt" else "tiny GRPO"):
        compare(task, ours, peer, directory)


def test_replies_of_trl_have_our_length_and_tokens(sides: tuple[TextTask, Ours, TRLPeer, Path]) -> None:
    _, ours, peer, _ = sides
    drawn: list[list[int]] = []
    trainer: Any = peer.trainer
    generate = trainer._generate_single_turn

    def note(*arguments: Any, **options: Any) -> Any:
        replies, logprobs = generate(*arguments, **options)
        drawn.extend(replies)
        return replies, logprobs

    trainer._generate_single_turn = note
    for _ in range(3):
        peer.step()
    assert [len(reply) for reply in drawn] == [8] * 24 and not ours.run.banned[np.array(drawn)].any()
    assert len(peer.spent) == 3 and all(min(step.values()) > 0 for step in peer.spent)


def test_a_setting_that_fails_says_so(sides: tuple[TextTask, Ours, TRLPeer, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(token_ids: list[int]) -> float:
        raise RuntimeError("no reward")

    monkeypatch.setattr(trl_peer, "odd_share", broken)
    with pytest.raises(RuntimeError, match="no reward"):
        sides[2].step()


def test_measure() -> None:
    said: list[str] = []
    rows, phases = measure([TINY], rounds=2, try_compile=False, say=said.append)
    assert [(row.pair.name, row.pair.size, row.pair.target) for row in rows] == [
        ("SFT step", "tiny", None),
        ("GRPO step", "tiny", 1.0),
        ("GRPO update, filled rows", "tiny", 1 / 0.6),
    ]
    assert rows[1].pair.peer_settings in [f"TRL, {setting}" for setting in trl_settings(try_compile=False)]
    assert said[0].startswith("tiny: 8 rows of 16 prompt and 8 reply tokens") and all("agree" in line for line in said[1:])
    for name, parts in (("SFT step tiny", ["input", "update"]), ("GRPO step tiny", ["rollout", "reward", "batch", "update"])):
        for side in ("ours", "peer"):
            numbers = phases[name][side]
            assert list(numbers) == [*parts, "tokens_per_second"]
            assert numbers["tokens_per_second"] == pytest.approx(8 * 24 / sum(numbers[part] for part in parts), rel=0.5)
    text = phases_text("GRPO step tiny", phases["GRPO step tiny"])
    assert text.startswith("GRPO step tiny, ours: rollout") and "tokens/s" in text and "MFU" not in text
    shown = phases_text("x", {"ours": {"update": 1.0, "tokens_per_second": 3.0, "mfu": 0.41}})
    assert shown == "x, ours: update 1.00 s; 3 tokens/s; MFU 41.0%"


def test_an_sft_step_that_differs_is_not_timed(written: tuple[TextTask, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    loss = TextPeer._loss
    monkeypatch.setattr(TextPeer, "_loss", lambda self: 1.01 * loss(self))
    with pytest.raises(Disagreement, match="tiny SFT"):
        measure([TINY], rounds=1, try_compile=False, say=lambda line: None)


def test_an_sft_peer_begins_anew(written: tuple[TextTask, Path]) -> None:
    ours = Ours(written[0], "sft", written[1])
    ours.step()
    peer = TextPeer(written[0].model, ours.run.model_config.text, ours.run.banned, ours.rows, TINY.reply_tokens)
    losses = []
    for _ in range(2):
        peer.use(Setting("sdpa", compiled=False))
        losses.append([peer.step()[0] for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1]) and losses[0][0] > losses[0][1] > losses[0][2]

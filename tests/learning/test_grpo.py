"""From played episodes to a batch."""

import dataclasses

import numpy as np

from tests.learning.test_rewards import BOX, IMAGE, PROCESSOR, RIGHT, VITAR, WRONG
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.sample import Sample
from vitar_jax.learning.advantages import group_advantages
from vitar_jax.learning.grpo import grpo_batch
from vitar_jax.learning.objectives import GRPOConfig
from vitar_jax.processing.packing import BatchShape

REWARDS = [{"accuracy": 1.0}, None, {"accuracy": 0.0}]


def test_an_episode_without_a_reward_is_not_learnt_from() -> None:
    leader = Episode(Sample("s", "Which?", (IMAGE,), "B"), VITAR, PROCESSOR, Limits(tokens=600, turn_tokens=200))
    episodes = [leader.fork(member) for member in range(3)]
    for episode, answer in zip(episodes, (RIGHT, RIGHT, WRONG), strict=True):
        for text in (BOX, answer):
            token_ids = [*PROCESSOR.chat.text(text), PROCESSOR.chat.im_end]
            episode.add_turn(token_ids, [-0.5] * len(token_ids))
    records = [episode.trajectory(stream="on_policy", policy_version=0, banned_sha256="") for episode in episodes]
    trajectories = [dataclasses.replace(record, rewards=parts) for record, parts in zip(records, REWARDS, strict=True)]
    tokens = max(len(record.token_ids) for record in records)  # an episode a row
    shape = BatchShape(1, rows=3, tokens=tokens, images=4, size_class=PROCESSOR.size_classes[-1], policy_tokens=1200)
    batch = grpo_batch(episodes, trajectories, GRPOConfig(), shape, PROCESSOR)

    written = [sum(record.loss_mask) for record in records]
    assert batch["loss_mask"].sum(axis=2).tolist() == [[written[0], 0, written[2]]]
    advantages = group_advantages([1.0, 0.0], ["s", "s"])  # those of the two that are left
    assert np.array_equal(batch["advantages"][0, [0, 2], 0], advantages) and not batch["advantages"][0, 1].any()

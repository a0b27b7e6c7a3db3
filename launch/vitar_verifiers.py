"""A protocol of vitar_jax as an environment of verifiers 0.4 (`verifiers.v1`), for prime-rl and its evaluation.

  PYTHONPATH=launch vf-eval vitar-verifiers --env.taskset.questions=test.csv --env.taskset.protocol=zoom \\
      --env.agent.runtime.type=subprocess --model=NAME --client.base-url=http://127.0.0.1:8000/v1

    environment = load_environment("test.csv", protocol="zoom")

A task is one question of a file that `vitar_jax.infer` reads. The harness plays its episode in this process: turns come from
verifiers' endpoint, tools run here, and the images that they return go back as data URLs. The reward is 1 for a right answer.
"""

import asyncio
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import verifiers.v1 as vf

from vitar_jax.data import questions
from vitar_jax.episodes.actions import Answer
from vitar_jax.episodes.answers import exact_match
from vitar_jax.episodes.protocols import PROTOCOLS, Protocol, find_protocol
from vitar_jax.errors import EndpointError
from vitar_jax.rollout.endpoint_player import EndpointPlayer
from vitar_jax.runtime.endpoint import ChatClient

__all__ = ["ProtocolTaskset", "ProtocolHarness", "load_environment"]
read = cache(questions.read)


class QuestionData(vf.TaskData):
    """Where a question is, and the protocol that it is played under."""

    questions: str
    images: str
    row: int
    protocol: str


def rules(data: QuestionData) -> Protocol:
    return find_protocol(data.protocol, PROTOCOLS)


def is_right(data: QuestionData, reply: str) -> float:
    """Returns 1.0 if the last turn states a right answer, else 0.0."""
    outcome = rules(data).read(reply).outcome
    sample = read(data.questions, data.images)[data.row]
    return float(isinstance(outcome, Answer) and exact_match(outcome.text, *sample.gold_answers))


class QuestionTask(vf.Task[QuestionData]):
    @vf.reward
    async def correct(self, trace: vf.Trace) -> float:
        return is_right(self.data, trace.last_reply)


class ProtocolConfig(vf.TasksetConfig):
    questions: str = ""
    images: str = ""
    protocol: str = "zoom"


class ProtocolTaskset(vf.Taskset[QuestionTask, ProtocolConfig]):
    def load(self) -> Iterator[QuestionTask]:
        file, images, protocol = self.config.questions, self.config.images, self.config.protocol
        for row, sample in enumerate(read(file, images)):
            place = {"questions": file, "images": images, "row": row, "protocol": protocol}
            yield QuestionTask(QuestionData(id=sample.sample_id, prompt=sample.question, **place), self.config.task)


class ProtocolHarness(vf.Harness[vf.HarnessConfig]):
    EXECUTES_CODE = NEEDS_CONTAINER = False

    async def launch(self, ctx: Any, trace: Any, runtime: Any, endpoint: str, secret: str, mcp_urls: Any, data: Any) -> Any:
        def play() -> vf.ProgramResult:
            with tempfile.TemporaryDirectory() as scratch:
                client = ChatClient(endpoint, ctx.model, Path(scratch) / "replies.jsonl", {}, key=secret, retries=0)
                player = EndpointPlayer(client, rules(data))
                try:
                    episode = player.finish(player.begin(read(data.questions, data.images)[data.row]))
                    return vf.ProgramResult(0, episode.predicted_answer or "", "")
                except EndpointError as error:
                    return vf.ProgramResult(1, "", str(error))
                finally:
                    client.close()

        return await asyncio.to_thread(play)


def load_environment(questions: str, images: str = "", protocol: str = "zoom", **config: Any) -> vf.Env:
    """Returns the environment. `config` are further fields of verifiers' configuration of an environment."""
    taskset = {"id": __name__, "questions": questions, "images": images, "protocol": protocol}
    agent = {"runtime": vf.SubprocessConfig(), **config.pop("agent", {})}
    return vf.SingleAgentEnv(vf.SingleAgentEnvConfig(taskset=taskset, agent=agent, **config))  # type: ignore[arg-type]

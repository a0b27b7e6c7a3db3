"""Rewards of finished trajectories, as weighted sums of named parts.

A reward is a function from a trajectory to its parts. A config names a registered reward, or a user's function as
`package.module:name` or `path/to/file.py:name`. A user's function runs in processes of its own, which a timeout kills.
"""

import dataclasses
import math
import threading
from collections.abc import Callable, Collection, Mapping
from functools import cache, cached_property, partial
from typing import Any, Literal, get_args

from absl import logging

from vitar_jax.episodes.answers import exact_match
from vitar_jax.episodes.regions import iou
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import GOLD_IMAGE, Trajectory
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.learning.gaze_reward import medeyes
from vitar_jax.learning.reward_process import Function, NotFound, Parts, Raised, RewardProcesses, parts_of
from vitar_jax.learning.tool_rewards import deepeyes, gemex, ophiuchus, pyvision
from vitar_jax.learning.trace_rewards import vrt, vrt_answer_published, vrt_format_published
from vitar_jax.runtime.function_address import Address
from vitar_jax.runtime.registry import Registry, is_address

Call = Callable[[Trajectory, float], Parts]  # with the time limit in seconds
Failure = Literal[
    "exception",
    "timeout",
    "wrong_parts",  # not the parts with weights
    "not_finite",
]
FAILURES: tuple[Failure, ...] = get_args(Failure)


@dataclasses.dataclass(frozen=True)
class Weighted:
    """A reward.

    Attributes:
      weights: Weights of the function's parts.
      needs_answer: Parts that compare with the sample's answer.
    """

    function: Function
    weights: Mapping[str, float]
    needs_answer: Collection[str] = ()


REWARDS: Registry[Weighted] = Registry("reward")


def reward(name: str, *, needs_answer: Collection[str] = (), **weights: float) -> Callable[[Function], Function]:
    """Returns a decorator that registers a function as the reward `name`, with the weights of its parts. See `Weighted`."""

    def register(function: Function) -> Function:
        REWARDS[name] = Weighted(function, weights, needs_answer)
        return function

    return register


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """A reward by name.

    Attributes:
      function: A registered name, `package.module:name` or `path/to/file.py:name`.
      weights: Weights of all parts. For a registered function, they override its own weights.
      timeout: Time limit for one trajectory, in seconds.
    """

    function: str
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    timeout: float = 60.0


class Rewards:
    """All rewards of a stage. Thread-safe. Apart from timeouts, a trajectory alone determines its rewards.

    Attributes:
      parts: Names of the parts whose weight is not 0.

    Raises:
      ConfigError: If a function or part does not exist, or if two rewards share the name of a part.
    """

    def __init__(self, configs: Mapping[str, RewardConfig]):
        self._functions: list[tuple[RewardConfig, Call, Mapping[str, float]]] = []
        self._needs_answer: list[str] = []
        names: set[str] = set()
        for key, config in configs.items():
            try:
                found = _find(config)
            except ConfigError as error:
                raise ConfigError(f"rewards.{key}: {error}") from error
            if twice := names & found.weights.keys():
                raise ConfigError(f"rewards.{key}: another reward has a part {twice.pop()!r} too")
            names |= found.weights.keys()
            self._needs_answer += [name for name, weight in found.weights.items() if weight and name in found.needs_answer]
            self._functions.append((config, _call(config.function, found.function), found.weights))
        self.parts = [name for _, _, weights in self._functions for name, weight in weights.items() if weight]

    def check(self, sample: Sample) -> None:
        """Raises DataError if a sample has no answer and a part with weight needs one. An empty answer would equal it."""
        if self._needs_answer and not all(sample.gold_answers):
            raise DataError(f"sample {sample.sample_id}: no answer, which the reward's part {self._needs_answer[0]} needs")

    def __call__(self, trajectory: Trajectory) -> tuple[Trajectory, Failure | None]:
        """Returns the trajectory with its rewards. If a function fails, returns it without rewards, and the failure."""
        rewards = {}
        for config, call, weights in self._functions:
            try:
                parts = _run(call, trajectory, weights, config.timeout)
            except _Failed as failed:
                message = f"reward {config.function} of {trajectory.sample_id}: {failed.kind} ({failed})"
                logging.log_first_n(logging.WARNING, message, 20)
                return dataclasses.replace(trajectory, rewards=None), failed.kind
            rewards |= {name: weight * parts[name] for name, weight in weights.items() if weight}
        return dataclasses.replace(trajectory, rewards=rewards), None


class _Failed(Exception):
    """The failure of a reward function."""

    def __init__(self, kind: Failure, detail: object):
        super().__init__(detail)
        self.kind: Failure = kind


def _find(config: RewardConfig) -> Weighted:
    """Finds a function, and applies the config's weights."""
    named: Any = REWARDS.find(config.function)
    if isinstance(named, Weighted):
        found = named
    elif not callable(named):
        raise ConfigError(f"{config.function}: no such function")
    else:  # The file may have registered the function.
        function: Any = named
        found = next((known for known in REWARDS.values() if known.function is function), Weighted(function, {}))
    if found.weights:
        if unknown := config.weights.keys() - found.weights.keys():
            raise ConfigError(f"{config.function} has no part {unknown.pop()!r}; it has {', '.join(found.weights)}")
    elif not config.weights:
        raise ConfigError(f"{config.function}: weights have to name its parts")
    return dataclasses.replace(found, weights={**found.weights, **config.weights})


def _call(name: str, function: Function) -> Call:
    """Returns how a function is called: here if it is the package's own, else in processes that find it by its address."""
    if (getattr(function, "__module__", None) or "").split(".")[0] == "vitar_jax":
        return partial(_call_here, function)
    return _UserCall(name, function)


class _UserCall:
    """Calls a user's function in processes, or in a thread if no other process can find it."""

    def __init__(self, name: str, function: Function):
        self._name, self._function = name, function

    @cached_property  # the first call may copy what the function uses by then
    def _processes(self) -> RewardProcesses | None:
        address = Address.of(self._function)
        if address is None and is_address(self._name) and REWARDS.find(self._name) is self._function:
            place, _, attribute = self._name.rpartition(":")
            address = Address(place, attribute)  # an object that does not know its name
        if address is None:
            _warn_once(self._name, "it is an object, may keep a state, or uses something that cannot be copied")
        return RewardProcesses(address) if address else None

    def __call__(self, trajectory: Trajectory, timeout: float) -> Parts:
        if (processes := self._processes) is not None:
            try:
                return processes(trajectory, timeout)
            except NotFound as error:
                self._processes = None
                _warn_once(self._name, str(error))
        return _call_in_thread(self._function, trajectory, timeout)


@cache  # a recipe makes the rewards of a stage several times
def _warn_once(name: str, why: str) -> None:
    logging.warning(
        "reward %s: another process cannot load it (%s). It runs in a thread, which cannot be stopped if it holds Python's "
        "lock; move it into a file and name it path/to/file.py:name",
        name,
        why,
    )


def _call_here(function: Function, trajectory: Trajectory, timeout: float) -> Parts:
    del timeout
    try:
        return parts_of(function, trajectory)
    except Exception as error:
        raise Raised(repr(error)) from error


def _call_in_thread(function: Function, trajectory: Trajectory, timeout: float) -> Parts:
    """Calls a function in a daemon thread, which is abandoned if it hangs, and does not keep the process alive."""
    ended: list[Parts | BaseException] = []

    def attempt() -> None:
        try:
            ended.append(parts_of(function, trajectory))
        except BaseException as error:  # SystemExit is a failure too
            ended.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(timeout)
    if not ended:
        raise TimeoutError(f"{timeout:g} s")
    (parts,) = ended
    if isinstance(parts, BaseException):
        raise Raised(repr(parts))
    return parts


def _run(call: Call, trajectory: Trajectory, weights: Mapping[str, float], timeout: float) -> dict[str, float]:
    """Returns the parts of a reward.

    Raises:
      _Failed: If the function raises, exceeds the time limit or returns invalid parts.
    """
    try:
        parts = dict(call(trajectory, timeout))
    except TimeoutError as error:
        raise _Failed("timeout", error) from error
    except Raised as error:
        raise _Failed("exception", error) from error
    if parts.keys() != weights.keys():
        raise _Failed("wrong_parts", f"{', '.join(parts) or 'none'}, but {', '.join(weights)} have weights")
    if not all(map(math.isfinite, parts.values())):
        raise _Failed("not_finite", parts)
    return parts


@reward("vitar", needs_answer=["accuracy"], action=0.2, terminate=0.2, accuracy=1.0, iou=0.0)
def vitar(trajectory: Trajectory) -> dict[str, float]:
    """Returns the parts of ViTAR's reward (weights of its published code), and our IoU, which is off by default.

    `action` counts turns whose tool ran, `terminate` is 1 for a parsed answer, and `accuracy` is its exact match with
    any of the correct answers. `iou` is the best IoU of the first look's boxes with the gold boxes.
    """
    return {
        "action": sum(turn.carried_out for turn in trajectory.turns),
        "terminate": trajectory.predicted_answer is not None,
        "accuracy": exact_match(trajectory.predicted_answer, *trajectory.gold_answers),
        "iou": first_box_iou(trajectory),
    }


def first_box_iou(trajectory: Trajectory) -> float:
    """Returns the best IoU of the first look's boxes with the gold boxes; 0 without a look at the gold boxes' image."""
    look = trajectory.first_look
    if look is None or look.image != GOLD_IMAGE:
        return 0.0
    return max((iou(box, gold) for box in look.boxes for gold in trajectory.boxes), default=0.0)


reward("medeyes", needs_answer=["answer"], answer=0.7, grammar=0.2, diversity=0.1, regions=0.0)(medeyes)
reward("deepeyes", needs_answer=["answer", "tool"], answer=0.8, format=0.2, tool=1.2)(deepeyes)
reward("ophiuchus", format=1.0, answer=1.0, tool=2.0, invalid=-0.1, failed_calls=0.0)(ophiuchus)
reward("pyvision", needs_answer=["answer", "calls"], answer=1.0, calls=0.1)(pyvision)
reward("gemex", needs_answer=["answer"], answer=1.0, grounding=1.0)(gemex)
reward("vrt", format=1.0, answer=1.0)(vrt)
reward("format_published", format_published=1.0)(vrt_format_published)
reward("answer_published", answer_published=1.0)(vrt_answer_published)

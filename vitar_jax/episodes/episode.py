"""An episode: one sample, played turn by turn. Tokens, images and turns grow together, for policies and experts alike."""

import copy
import dataclasses
import json
import zlib
from collections.abc import Sequence

import numpy as np

from vitar_jax.episodes.actions import ActionError, Answer, ToolCall
from vitar_jax.episodes.calls import Seen, Shown, play_calls, recorded
from vitar_jax.episodes.notebook import episode_html
from vitar_jax.episodes.object_tags import without_tags
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.episodes.regions import Mask
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Sampling, Stream, Trajectory, TrajectoryImage, Turn
from vitar_jax.episodes.turn_masks import turn_masks
from vitar_jax.errors import ImageError, TooLongError
from vitar_jax.processing.banned import check_learnable
from vitar_jax.processing.files import open_image
from vitar_jax.processing.packing import Example
from vitar_jax.processing.processor import Processor


@dataclasses.dataclass(frozen=True)
class Limits:
    """Budgets of an episode: total tokens, tokens per turn, and images."""

    tokens: int
    turn_tokens: int
    images: int = 4


# Lists of an episode that grow with each turn and observation.
_GROWING = ("token_ids", "loss_mask", "logprobs", "vision_index", "position_ids", "images", "patches", "turns")


class Episode:
    """A sample played under a protocol.

    `token_ids`, `loss_mask`, `logprobs` and `vision_index` have one entry per token; `position_ids` is a list of
    [3, n] pieces. Nothing is ever detokenised and tokenised again. `occurrence` is the number of earlier groups of a training
    step whose samples have the same id.

    Args:
      sampling: Sampling settings of the policy's turns.
      member: Index in the group of episodes of the same sample.

    Raises:
      TooLongError: If the prompt exceeds a limit.
      ImageError: If an image of the sample cannot be read.
    """

    def __init__(
        self,
        sample: Sample,
        protocol: Protocol,
        processor: Processor,
        limits: Limits,
        sampling: Sampling = Sampling(),
        member: int = 0,
    ):
        self.sample = sample
        self.protocol = protocol
        self.processor = processor
        self.limits = limits
        self.sampling = sampling.stopping_at(processor.chat.stop_ids)
        self.member = member
        self.occurrence = 0
        self.token_ids: list[int] = []
        self.loss_mask: list[int] = []
        self.logprobs: list[float | None] = []
        self.vision_index: list[int] = []
        self.position_ids: list[np.ndarray] = []
        self.images: list[TrajectoryImage] = []
        self.patches: list[np.ndarray] = []
        self.turns: list[Turn] = []
        self.predicted_answer: str | None = None
        self.end_reason: str | None = None
        self._next_position = 0
        self._asked_after = 0  # number of turns before the last question

        try:
            opened = [open_image(image) for image in sample.images]
            processed = [processor.process(image) for image in opened]
        except ImageError as error:
            raise ImageError(f"sample {sample.sample_id}: {error}") from error
        messages = protocol.opening(sample, [processor.tokens(one.grid_thw) for one in processed])
        token_ids = processor.chat.render(messages, reply=True)
        if len(token_ids) >= limits.tokens or len(opened) > limits.images:
            raise TooLongError(
                f"sample {sample.sample_id}: got a prompt of {len(token_ids)} tokens and {len(opened)} images, "
                f"expected fewer than {limits.tokens} tokens and at most {limits.images} images; raise the limits"
            )
        self._append(token_ids, [Shown(*image) for image in zip(opened, processed, strict=True)])

    def fork(self, member: int, occurrence: int = 0) -> "Episode":
        """Returns an independent copy that shares the images."""
        twin = copy.copy(self)
        twin.member, twin.occurrence = member, occurrence
        for name in _GROWING:
            setattr(twin, name, list(getattr(self, name)))
        return twin

    @property
    def group_id(self) -> str:
        """The sample's id and, if ambiguous, the occurrence; unique within a step. Of the ids 7, 7 and 7#1: 7, 7#1, 7#1#0."""
        name = self.sample.sample_id
        return f"{name}#{self.occurrence}" if self.occurrence or "#" in name else name

    @property
    def draw_key(self) -> int:
        """The part of the key of random draws that the group's episodes have in common, a 32-bit number."""
        key = zlib.crc32(self.sample.sample_id.encode())
        # UTF-8 has no byte 0xff, so that no sample's id hashes to another sample's occurrence by its text.
        return zlib.crc32(b"\xff%d" % self.occurrence, key) if self.occurrence else key

    @property
    def finished(self) -> bool:
        return self.end_reason is not None

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a turn."""
        return self.processor.chat.im_end, *self.sampling.stop_ids

    @property
    def turn_budget(self) -> int:
        """Maximum number of tokens of the next turn."""
        return min(self.limits.turn_tokens, self.limits.tokens - len(self.token_ids))

    def add_turn(
        self,
        token_ids: Sequence[int],
        logprobs: Sequence[float] | None,
        *,
        learn: bool = True,
        masks: Sequence[tuple[Mask, float]] = (),
    ) -> None:
        """Appends a turn, runs the tool that it calls, and appends the observation or ends the episode.

        Args:
          token_ids: Tokens of the turn, including its stop token unless the budget cut it off.
          logprobs: Log-probability of each token; None if the policy did not sample the turn.
          learn: Whether the loss includes the turn. False for a turn that a control writes instead of the policy.
          masks: Masks on image 0, in frame "original", and their predicted IoUs, of the turn's first `[SEG]` tokens.

        Raises:
          ValueError: If there are more masks than `[SEG]` tokens.
        """
        chat = self.processor.chat
        start = len(self.token_ids)
        stopped = bool(token_ids) and token_ids[-1] in self.stop_ids
        said = token_ids[:-1] if stopped else token_ids
        made = turn_masks(chat, said, masks, start=start) if self.protocol.makes_masks else ()
        self._append(token_ids, written=True, learn=learn, logprobs=logprobs)
        turn = Turn(start, len(self.token_ids), chat.decode(said), masks=made)
        seen: Seen | ActionError | None = ActionError("too_long", "The turn is too long.")
        if stopped:
            turn, seen = self._act(turn)
        elif self.protocol.too_long_ends:
            self.end_reason = "too_long"
        if isinstance(seen, ActionError):
            turn = dataclasses.replace(turn, error=(seen.kind, seen.message))
        self.turns.append(turn)
        if self.finished:
            return
        if self._played == self.protocol.max_turns:
            self.end_reason = "turn_limit"
            return
        closing = [] if token_ids and token_ids[-1] == chat.im_end else [chat.im_end]
        if isinstance(seen, ActionError):
            message = self.protocol.error.format(message=seen.message)
            self._observe(closing + chat.follow_up(("user", [message])), [])
        elif seen is not None:
            counts = [self.processor.tokens(image.processed.grid_thw) for image in seen.images]
            observation = closing + chat.follow_up(self.protocol.observation_message(seen.text, counts))
            if self._observe(observation, seen.images):
                first, *others = seen.of_calls
                further = zip(turn.further, others, strict=True)
                further = tuple(dataclasses.replace(call, image=image) for call, image in further)
                self.turns[-1] = dataclasses.replace(turn, image=first, further=further)

    def ask(self, question: str) -> None:
        """Resumes a finished episode with the user's next question on the same images, or ends it again if no turn fits."""
        chat = self.processor.chat
        closing = [] if self.token_ids[-1] == chat.im_end else [chat.im_end]
        asked = self.protocol.question_message(dataclasses.replace(self.sample, question=question))
        self._asked_after, self.predicted_answer, self.end_reason = len(self.turns), None, None
        self._observe(closing + chat.follow_up(asked), [])

    def _repr_html_(self) -> str:
        """Shows the episode in a notebook."""
        return episode_html(self)

    def example(self, **extras: np.ndarray) -> Example:
        """Returns the episode so far as a training example.

        Raises:
          DataError: If a token under the loss mask is banned.
        """
        name, token_ids, loss_mask = self.sample.sample_id, np.array(self.token_ids, np.int32), np.array(self.loss_mask, bool)
        check_learnable(name, token_ids, loss_mask, self.processor.chat, stop_ids=self.stop_ids)
        return Example(
            name=name,
            token_ids=token_ids,
            loss_mask=loss_mask,
            position_ids=np.concatenate(self.position_ids, axis=1),
            vision_index=np.array(self.vision_index, np.int32),
            patches=tuple(self.patches),
            grids=tuple(image.grid_thw for image in self.images),
            content_ids=tuple(image.sha256 for image in self.images),
            extras=extras,
        )

    def trajectory(self, *, stream: Stream, policy_version: int, banned_sha256: str) -> Trajectory:
        """Returns the record of the finished episode."""
        positions = np.concatenate(self.position_ids, axis=1)
        return Trajectory(
            sample_id=self.sample.sample_id,
            group_id=self.group_id,
            member=self.member,
            stream=stream,
            policy_version=policy_version,
            protocol=self.protocol.name,
            sampling=self.sampling,
            banned_sha256=banned_sha256,
            question=self.sample.question,
            options=self.sample.options,
            answer=self.sample.answer,
            answers=self.sample.answers,
            boxes=self.sample.boxes,
            objects=self.sample.objects,
            token_ids=tuple(self.token_ids),
            loss_mask=tuple(self.loss_mask),
            logprobs=tuple(self.logprobs),
            position_ids=tuple(tuple(axis) for axis in positions.tolist()),  # type: ignore[arg-type]
            vision_index=tuple(self.vision_index),
            images=tuple(self.images),
            turns=tuple(self.turns),
            predicted_answer=self.predicted_answer,
            end_reason=self.end_reason or "unfinished",
            metadata=json.loads(json.dumps(dict(self.sample.metadata), default=str)),
        )

    @property
    def _played(self) -> int:
        """Number of turns since the last question."""
        return len(self.turns) - self._asked_after

    def _act(self, turn: Turn) -> tuple[Turn, Seen | ActionError | None]:
        """Parses a turn and runs its tools. Returns the parsed turn, and the tools' result or an error."""
        parsed = self.protocol.read(turn.text)
        outcome = parsed.outcome
        call = outcome if isinstance(outcome, ToolCall) else None
        turn = dataclasses.replace(turn, thought=parsed.thought, action=parsed.action, call=call)
        if call is not None:  # all that precedes a look is reasoning
            turn = dataclasses.replace(turn, masks=tuple(dataclasses.replace(one, part="reasoning") for one in turn.masks))
        if isinstance(outcome, Answer) and parsed.further and self.protocol.max_calls > 1:
            return turn, ActionError("second_action", "A turn calls tools or answers.")
        if isinstance(outcome, Answer):
            if not self.protocol.early_answer and self._played + 1 < self.protocol.max_turns:
                return turn, ActionError("too_early", "It is too early to answer.")
            self.predicted_answer = without_tags(outcome.text) if self.protocol.makes_masks else outcome.text
            self.end_reason = "answered"
            return turn, None
        if isinstance(outcome, ActionError):
            return turn, outcome
        calls = (outcome, *parsed.further) if self.protocol.max_calls > 1 else (outcome,)
        if len(calls) > self.protocol.max_calls:
            return turn, ActionError("second_action", f"A turn has at most {self.protocol.max_calls} actions.")
        if any(isinstance(one, Answer) for one in calls):
            return turn, ActionError("second_action", "A turn calls tools or answers.")
        played, seen = play_calls(calls, self.sample, self.protocol, self.processor, self.images, len(self.turns), turn.masks)
        first, *further = played
        boxes = {"boxes_model_input": first.boxes_model_input, "boxes_original": first.boxes_original}
        error = seen.error and (seen.error.kind, seen.error.message)
        turn = dataclasses.replace(turn, **boxes, further=tuple(further), error=error)
        return turn, seen.error if seen.error is not None and not further else seen


    def _observe(self, token_ids: list[int], images: Sequence[Shown]) -> bool:
        """Appends an observation, or ends the episode if no turn would fit after it. Returns whether it was appended."""
        room = len(self.token_ids) + len(token_ids) < self.limits.tokens
        if not room or len(self.images) + len(images) > self.limits.images:
            self.end_reason = "overflow"
            return False
        self._append(token_ids, images)
        return True

    def _append(
        self,
        token_ids: Sequence[int],
        images: Sequence[Shown] = (),
        *,
        written: bool = False,
        learn: bool = False,
        logprobs: Sequence[float] | None = None,
    ) -> None:
        """Appends tokens and images to the lists of the record. No other method appends them.

        Args:
          written: Whether the tokens are a turn, in which no token is an image placeholder.
        """
        pad = self.processor.chat.image_pad
        positions, self._next_position = self.processor.append_positions(
            self._next_position,
            [-1] * len(token_ids) if written else token_ids,
            [image.processed.grid_thw for image in images],
        )
        first = sum(self.processor.tokens(image.grid_thw) for image in self.images)
        self.token_ids += token_ids
        self.loss_mask += [int(learn)] * len(token_ids)
        self.logprobs += list(logprobs) if logprobs is not None else [None] * len(token_ids)
        self.position_ids.append(positions)
        for token in token_ids:
            is_image = not written and token == pad
            self.vision_index.append(first if is_image else -1)
            first += is_image
        for shown in images:
            turn = len(self.turns) - 1 if self.turns else None
            self.images.append(recorded(shown, turn))
            self.patches.append(shown.processed.patches)

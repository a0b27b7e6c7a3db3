"""Checks that another engine gives the tokens of this package: greedy tokens and log-probabilities of prompts with images.

Examples:
  python -m vitar_jax.check_export --checkpoint=runs/vqa/grpo/model
  python -m vitar_jax.check_export --checkpoint=DIR --endpoint=http://127.0.0.1:8000/v1 --model=NAME

The peer is `transformers` (Hugging Face's model and processors, read from the same directory; needs torch), or the server of
--endpoint, for example vLLM, if it returns token ids and log-probabilities. The prompts and their images are made here, from a
seed. Both sides see the same tokens up to the first difference, and a margin is by how much the other token is more likely.

Tokens that this package never samples (`processing/banned.py`) are left out of the distribution of `transformers`. How much
probability the model gives them is printed, because other engines may sample them.

The exit code is 0 if all tokens are equal and all log-probabilities are within --tolerance, 1 if not, and 2 if the check could
not be made. A margin within the tolerance is a tie, and counts as equal.
"""

import dataclasses
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from PIL import Image

from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Sampling
from vitar_jax.errors import CheckpointError, ConfigError, EndpointError
from vitar_jax.models.pretrained import load_pretrained
from vitar_jax.models.vision_language import VisionLanguageModel
from vitar_jax.processing.hf_prompt import hf_prompt
from vitar_jax.processing.packing import BatchShape, pack
from vitar_jax.rollout.messages import token_messages
from vitar_jax.rollout.player import Player
from vitar_jax.runtime import cli
from vitar_jax.runtime.endpoint import ChatClient

PLAIN = Protocol("check_export", system="You are an assistant for medical images.", parser="plain")
QUESTIONS = (
    "Describe the image.",
    "Which region looks abnormal, and why?",
    "Is there a lesion? Answer yes or no, then explain.",
    "What is the modality of this image?",
    "List the bright structures from left to right.",
)
TOLERANCES = {"transformers": 1e-3, "endpoint": 0.05}  # nats; servers usually compute in bfloat16


@dataclasses.dataclass(frozen=True)
class Asked:
    """A prompt before its turn, and after our greedy turn."""

    begun: Episode
    played: Episode

    @property
    def token_ids(self) -> list[int]:
        """Tokens of our turn."""
        return self.played.token_ids[len(self.begun.token_ids) :]

    @property
    def logprobs(self) -> list[float]:
        """Log-probabilities of our turn's tokens."""
        return [logprob for logprob in self.played.logprobs[len(self.begun.token_ids) :] if logprob is not None]


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a peer says of a prompt.

    Attributes:
      prompt_ids: The peer's tokens of the prompt; empty if it does not return them.
      token_ids: Its greedy tokens: of `transformers`, each after our tokens before it; of an endpoint, of its own turn.
      of_ours: Log-probabilities that it gives our tokens, as far as its tokens before them are ours.
      margins: By how much each of its tokens is more likely than ours, by its own weights (nats). None if it does not say.
      banned: The most probability at one position on tokens that this package never samples.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    of_ours: tuple[float, ...]
    margins: tuple[float, ...] | None = None
    banned: float = 0.0


Peer = Callable[[Asked], Reply]
Margin = Callable[[Asked, int, int], float]  # prompt, index of the token in the turn, the other token


@dataclasses.dataclass(frozen=True)
class Finding:
    """How a peer's turn differs from ours.

    Attributes:
      difference: What differs first, for people; empty if nothing does.
      logprobs: Largest difference of the log-probabilities of equal tokens (nats).
    """

    difference: str
    logprobs: float


def pictures(seed: int) -> Iterator[Image.Image]:
    """Yields images of different sizes, shapes and modes, smooth with some noise."""
    rng = np.random.default_rng(seed)
    while True:
        width, height = (int(side) for side in rng.integers(90, 420, 2))
        y, x = np.mgrid[:height, :width] / max(width, height)
        waves = [np.sin(x * rng.uniform(2, 30) + y * rng.uniform(2, 30)) for _ in range(3)]
        values = 127 + 90 * np.stack(waves, axis=-1) + rng.normal(0, 12, (height, width, 3))
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
        yield image.convert("L") if rng.random() < 0.3 else image


def prompts(count: int, most_images: int, seed: int = 0) -> Iterator[Sample]:
    """Yields questions about one image, and about two images if there may be two, in turn."""
    made = pictures(seed)
    for number in range(count):
        images = tuple(next(made) for _ in range(1 + (number % 4 == 3 and most_images > 1)))
        yield Sample(str(number), QUESTIONS[number % len(QUESTIONS)], images, "")


def play(player: Player, count: int, tokens: int) -> list[Asked]:
    """Plays the prompts, one greedy turn each.

    Args:
      tokens: Maximum number of tokens of a turn.
    """
    limits, greedy = dataclasses.replace(player.engine.limits, turn_tokens=tokens), Sampling(temperature=0.0)
    begun = [Episode(sample, PLAIN, player.processor, limits, greedy) for sample in prompts(count, limits.images)]
    asked = [Asked(one, one.fork(0)) for one in begun]
    for _ in player.play([one.played] for one in asked):
        pass
    return asked


def transformers_peer(checkpoint: str, banned: np.ndarray) -> Peer:
    """Returns a function that scores a turn of ours with Hugging Face's model, in one pass over prompt and turn.

    Raises:
      ConfigError: If torch is not installed.
      CheckpointError: If transformers cannot load the checkpoint.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ConfigError(f"check_export: {error}; install torch, or name a server with --endpoint") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(checkpoint)
        images: Any = transformers.AutoImageProcessor.from_pretrained(checkpoint)
        model: Any = transformers.AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    except Exception as error:  # transformers raises many types for a damaged checkpoint
        raise CheckpointError(f"{checkpoint}: transformers cannot load it ({type(error).__name__}: {error})") from error
    never = torch.tensor(banned)

    @torch.inference_mode()
    def score(asked: Asked) -> Reply:
        episode, ours = asked.begun, asked.token_ids
        shown = [{"type": "image"}] * len(episode.images)
        messages = [
            {"role": "system", "content": [{"type": "text", "text": PLAIN.system}]},
            {"role": "user", "content": [*shown, {"type": "text", "text": episode.sample.question}]},
        ]
        pictures = [image.pixels for image in episode.images]
        prompt, seen = hf_prompt(tokenizer, images, model.config.image_token_id, messages, pictures)
        ids = torch.tensor([[*prompt, *ours]])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
        logits = model(**inputs, **seen, use_cache=False, logits_to_keep=len(ours) + 1).logits[0, :-1].float()
        outside = logits.softmax(dim=-1)[:, never].sum(dim=-1).max().item()
        logprobs = logits.masked_fill(never, -math.inf).log_softmax(dim=-1)
        best = logprobs.max(dim=-1)
        of_ours = logprobs.gather(1, torch.tensor(ours)[:, None])[:, 0]
        margins = (best.values - of_ours).tolist()
        return Reply(tuple(prompt), tuple(best.indices.tolist()), tuple(of_ours.tolist()), tuple(margins), outside)

    return score


def endpoint_peer(client: ChatClient, tokens: int) -> Peer:
    """Returns a function that asks an endpoint for its own greedy turn.

    Args:
      tokens: Maximum number of tokens of a turn.
    """

    def ask(asked: Asked) -> Reply:
        wanted = {"max_tokens": tokens, "logprobs": True, "return_token_ids": True}
        said = client.complete(token_messages(asked.begun), **wanted)
        if not said.token_ids or len(said.token_ids) != len(said.logprobs):
            raise EndpointError("no_tokens", "the endpoint returns no token ids with log-probabilities")
        same = os.path.commonprefix([list(said.token_ids), asked.token_ids])
        return Reply(said.prompt_token_ids, said.token_ids, said.logprobs[: len(same)])

    return ask


def own_margin(checkpoint: str) -> Margin:
    """Returns a function that says by how much our model prefers our token to another. Its first call reads the weights."""

    @cache
    def model() -> VisionLanguageModel:
        return load_pretrained(checkpoint)

    def margin(asked: Asked, place: int, other: int) -> float:
        episode = asked.begun.fork(0)
        episode.add_turn(asked.token_ids[: place + 1], None)
        example, processor = episode.example(), episode.processor
        largest = max((processor.size_class(grid) for grid in example.grids), key=lambda one: one.slots)
        length = len(example.token_ids)
        shape = BatchShape(1, 1, length, len(example.grids), largest, length)
        with jax.default_matmul_precision("highest"):
            hidden = model()(**pack([example], shape, processor).inputs)
            logits = hidden[0, 0, len(asked.begun.token_ids) + place - 1] @ model().head()
        return float(logits[asked.token_ids[place]] - logits[other])

    return margin


def compare(asked: Asked, reply: Reply, tolerance: float, margin: Margin) -> Finding:
    """Compares a peer's tokens and log-probabilities with ours.

    Args:
      tolerance: Margin up to which two tokens are a tie (nats).
      margin: Called for the first token that differs, if the peer does not say its margin.
    """
    chat, prompt = asked.begun.processor.chat, asked.begun.token_ids
    if reply.prompt_ids and list(reply.prompt_ids) != prompt:
        place = len(os.path.commonprefix([list(reply.prompt_ids), prompt]))
        return Finding(f"the prompt differs at token {place} of {len(prompt)}", 0.0)
    ours, logprobs = asked.token_ids, 0.0
    for place, (token, other) in enumerate(zip_longest(ours, reply.token_ids)):
        if place < len(reply.of_ours):
            logprobs = max(logprobs, abs(asked.logprobs[place] - reply.of_ours[place]))
        if token == other or (other is None and token in asked.begun.stop_ids):  # some servers leave out the stop token
            continue
        if token is None or other is None:
            return Finding(f"{'ours' if token is None else 'the other turn'} ends after {place} tokens", logprobs)
        by = reply.margins[place] if reply.margins is not None else margin(asked, place, other)
        if by > tolerance:
            spelt = f"ours is {chat.decode([token])!r} ({token}), the other {chat.decode([other])!r} ({other})"
            return Finding(f"token {place} of {len(ours)} differs: {spelt}, by a margin of {by:.3g} nats", logprobs)
        if reply.margins is None:  # after a tie, the turns go on from different tokens
            break
    return Finding("", logprobs)


def main() -> None:
    logging.set_verbosity(logging.WARNING)
    given = flags.FLAGS
    if given.checkpoint is None:
        raise ConfigError("check_export: expected --checkpoint=DIR; --help shows examples")
    if given.endpoint and not given.model:
        raise ConfigError(f"--endpoint={given.endpoint}: needs --model")
    kind = "endpoint" if given.endpoint else "transformers"
    tolerance = TOLERANCES[kind] if given.tolerance is None else given.tolerance
    player = Player.load(given.checkpoint, attention=given.attention, dtype=given.dtype, slots=min(given.prompts, 8))
    asked = play(player, given.prompts, given.tokens)
    with tempfile.TemporaryDirectory() as scratch:
        if given.endpoint:
            key = os.environ.get(given.key_variable, "")
            fields = {"temperature": 0.0, "seed": 0}
            client = ChatClient(given.endpoint, given.model, Path(scratch) / "replies.jsonl", fields, key=key)
            peer = endpoint_peer(client, given.tokens)
        else:
            peer = transformers_peer(given.checkpoint, np.asarray(player.engine.banned))
        margin = own_margin(given.checkpoint)
        replies = [peer(one) for one in asked]
        findings = [compare(one, reply, tolerance, margin) for one, reply in zip(asked, replies, strict=True)]
    for number, found in enumerate(findings):
        if found.difference or found.logprobs > tolerance:
            apart = f"log-probabilities differ by up to {found.logprobs:.3g} nats"
            print(f"prompt {number}: {'; '.join(filter(None, (found.difference, apart)))}")
    wrong = sum(bool(found.difference) or found.logprobs > tolerance for found in findings)
    counts = sum(len(one.token_ids) for one in asked), sum(len(one.begun.images) for one in asked)
    print(f"peer: {given.endpoint or 'transformers'}; {len(asked)} prompts, {counts[1]} images, {counts[0]} tokens")
    if (most := max(reply.banned for reply in replies)) > tolerance:
        print(f"note: up to {most:.1%} of the probability is on tokens that this package never samples, but others may")
    apart = max(found.logprobs for found in findings)
    print(f"log-probabilities differ by at most {apart:.3g} nats (tolerance {tolerance:g})")
    print(f"{wrong} of {len(asked)} prompts differ" if wrong else "all tokens are equal")
    sys.exit(1 if wrong else 0)


def define_flags() -> None:
    flags.DEFINE_string("checkpoint", None, "Checkpoint with its tokenizer: a directory, a gs:// URL or a hub repository.")
    flags.DEFINE_string("endpoint", "", "Endpoint of chat completions to compare with (default: transformers, here).")
    flags.DEFINE_string("model", "", "Name of the endpoint's model (required with --endpoint).")
    flags.DEFINE_string("key_variable", "OPENAI_API_KEY", "Environment variable with the endpoint's API key.")
    flags.DEFINE_integer("prompts", 20, "Number of prompts.", lower_bound=1)
    flags.DEFINE_integer("tokens", 32, "Maximum number of tokens of a turn.", lower_bound=1)
    flags.DEFINE_float(
        "tolerance",
        None,
        "Maximum difference of log-probabilities, and of tokens in a tie, in nats (default: "
        f"{TOLERANCES['transformers']:g} with transformers, {TOLERANCES['endpoint']:g} with an endpoint).",
        lower_bound=0.0,
    )
    flags.DEFINE_string("attention", "xla", "Attention back end: xla, splash (TPU) or cudnn (NVIDIA GPU with bfloat16).")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of our weights and computation.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)

"""The rollout peer: plays the same episodes with Hugging Face's module on torch, one batch of slots at a time.

Each prompt is prefilled once and its cache copied for the group. Then all slots decode their turn, their tools run on threads,
and the tools' images are encoded in one batch and prefilled into the same cache. Rows are left-padded, also in the middle of
the cache, and a mask hides the padding.

The decode loop is written by hand, because `generate` does more work in Python between its steps. The loop gets what `generate`
would have to find out: positions, and the number of tokens of each turn, so it never checks whether all rows have ended.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, DynamicCache, StaticCache

from vitar_jax.bench.scripted import Script
from vitar_jax.bench.torch_peer import Setting, encode, vision_indices
from vitar_jax.episodes.episode import Episode
from vitar_jax.processing.positions import Grid

Follow = Callable[[Episode], Sequence[int]]
"""Returns the tokens that an episode's next turn must have."""


class Loop:
    """A player of scripts that runs Hugging Face's module under the setting chosen by `use`."""

    def __init__(self, directory: Path, script: Script):
        rollout = script.case.recipe.rollout
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Any = AutoModelForImageTextToText.from_pretrained(directory, dtype=getattr(torch, rollout.dtype))
        self.model.to(self.device).eval()
        self.text = self.model.model.language_model
        self.banned = self.tensor(script.banned)
        self.slots, self.capacity = rollout.slots, script.case.recipe.limits.tokens
        self.pool = ThreadPoolExecutor(rollout.workers)
        self.indices: dict[tuple[Grid, ...], dict[str, Any]] = {}
        self.use(Setting("sdpa", compiled=False))

    def use(self, setting: Setting) -> None:
        torch.compiler.reset()
        self.model.set_attn_implementation(setting.attention)
        self.encode: Callable[..., torch.Tensor] = self._encode
        self.read: Callable[..., torch.Tensor] = self._read
        self.step: Callable[..., tuple[torch.Tensor, torch.Tensor]] = self._step
        if setting.compiled:
            graphs = "reduce-overhead" if self.device.type == "cuda" else "default"
            self.encode, self.read = (torch.compile(f, dynamic=False) for f in (self._encode, self._read))
            self.step = torch.compile(self._step, dynamic=False, mode=graphs)
        # One cache for all batches, because compiled code refers to its address.
        self.cache: Any = StaticCache(self.text.config, max_cache_len=self.capacity)

    @torch.inference_mode()
    def play(self, groups: Sequence[Sequence[Episode]], follow: Follow | None = None) -> None:
        """Plays episodes to their end, in place.

        Args:
          groups: Groups of equal size, which fill all slots of every batch.
          follow: Returns the tokens of an episode's next turn. If None, samples them.
        """
        for batch, episodes in batches(groups, self.slots):
            leaders = _Rows(self, [group[0] for group in batch], DynamicCache(config=self.text.config))
            leaders.read()
            if self.cache.is_initialized:
                self.cache.reset()
            rows = leaders.fork(episodes, self.cache)
            rows.write(follow)
            while not all(episode.finished for episode in rows.episodes):
                rows.read()
                rows.write(follow)

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

    def bias(self, attended: torch.Tensor) -> torch.Tensor:
        """Returns the bias that attention adds to its logits, from a mask of attended positions."""
        zeros = torch.zeros(attended.shape, dtype=self.model.dtype, device=self.device)
        return zeros.masked_fill_(~attended, torch.finfo(self.model.dtype).min)

    def features(self, images: Sequence[tuple[np.ndarray, Grid]]) -> torch.Tensor:
        grids = tuple(grid for _, grid in images)
        if grids not in self.indices:
            self.indices[grids] = vision_indices(torch.tensor(grids), self.model.model.visual, self.device)
        patches = self.tensor(np.concatenate([patches for patches, _ in images])).to(self.model.dtype)
        return self.encode(patches, self.indices[grids])

    def draw(self, logprobs: torch.Tensor, uniform: torch.Tensor, forced: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns tokens [B] and their log-probabilities: `forced` [B], or sampled tokens if -1."""
        below = logprobs.exp().cumsum(-1)
        drawn = torch.searchsorted(below, uniform[:, None] * below[:, -1:], right=True)[:, 0]
        token = torch.where(forced < 0, drawn, forced)
        return token, logprobs.gather(1, token[:, None])[:, 0]

    # Calls of the module, eager or compiled

    def _encode(self, patches: torch.Tensor, indices: dict[str, Any]) -> torch.Tensor:
        return encode(self.model.model.visual, patches, indices)

    def _read(self, token_ids: torch.Tensor, features: torch.Tensor, is_image: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Prefills a cache with tokens [B, T] and returns the log-probabilities [B, V] of the next token."""
        first, *levels = features.split(self.text.config.hidden_size, dim=-1)
        if levels:
            inputs |= {"visual_pos_masks": is_image, "deepstack_visual_embeds": levels}
        embeddings = self.text.embed_tokens(token_ids).masked_scatter(is_image[..., None], first)
        return self._next_logprobs(inputs_embeds=embeddings, **inputs)

    def _step(
        self, token: torch.Tensor, uniform: torch.Tensor, forced: torch.Tensor, **inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decodes one step: takes one token per row and samples the next."""
        return self.draw(self._next_logprobs(input_ids=token[:, None], **inputs), uniform, forced)

    def _next_logprobs(self, **inputs: Any) -> torch.Tensor:
        hidden = self.text(**inputs, use_cache=True).last_hidden_state[:, -1]
        return self.model.lm_head(hidden).float().masked_fill(self.banned, -torch.inf).log_softmax(-1)


class _Rows:
    """A batch of episodes and their cache.

    Attributes:
      seen: bool [B, M], positions of the cache that hold a token of the row. Others are padding or still empty.
      filled: Number of positions that hold a token or padding.
      known: Number of tokens in the cache, for each episode.
      logprobs: [B, V], of each row's next token.
    """

    def __init__(self, loop: Loop, episodes: Sequence[Episode], cache: Any):
        self.loop, self.episodes, self.cache = loop, episodes, cache
        self.places = torch.arange(loop.capacity, device=loop.device)
        self.seen = torch.zeros(len(episodes), loop.capacity, dtype=torch.bool, device=loop.device)
        self.filled = 0
        self.known = [0] * len(episodes)
        self.logprobs = torch.empty(0)

    def fork(self, episodes: Sequence[Episode], cache: Any) -> "_Rows":
        """Returns rows in which each episode is replaced by its group, whose members continue from a copy of its cache."""
        rows, size = _Rows(self.loop, episodes, cache), len(episodes) // len(self.episodes)
        for index, layer in enumerate(self.cache.layers):
            cache.update(layer.keys.repeat_interleave(size, 0), layer.values.repeat_interleave(size, 0), index)
        rows.seen, rows.logprobs = (tensor.repeat_interleave(size, 0) for tensor in (self.seen, self.logprobs))
        rows.filled, rows.known = self.filled, [known for known in self.known for _ in range(size)]
        return rows

    def read(self) -> None:
        """Prefills the episodes' new tokens and encodes their new images."""
        loop, counts = self.loop, [len(e.token_ids) - known for e, known in zip(self.episodes, self.known, strict=True)]
        rows, longest = len(counts), max(counts)
        token_ids, vision_index = np.zeros((rows, longest), int), np.full((rows, longest), -1)
        position_ids = np.zeros((3, rows, longest), int)
        images = []
        for row, (episode, known, count) in enumerate(zip(self.episodes, self.known, counts, strict=True)):
            place = slice(longest - count, None)
            token_ids[row, place] = episode.token_ids[known:]
            vision_index[row, place] = episode.vision_index[known:]
            position_ids[:, row, place] = np.concatenate(episode.position_ids, axis=1)[:, known:]
            images += new_images(episode, known)
        self.known = [len(episode.token_ids) for episode in self.episodes]
        is_real = np.arange(longest) >= longest - np.array(counts)[:, None]
        new = torch.arange(self.filled, self.filled + longest, device=loop.device)
        self.seen[:, self.filled : self.filled + longest] = loop.tensor(is_real)
        attended = self.seen[:, None, None] & (self.places <= new[:, None])
        self.filled += longest
        held = self.filled if isinstance(self.cache, DynamicCache) else loop.capacity
        self.logprobs = loop.read(
            loop.tensor(token_ids),
            loop.features(images),
            loop.tensor(vision_index >= 0),
            position_ids=loop.tensor(position_ids),
            attention_mask=loop.bias(attended)[..., :held],
            past_key_values=self.cache,
        )

    def write(self, follow: Follow | None) -> None:
        """Samples a turn of every episode and executes its action. The next `read` prefills the last sampled token."""
        loop, rows = self.loop, len(self.episodes)
        budgets, forced = turns_to_write(self.episodes, follow)
        steps = int(budgets.max())
        starts = np.array([episode.position_ids[-1].max() + 1 for episode in self.episodes])
        positions = np.broadcast_to(starts + np.arange(steps)[:, None], (3, steps, rows))
        new = torch.arange(self.filled, self.filled + steps - 1, device=loop.device)
        self.seen[:, self.filled : self.filled + steps - 1] = loop.tensor(np.arange(steps - 1) < budgets[:, None] - 1)
        bias = loop.bias(self.seen & (self.places <= new[:, None, None]))
        uniform = torch.rand(steps, rows, device=loop.device) * (1 - 1e-6)  # below 1 even after rounding in `draw`
        on_device = loop.tensor(forced.T.copy())
        position_ids = loop.tensor(positions.transpose(1, 0, 2)[..., None].copy())

        tokens = torch.empty(steps, rows, dtype=torch.long, device=loop.device)
        logprobs = torch.empty(steps, rows, device=loop.device)
        tokens[0], logprobs[0] = loop.draw(self.logprobs, uniform[0], on_device[0])
        for step in range(steps - 1):
            tokens[step + 1], logprobs[step + 1] = loop.step(
                tokens[step],
                uniform[step + 1],
                on_device[step + 1],
                position_ids=position_ids[step],
                attention_mask=bias[step, :, None, None],
                past_key_values=self.cache,
            )
        self.filled += steps - 1
        self.known = [len(e.token_ids) + budget - 1 for e, budget in zip(self.episodes, budgets.tolist(), strict=True)]
        act(loop.pool, self.episodes, tokens.T, logprobs.T, budgets)


# Helpers of both loops


def batches(groups: Sequence[Sequence[Episode]], slots: int) -> Iterator[tuple[Sequence[Sequence[Episode]], list[Episode]]]:
    """Yields as many groups as the slots hold, and their episodes. All groups have the same size."""
    count = slots // len(groups[0])
    for first in range(0, len(groups), count):
        batch = groups[first : first + count]
        yield batch, [episode for group in batch for episode in group]


def new_images(episode: Episode, known: int) -> list[tuple[np.ndarray, Grid]]:
    """Returns the patches and grids of an episode's new images: all if `known` is 0, otherwise the last turn's.

    Args:
      known: Number of the episode's tokens in the cache.
    """
    return [
        (patches, image.grid_thw)
        for patches, image in zip(episode.patches, episode.images, strict=True)
        if known == 0 or image.turn == len(episode.turns) - 1
    ]


def turns_to_write(episodes: Sequence[Episode], follow: Follow | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the number of tokens [B] of each episode's turn, and the forced tokens [B, steps], -1 where sampled."""
    budgets = np.array([episode.turn_budget for episode in episodes])
    forced = np.full((len(episodes), budgets.max()), -1)
    if follow:
        for row, episode in enumerate(episodes):
            forced[row, : budgets[row]] = follow(episode)
    return budgets, forced


def act(
    pool: ThreadPoolExecutor, episodes: Sequence[Episode], tokens: torch.Tensor, logprobs: torch.Tensor, budgets: np.ndarray
) -> None:
    """Adds the tokens [B, steps] of each episode's turn to the episode and executes its action."""
    turns = zip(episodes, tokens.tolist(), logprobs.tolist(), budgets.tolist(), strict=True)
    for done in [pool.submit(e.add_turn, ids[:count], values[:count]) for e, ids, values, count in turns]:
        done.result()

"""Rollout as users write it with Hugging Face's module: batched `generate`, tools, batched `generate`.

Each prompt is prefilled once and its cache copied for the group. The second `generate` call continues from the first call's
cache and gets only the features of the new images. Rows are left-padded, also in the middle of the cache, and masked.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, LogitsProcessor

from vitar_jax.bench.torch_loop import Follow, Loop, act, batches, new_images, turns_to_write
from vitar_jax.bench.torch_peer import Setting
from vitar_jax.episodes.episode import Episode


class GenerateLoop:
    """A player of scripts that calls `generate`, with the model and the threads of `loop`."""

    def __init__(self, loop: Loop):
        self.loop, self.model = loop, loop.model
        self.suppressed = torch.nonzero(loop.banned)[:, 0].tolist()

    def use(self, setting: Setting) -> None:
        self.model.set_attn_implementation(setting.attention)

    @torch.inference_mode()
    def play(self, groups: Sequence[Sequence[Episode]], follow: Follow | None = None) -> None:
        """Plays episodes to their end, in place.

        Args:
          groups: Groups of equal size, which fill all slots of every batch.
          follow: Returns the tokens of an episode's next turn. If None, samples them.
        """
        for batch, episodes in batches(groups, self.loop.slots):
            rows = _Rows(self, [group[0] for group in batch])
            rows.read_prompts()
            rows.fork(episodes)
            while True:
                rows.write(follow)
                if all(episode.finished for episode in rows.episodes):
                    break
                rows.append()


class _Follow(LogitsProcessor):
    """A processor of logits with which `generate` chooses the tokens `forced` [B, steps], and samples if they are -1."""

    def __init__(self, forced: torch.Tensor, start: int):
        self.forced, self.start = forced, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = self.forced[:, input_ids.shape[1] - self.start, None]
        only = torch.full_like(scores, -torch.inf).scatter_(1, forced.clamp(min=0), 0.0)
        return torch.where(forced < 0, scores, only)


class _Rows:
    """A batch of episodes: their tokens [B, S], masks of real tokens and of image tokens, and their cache."""

    def __init__(self, loop: GenerateLoop, episodes: Sequence[Episode]):
        self.loop, self.episodes = loop, episodes
        self.cache: Any = DynamicCache(config=loop.loop.text.config)
        empty = torch.zeros(len(episodes), 0, dtype=torch.long)
        self.token_ids, self.is_real, self.is_image = empty, empty, empty
        self.known = [0] * len(episodes)
        self.images: dict[str, Any] = {}
        self.append()

    def append(self) -> None:
        """Appends the episodes' new tokens and encodes their new images."""
        torch_loop = self.loop.loop
        counts = [len(e.token_ids) - known for e, known in zip(self.episodes, self.known, strict=True)]
        longest = max(counts)
        added = np.zeros((3, len(counts), longest), int)
        patches = []
        for row, (episode, known, count) in enumerate(zip(self.episodes, self.known, counts, strict=True)):
            place = slice(longest - count, None)
            added[0, row, place] = episode.token_ids[known:]
            added[1, row, place] = 1
            added[2, row, place] = np.array(episode.vision_index[known:]) >= 0
            patches += new_images(episode, known)
        self.known = [len(episode.token_ids) for episode in self.episodes]
        new = torch_loop.tensor(added)
        self.token_ids, self.is_real, self.is_image = (
            torch.cat([old.to(new.device), more], dim=1)
            for old, more in zip((self.token_ids, self.is_real, self.is_image), new, strict=True)
        )
        pixels = torch_loop.tensor(np.concatenate([patch for patch, _ in patches])).to(self.loop.model.dtype)
        grids = torch.tensor([grid for _, grid in patches])
        self.images = {"image": self.loop.model.get_image_features(pixels, grids, return_dict=True)}

    def read_prompts(self) -> None:
        """Prefills the cache with all but the last token of each prompt."""
        model = self.loop.model.model
        model.rope_deltas = None
        model(
            input_ids=self.token_ids[:, :-1],
            attention_mask=self.is_real[:, :-1],
            mm_token_type_ids=self.is_image[:, :-1],
            image_grid_thw=self._grids(),
            mm_encoder_outputs=self.images,
            past_key_values=self.cache,
            use_cache=True,
        )

    def fork(self, episodes: Sequence[Episode]) -> None:
        """Replaces each episode by its group, whose members continue from a copy of its cache."""
        size = len(episodes) // len(self.episodes)
        self.episodes, self.images = episodes, {}
        self.cache.batch_repeat_interleave(size)
        self.token_ids, self.is_real, self.is_image = (
            tensor.repeat_interleave(size, 0) for tensor in (self.token_ids, self.is_real, self.is_image)
        )
        self.loop.model.model.rope_deltas = self.loop.model.model.rope_deltas.repeat_interleave(size, 0)
        self.known = [len(episode.token_ids) for episode in episodes]

    def write(self, follow: Follow | None) -> None:
        """Samples a turn of every episode, padded to the longest, and executes its action."""
        torch_loop, start = self.loop.loop, self.token_ids.shape[1]
        budgets, forced = turns_to_write(self.episodes, follow)
        steps = int(budgets.max())
        drawn = self.loop.model.generate(
            input_ids=self.token_ids,
            attention_mask=self.is_real,
            mm_token_type_ids=self.is_image,
            image_grid_thw=self._grids(),
            mm_encoder_outputs=self.images,
            past_key_values=self.cache,
            logits_processor=[_Follow(torch_loop.tensor(forced), start)] if follow else None,
            suppress_tokens=self.loop.suppressed,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=steps,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens = drawn.sequences[:, start:]
        logits = torch.stack(drawn.logits, dim=1).float().masked_fill(torch_loop.banned, -torch.inf)
        logprobs = logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0]
        written = torch_loop.tensor((np.arange(steps) < budgets[:, None]).astype(int))
        self.token_ids = drawn.sequences
        self.is_real = torch.cat([self.is_real, written], dim=1)
        self.is_image = torch.cat([self.is_image, torch.zeros_like(written)], dim=1)
        self.known = [len(e.token_ids) + budget for e, budget in zip(self.episodes, budgets.tolist(), strict=True)]
        act(torch_loop.pool, self.episodes, tokens, logprobs, budgets)

    def _grids(self) -> torch.Tensor:
        """Returns the grids of all images so far."""
        return torch.tensor([image.grid_thw for episode in self.episodes for image in episode.images])

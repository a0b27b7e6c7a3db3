"""Hugging Face's Qwen2 on torch with the weights of our decoder, and a minimal SFT step."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from vitar_jax.bench.text_task import OPTIMIZER
from vitar_jax.bench.torch_peer import Setting, new_optimizer
from vitar_jax.models.kernels.xla import MASKED

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def text_weights(directory: Path) -> dict[str, torch.Tensor]:
    """Returns the decoder's weights of a checkpoint, by name."""
    weights = load_file(directory / "model.safetensors")
    return {name: weight for name, weight in weights.items() if name.startswith("model.")}


def text_model(directory: Path, config: Any, banned: np.ndarray, attention: str) -> Any:
    """Returns the text-only module. A frozen bias of its head bans tokens, as our softmax does."""
    assert config.tie_word_embeddings
    model: Any = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            rms_norm_eps=config.rms_norm_eps,
            max_position_embeddings=config.max_position_embeddings,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        )
    )
    model.set_attn_implementation(attention)
    model.load_state_dict(text_weights(directory), strict=False)  # the head is tied
    bias = torch.zeros(config.vocab_size).masked_fill_(torch.from_numpy(banned), MASKED)
    model.lm_head.bias = torch.nn.Parameter(bias, requires_grad=False)
    return model.to(DEVICE)


class TextPeer:
    """SFT steps of the module under the setting chosen by `use`, on one batch that is already on the device.

    Args:
      token_ids: [rows, S], without padding.
      learnt: Number of tokens at the end of each row that the loss covers.

    Attributes:
      spent: Seconds of each step, by phase.
    """

    def __init__(self, directory: Path, config: Any, banned: np.ndarray, token_ids: np.ndarray, learnt: int):
        self.made_of = directory, config, banned
        self.token_ids = torch.from_numpy(token_ids).long().to(DEVICE)
        self.learnt = learnt
        self.spent: list[dict[str, float]] = []

    def use(self, setting: Setting) -> None:
        """Restarts from the initial weights, under a setting."""
        torch.compiler.reset()
        self.model = text_model(*self.made_of, setting.attention)
        self.optimizer = new_optimizer(self.model, OPTIMIZER)
        self.loss = torch.compile(self._loss, dynamic=False) if setting.compiled else self._loss

    def _loss(self) -> torch.Tensor:
        hidden = self.model.model(input_ids=self.token_ids, use_cache=False).last_hidden_state
        logits = self.model.lm_head(hidden[:, -self.learnt - 1 : -1]).float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), self.token_ids[:, -self.learnt :].flatten())

    def step(self) -> tuple[float, float]:
        """Runs one step and returns the loss and the norm of the gradient before clipping."""
        began = time.perf_counter()
        self.model.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), OPTIMIZER.clip_norm)
        self.optimizer.step()
        outcome = loss.item(), norm.item()  # waits for the device
        self.spent.append({"input": 0.0, "update": time.perf_counter() - began})
        return outcome

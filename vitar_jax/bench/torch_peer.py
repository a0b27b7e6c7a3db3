"""The model peer: Hugging Face's module on torch, which does the work of `cases.WORK` as fast as possible.

The peer gets the same advantages as our side: precomputed positions and window indices, no attention mask, since nothing is
padded, and logits of only the tokens in the loss.
"""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from vitar_jax.bench.cases import Case, Inputs
from vitar_jax.learning.optimizer import OptimizerConfig
from vitar_jax.models.config import ModelConfig

logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # silences warnings about graph breaks
ATTENTION = ("sdpa", "eager")
Outcome = tuple[torch.Tensor, ...]


def save_random_weights(config: ModelConfig, directory: Path, seed: int = 0) -> None:
    """Writes a checkpoint of Hugging Face's module with normal weights, scaled so that activations and logits stay near 1."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**config.to_hf()))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=weight[0].numel() ** -0.5)
            else:  # perturbs norms and biases
                weight.add_(torch.randn_like(weight), alpha=0.1)
    model.to(getattr(torch, config.dtype)).save_pretrained(directory)


def vision_indices(grid: torch.Tensor, tower: Any, device: torch.device) -> dict[str, torch.Tensor]:
    """Returns the vision tower's inputs other than patches. Lengths stay on the host, which splits the sequence by them."""
    config = tower.config
    indices = {
        "grid_thw": grid,
        "position_ids": get_vision_position_ids(grid, config.spatial_merge_size).to(device),
        "cu_seqlens": get_vision_cu_seqlens(grid),
    }
    if hasattr(config, "window_size"):
        windows, indices["cu_window_seqlens"] = get_vision_window_index(
            grid, config.spatial_merge_size, config.window_size, config.patch_size
        )
        return indices | {"window_index": windows.to(device)}
    taps, weights = get_vision_interpolation_indices_and_weights(
        grid,
        num_grid_per_side=tower.num_grid_per_side,
        mode=tower.interpolation_mode,
        align_corners=tower.interpolation_align_corners,
        spatial_merge_size=config.spatial_merge_size,
    )
    return indices | {"interp_indices": taps.to(device), "interp_weights": weights.to(device)}


def encode(tower: Any, patches: torch.Tensor, indices: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns features [F, width]: the embedding of each image token, followed by DeepStack's levels if the tower has any."""
    made = tower(patches, **indices)
    return torch.cat([made.pooler_output, *getattr(made, "deepstack_features", ())], dim=-1)


class Peer:
    """Hugging Face's module on the inputs of one case, under the setting chosen by `use`."""

    def __init__(self, directory: Path, case: Case, inputs: Inputs, optimizer: OptimizerConfig):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Any = AutoModelForImageTextToText.from_pretrained(directory, dtype=getattr(torch, case.dtype))
        self.model.to(self.device).eval()
        self.optimizer_config = optimizer
        self.patches = torch.from_numpy(inputs.patches).to(self.device, self.model.dtype)
        self.targets = self._tensor(inputs.token_ids[inputs.loss_mask])
        self.before = self._tensor(inputs.loss_mask.reshape(-1).nonzero()[0] - 1)  # the position before predicts the token
        self.indices = vision_indices(torch.tensor([case.grid] * case.rows), self.model.model.visual, self.device)
        self.inputs = {
            "input_ids": self._tensor(inputs.token_ids),
            "position_ids": self._tensor(inputs.position_ids),
            "pixel_values": self.patches,
            "use_cache": False,
            **{f"image_{name}": index for name, index in self.indices.items()},
        }
        self.initial = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.work: dict[str, Callable[[], Outcome]] = {
            "vision": self._vision,
            "prefill": self._prefill,
            "gradient": self._gradient,
            "train step": self._train_step,
        }
        self.use("sdpa", compiled=False)

    def use(self, attention: str, *, compiled: bool) -> None:
        """Selects how the module runs, and resets it to the initial weights."""
        torch.compiler.reset()
        self.model.set_attn_implementation(attention)
        forwards = (self._features, self._last_logits, self._loss)
        if compiled:
            forwards = tuple(torch.compile(forward, dynamic=False) for forward in forwards)
        self.features, self.last_logits, self.loss = forwards
        self.model.load_state_dict(self.initial)
        self.optimizer = new_optimizer(self.model, self.optimizer_config)

    def parameters(self) -> int:
        return sum(weight.numel() for weight in self.model.parameters())

    def _tensor(self, array: Any) -> torch.Tensor:
        return torch.from_numpy(array).long().to(self.device)

    # Calls of the module, eager or compiled

    def _features(self) -> torch.Tensor:
        return encode(self.model.model.visual, self.patches, self.indices)

    def _last_logits(self) -> torch.Tensor:
        return self.model(**self.inputs, logits_to_keep=1).logits[:, 0]

    def _loss(self) -> torch.Tensor:
        hidden = self.model.model(**self.inputs).last_hidden_state
        logits = self.model.lm_head(hidden.flatten(0, 1)[self.before])
        return torch.nn.functional.cross_entropy(logits.float(), self.targets)

    # Work

    @torch.inference_mode()
    def _vision(self) -> Outcome:
        return self._done(self.features())

    @torch.inference_mode()
    def _prefill(self) -> Outcome:
        return self._done(self.last_logits())

    def _gradient(self) -> Outcome:
        loss = self._backward()
        return self._done(loss, torch.nn.utils.get_total_norm([weight.grad for weight in self.model.parameters()]))

    def _train_step(self) -> Outcome:
        loss = self._backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.optimizer_config.clip_norm)
        self.optimizer.step()
        return self._done(loss, norm)

    def _backward(self) -> torch.Tensor:
        self.model.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        return loss.detach()

    def _done(self, *outcome: torch.Tensor) -> Outcome:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return outcome


def new_optimizer(model: torch.nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Returns fused AdamW. Weight decay applies to matrices, but not to embeddings, norms and biases."""
    groups: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            groups[weight.ndim > 1 and "embed_tokens" not in name].append(weight)
    return torch.optim.AdamW(
        [{"params": g, "weight_decay": config.weight_decay if decayed else 0.0} for decayed, g in groups.items()],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def matrix_product(size: int, dtype: str) -> Callable[[], torch.Tensor]:
    """Returns a function that multiplies two square matrices."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))

    def multiply() -> torch.Tensor:
        product = a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        return product

    return multiply


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to run the peer."""

    attention: str
    compiled: bool

    def __str__(self) -> str:
        return self.attention + (" compiled" if self.compiled else "")


def settings(*, try_compile: bool) -> list[Setting]:
    return [Setting(attention, compiled) for compiled in (False, True)[: 1 + try_compile] for attention in ATTENTION]

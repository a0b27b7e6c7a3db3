"""TRL's `GRPOTrainer`, whose own loop runs on a thread and advances one step at a time."""

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from vitar_jax.bench.pairs import Disagreement
from vitar_jax.bench.text_task import OBJECTIVE, OPTIMIZER, TextTask, odd_share
from vitar_jax.bench.torch_text import text_model
from vitar_jax.models.config import TextSizes

_STEPS = 100_000  # more than any benchmark runs
Replies = dict[tuple[int, ...], list[list[int]]]
"""Replies by prompt, as token ids."""


@dataclasses.dataclass(frozen=True)
class TRLSetting:
    """One way to run TRL's trainer.

    Attributes:
      attention: Name of Hugging Face's attention implementation.
      cache: Cache of `generate`, "dynamic" or "static". Its continuous batching is many times slower on a CPU.
      compiled: Whether to use torch.compile.
    """

    attention: str
    cache: str
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.attention}, {self.cache} cache" + (", compiled" if self.compiled else "")


def trl_settings(*, try_compile: bool) -> list[TRLSetting]:
    settings = [TRLSetting("sdpa", "dynamic"), TRLSetting("sdpa", "static"), TRLSetting("eager", "dynamic")]
    compiled = [TRLSetting("sdpa", cache, compiled=True) for cache in ("dynamic", "static")]
    return settings + compiled * try_compile


class TRLPeer:
    """GRPO steps of TRL's trainer on a task, under the setting chosen by `use`.

    Args:
      banned: bool [V], includes the end-of-turn token.

    Attributes:
      spent: Seconds of each step, by kind of work.
    """

    def __init__(self, task: TextTask, directory: Path, config: TextSizes, banned: np.ndarray):
        self.task, self.directory = task, directory
        self.made_of = task.model, config, banned
        self.spent: list[dict[str, float]] = []
        self.trainer: _Trainer | None = None

    def use(self, setting: TRLSetting) -> None:
        """Restarts from the initial weights, under a setting."""
        self.close()
        torch.compiler.reset()
        self.trainer = _Trainer(
            model=text_model(*self.made_of, setting.attention),
            reward_funcs=_odd,
            args=self._config(setting),
            train_dataset=Dataset.from_dict({"prompt": [*self.task.prompts] * 1000}),
            processing_class=AutoTokenizer.from_pretrained(self.directory / "tokenizer"),
        )
        self.trainer.remove_callback(PrinterCallback)
        self.stepper = _Stepper(self.trainer.train)
        self.trainer.add_callback(self.stepper)

    def _config(self, setting: TRLSetting) -> GRPOConfig:
        """Returns TRL's config: all rows in one batch, one update per rollout, no saving or logging. The rest is as in ours."""
        case = self.task.case
        return GRPOConfig(
            output_dir=str(self.directory / "trl"),
            max_steps=_STEPS,
            per_device_train_batch_size=case.rows,
            gradient_accumulation_steps=1,
            num_generations=case.group_size,
            num_iterations=1,
            max_completion_length=case.reply_tokens,
            cache_implementation=None if setting.cache == "dynamic" else setting.cache,
            torch_compile=setting.compiled,
            beta=OBJECTIVE.kl_coefficient,
            epsilon=OBJECTIVE.clip_low,
            loss_type="bnpo",  # a mean over tokens
            learning_rate=OPTIMIZER.learning_rate,
            lr_scheduler_type=OPTIMIZER.schedule,
            adam_epsilon=OPTIMIZER.epsilon,
            weight_decay=OPTIMIZER.weight_decay,
            max_grad_norm=OPTIMIZER.clip_norm,
            shuffle_dataset=False,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )

    def step(self, replies: Replies | None = None) -> None:
        """Runs one step. If `replies` is given, trains on these replies instead of generating."""
        assert self.trainer is not None
        self.trainer.replies = replies
        began = time.perf_counter()
        self.stepper.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        whole, spent = time.perf_counter() - began, self.trainer.spent
        self.spent.append(
            {
                "rollout": spent["_generate"],
                "reward": spent["_calculate_rewards"],
                "batch": spent["_prepare_inputs"] - spent["_generate"] - spent["_calculate_rewards"],
                "update": whole - spent["_prepare_inputs"],
            }
        )

    def weights(self) -> dict[str, torch.Tensor]:
        """Returns the current weights, named as in `torch_text.text_weights`."""
        model: Any = self.trainer and self.trainer.model
        return {name: weight.detach().cpu() for name, weight in model.named_parameters() if "lm_head" not in name}

    def close(self) -> None:
        """Ends the trainer's loop."""
        if self.trainer is not None:
            self.stepper.end()
            self.trainer = None


def _odd(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    return [odd_share(token_ids) for token_ids in completion_ids]


class _Trainer(GRPOTrainer):
    """TRL's trainer, which also times each part of a step, and returns given replies instead of generating if set."""

    replies: Replies | None = None

    def __init__(self, **arguments: Any):
        self.spent: dict[str, float] = {}
        super().__init__(**arguments)

    def _timed(self, name: str, *arguments: Any) -> Any:
        began = time.perf_counter()
        result = getattr(super(), name)(*arguments)
        self.spent[name] = time.perf_counter() - began
        return result

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        return self._timed("_prepare_inputs", generation_batch)

    def _generate(self, prompts: list) -> Any:
        return self._timed("_generate", prompts)

    def _calculate_rewards(self, *arguments: Any) -> Any:
        return self._timed("_calculate_rewards", *arguments)

    def _generate_single_turn(self, prompt_ids: list, *arguments: Any, **options: Any) -> Any:
        if self.replies is None:
            return super()._generate_single_turn(prompt_ids, *arguments, **options)
        left = {prompt: list(replies) for prompt, replies in self.replies.items()}
        if left.keys() != set(map(tuple, prompt_ids)):
            raise Disagreement("TRL's prompts differ from ours")
        return [left[tuple(prompt)].pop(0) for prompt in prompt_ids], None


class _Stepper(TrainerCallback):
    """A trainer's loop on its own thread, which pauses after each step until the next step is requested."""

    def __init__(self, train: Callable[[], Any]):
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._train, self._failure = train, None
        self._thread = threading.Thread(target=self._run)
        self._ending = False

    def step(self) -> None:
        """Runs one step. Raises the error of the trainer's thread, if any."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        self._done.acquire()
        if self._failure is not None:
            raise self._failure

    def end(self) -> None:
        """Stops the loop and joins its thread."""
        self._ending = True
        if self._thread.ident is not None:
            self._go.release()
            self._thread.join()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._done.release()
        self._go.acquire()
        control.should_training_stop = self._ending

    def _run(self) -> None:
        try:
            self._train()
        except BaseException as failure:
            self._failure = failure
        self._done.release()

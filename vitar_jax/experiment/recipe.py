"""The schema of a recipe, which is the typed form of a config file."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from ml_collections import ConfigDict

from vitar_jax.data.sources import Source, SourceConfig, load_source
from vitar_jax.episodes.episode import Limits
from vitar_jax.episodes.protocols import PROTOCOLS, Protocol, find_protocol
from vitar_jax.errors import ConfigError
from vitar_jax.evaluation.benchmarks import Benchmark
from vitar_jax.evaluation.proof import Proof
from vitar_jax.learning import grpo, sft  # noqa: F401 (they register themselves)
from vitar_jax.learning.objective import Objective
from vitar_jax.learning.optimizer import OptimizerConfig
from vitar_jax.learning.rewards import Rewards
from vitar_jax.models.attention import find_back_end
from vitar_jax.models.config import TextSizes, VisionSizes
from vitar_jax.models.family import PARTS, Family, Part
from vitar_jax.models.lora import LoraConfig
from vitar_jax.models.registry import DEFAULT_FAMILY, FAMILIES, sizes
from vitar_jax.models.remat import check_policy
from vitar_jax.parallel.mesh import ShardingRules
from vitar_jax.rollout.config import RolloutConfig
from vitar_jax.runtime.config import ByName, to_dataclass


@dataclasses.dataclass(frozen=True)
class ModelChoice:
    """Which model: a checkpoint, or random weights.

    Attributes:
      pretrained: a checkpoint: a directory, a gs:// URL or a hub repository; empty: random weights of the sizes below.
      family: Name of the model's architecture, if neither `pretrained` nor `size` says it.
      size: Name of a published size (`models/registry.py`). If empty, `text` and `vision` say it.
      text, vision: Sizes of the two towers, with the keys of the family's configuration.
      patch_filters: how a random patch embedding starts. "zero_mean" filters answer to contrast and hardly to brightness,
        which spares a small model the time to learn it.
      dtype: type that activations are computed in; training keeps weights in fp32.
      remat: what the backward pass keeps of a layer, by the name of a policy in `models/remat.py`.
      attention: what computes attention over whole rows, by the name of a back end in `models/attention.py`.
    """

    pretrained: str = ""
    family: str = DEFAULT_FAMILY
    size: str = ""
    text: Mapping[str, Any] | None = None
    vision: Mapping[str, Any] | None = None
    patch_filters: Literal["normal", "zero_mean"] = "normal"
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "xla"

    def __post_init__(self) -> None:
        check_policy(self.remat, "config.model.remat")
        find_back_end(self.attention, dtype=self.dtype)
        self.towers()

    def find_family(self) -> Family:
        """Returns the family that a size or, without one, `family` names."""
        return FAMILIES[sizes()[self.size].model_type] if self.size in sizes() else FAMILIES.find(self.family)

    def towers(self) -> tuple[TextSizes | None, VisionSizes | None]:
        """Returns `text` and `vision` as the family's; None where a recipe does not write them out."""
        family = self.find_family()
        text = None if self.text is None else to_dataclass(family.text, self.text, "config.model.text")
        vision = None if self.vision is None else to_dataclass(family.vision, self.vision, "config.model.vision")
        return text, vision

    @property
    def computation(self) -> dict[str, Any]:
        """How to compute, for a `ModelConfig` of any sizes."""
        return dict(dtype=self.dtype, remat=self.remat, attention=self.attention)


@dataclasses.dataclass(frozen=True)
class ProcessorChoice:
    """Which tokenizer, image settings and static image shapes.

    Attributes:
      tokenizer: Place of a tokenizer.json (like `pretrained` above), or a function that builds one (`build.TOKENIZERS`).
      image: a place with preprocessor_config.json; empty: the settings below.
      min_pixels, max_pixels: budget of an image; with a directory they override its own where above 0.
      size_classes: (windows, window_patches) of the static image shapes, smallest first; training uses the last.
    """

    tokenizer: str
    size_classes: tuple[tuple[int, int], ...]
    image: str = ""
    min_pixels: int = 0
    max_pixels: int = 0
    image_mean: tuple[float, float, float] | None = None
    image_std: tuple[float, float, float] | None = None


@dataclasses.dataclass(frozen=True)
class MeshChoice:
    """Devices along each axis; -1 takes what is left."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One run of an objective.

    Attributes:
      start: stage whose weights it starts from; empty: the recipe's model.
      sources: what it learns from, by any name; a mixture by weight.
      protocol: how samples are played: a named protocol, `path/to/file.toml` or `path/to/file.py:name`.
      train: the parts that learn; the others are frozen, without gradients and moments.
      lora: adapters that learn in place of these parts' own weights; None: the weights themselves learn.
      frozen_dtype: type that frozen weights are kept in; empty: that of computation, which would round them anyway.
      objective: What is optimized: its `name` and its own keys (`learning/sft.py`, `learning/grpo.py`, or `FILE.py:NAME`).
      steps: Number of batches; an objective may make several optimizer steps of each.
      batch_size: Number of samples per step.
      tokens, policy_tokens: most tokens of a row, and of those under the loss mask; 0: what limits allow an example.
      row_images: images that a row has room for, on average over those computed at a time; 0: those of one example.
      micro_rows: Number of rows per micro-batch of a data shard. Gradients of micro-batches add up to the same. 0 means all
        rows.
      logprob_chunk: tokens whose logits over the vocabulary exist at one time; on a CPU with a large one, few are faster.
      stop_after_skipped: so many steps in a row without an update, as loss or gradient were not finite, end the run.
      probe_every: steps between two looks at `probe_samples` held-out episodes; 0: never.
      keep_trajectories: episodes kept in the stage's directory at every logged step.
    """

    sources: Mapping[str, SourceConfig]
    protocol: str
    steps: int
    batch_size: int
    optimizer: OptimizerConfig
    objective: Annotated[Objective, ByName(Objective.kind)]
    start: str = ""
    train: tuple[Part, ...] = PARTS
    lora: LoraConfig | None = None
    frozen_dtype: Literal["", "float32", "bfloat16"] = ""
    tokens: int = 0
    policy_tokens: int = 0
    row_images: int = 0
    micro_rows: int = 0
    logprob_chunk: int = 1024
    checkpoint_every: int = 100
    log_every: int = 10
    stop_after_skipped: int = 10
    probe_every: int = 0
    probe_samples: int = 64
    keep_trajectories: int = 0

    @property
    def optimizer_steps(self) -> int:
        """What the learning rate's schedule goes by."""
        return self.steps * self.objective.passes.updates


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything a run is made of.

    Attributes:
      protocols: changes to the named protocols, or new ones.
      schedule: names of stages in the order they run.
      evaluation: source of held-out samples; `evaluation_samples` of them are played, 0 for all.
      benchmarks: Benchmarks that an evaluation plays in place of it, as many samples of each, by their names in its table.
      proof: What `vitar_jax.quickstart` plays, shows and concludes after training.
      data: values that sources and others refer to, so that one flag sets them all; an empty one has to be set.
    """

    model: ModelChoice
    processor: ProcessorChoice
    limits: Limits
    rollout: RolloutConfig
    stages: Mapping[str, StageConfig]
    schedule: tuple[str, ...]
    evaluation: SourceConfig
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    protocols: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    mesh: MeshChoice = dataclasses.field(default_factory=MeshChoice)
    rules: ShardingRules = dataclasses.field(default_factory=ShardingRules)
    evaluation_samples: int = 0
    benchmarks: Mapping[str, Benchmark] = dataclasses.field(default_factory=dict)
    proof: Proof | None = None
    seed: int = 0
    loader_threads: int = 2

    def __post_init__(self) -> None:
        if self.model.size and self.model.size not in sizes():
            raise ConfigError(f"config.model.size: {self.model.size!r} is not one of {', '.join(sizes())}")
        for name, value in self.data.items():
            if value == "":
                raise ConfigError(f"config.data.{name}: must be set")
        for name in self.schedule:
            if name not in self.stages:
                raise ConfigError(f"config.schedule: {name!r} is no stage; there are {', '.join(self.stages)}")
        for number, name in enumerate(self.schedule):
            stage = self.stages[name]
            if stage.start and stage.start not in self.schedule[:number]:
                raise ConfigError(f"config.stages.{name}.start: {stage.start!r} does not run before it")
            if stage.objective.packs_rows and not find_back_end(self.model.attention).segments:
                key = f"config.stages.{name}.objective.pack"
                raise ConfigError(f"{key}: {self.model.attention}'s attention takes one example a row")
        _ = self.all_protocols
        for name in self.stages:
            self.rewards(name)

    @classmethod
    def from_config(cls, config: ConfigDict) -> "Recipe":
        """Checks a config file's values; ConfigError names a key that is unknown, missing or of another type."""
        return to_dataclass(cls, config.to_dict())

    def open_sources(self) -> None:
        """Opens every data set once, so that a wrong path shows before anything is written or trained."""
        for name in self.schedule:
            for source in self.stages[name].sources.values():
                load_source(source)
        load_source(self.evaluation)

    def held_out(self, source: Source) -> int:
        """Returns how many of a source's samples, from the first on, an evaluation plays."""
        return min(self.evaluation_samples or len(source), len(source))

    @cached_property
    def all_protocols(self) -> Mapping[str, Protocol]:
        """The named protocols with the recipe's changes, and those that stages name by their files.

        Raises:
          ConfigError: there is no such protocol, or it is none; the key is named.
        """
        protocols = dict(PROTOCOLS)
        for name, changes in self.protocols.items():
            base = protocols.get(name, Protocol(name=name, system=""))
            merged = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)} | dict(changes)
            protocols[name] = to_dataclass(Protocol, merged, f"config.protocols.{name}")
        for stage_name, stage in self.stages.items():
            for name in (stage.protocol, *(source.protocol or stage.protocol for source in stage.sources.values())):
                try:
                    protocols[name] = find_protocol(name, protocols)
                except ConfigError as error:
                    raise ConfigError(f"config.stages.{stage_name}: {error}") from error
        return protocols

    def rewards(self, stage: str) -> Rewards:
        """The rewards of a stage; ConfigError names the key of one that cannot be."""
        try:
            return Rewards(self.stages[stage].objective.rewards)
        except ConfigError as error:
            raise ConfigError(f"config.stages.{stage}.objective.{error}") from error

"""The schema of a recipe, which is the typed form of a config file."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from ml_collections import ConfigDict

from vitar_jax.data.interventions import find_change
from vitar_jax.data.skipping import MAX_SHARE
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
    """The model: a checkpoint, or random weights.

    Attributes:
      pretrained: Checkpoint: a directory, a gs:// URL or a hub repository. If empty, random weights of the sizes below.
      family: Name of the model's architecture, used if neither `pretrained` nor `size` determines it.
      size: Name of a published size (`models/registry.py`). If empty, `text` and `vision` give the sizes.
      text, vision: Sizes of the two towers, with the keys of the family's configuration.
      sam2: Sizes of SAM 2 in a family that makes masks (`models/sam2/config.py`). If None, those of published checkpoints.
      patch_filters: Initialization of a random patch embedding. "zero_mean" filters respond to contrast but hardly to
        brightness. A small model would otherwise need to learn this.
      iou_head: Initialization of a random head that chooses between SAM 2's candidates for a mask. No loss trains this head.
        "zero" always chooses the first candidate, which then learns from every mask.
      dtype: Type of activations. Training keeps weights in fp32.
      remat: Name of the rematerialization policy (`models/remat.py`).
      attention: Name of the attention back end for complete rows (`models/attention.py`).
    """

    pretrained: str = ""
    family: str = DEFAULT_FAMILY
    size: str = ""
    text: Mapping[str, Any] | None = None
    vision: Mapping[str, Any] | None = None
    sam2: Mapping[str, Any] | None = None
    patch_filters: Literal["normal", "zero_mean"] = "normal"
    iou_head: Literal["normal", "zero"] = "normal"
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "xla"

    def __post_init__(self) -> None:
        check_policy(self.remat, "config.model.remat")
        find_back_end(self.attention, dtype=self.dtype)
        self.towers()
        self.mask_sizes()
        family = self.find_family()
        if self.iou_head == "zero" and family.masks is None:
            raise ConfigError(f"config.model.iou_head: the family {family.model_type} makes no masks; remove the key")

    def find_family(self) -> Family:
        """Returns the family that a size or, without one, `family` names."""
        return FAMILIES[sizes()[self.size].model_type] if self.size in sizes() else FAMILIES.find(self.family)

    def towers(self) -> tuple[TextSizes | None, VisionSizes | None]:
        """Returns `text` and `vision` as the family's types, or None for a tower that the recipe does not specify."""
        family = self.find_family()
        text = None if self.text is None else to_dataclass(family.text, self.text, "config.model.text")
        vision = None if self.vision is None else to_dataclass(family.vision, self.vision, "config.model.vision")
        return text, vision

    def mask_sizes(self) -> dict[str, Any]:
        """Returns `sam2` as the family's type, as an argument of its configuration, or nothing if the recipe does not set it.

        Raises:
          ConfigError: If the family makes no masks, or a size is impossible.
        """
        if self.sam2 is None:
            return {}
        family = self.find_family()
        if family.masks is None:
            raise ConfigError(f"config.model.sam2: the family {family.model_type} makes no masks; remove the key")
        sizes = to_dataclass(family.masks, self.sam2, "config.model.sam2")
        if problem := sizes.problem():
            raise ConfigError("config.model.sam2.{}: {}".format(*problem))
        return {"sam2": sizes}

    @property
    def computation(self) -> dict[str, Any]:
        """The fields of a `ModelConfig` that do not depend on its sizes."""
        return dict(dtype=self.dtype, remat=self.remat, attention=self.attention)


@dataclasses.dataclass(frozen=True)
class ProcessorChoice:
    """Tokenizer, image settings and static image shapes.

    Attributes:
      tokenizer: Location of a tokenizer.json (like `pretrained` above), or a function that builds one (`build.TOKENIZERS`).
      image: Location of a preprocessor_config.json or processor_config.json. If empty, the settings below apply.
      min_pixels, max_pixels: Bounds of an image's number of pixels. Values above 0 override the values of `image`.
      size_classes: (windows, window_patches) of the static image shapes, smallest first. Training uses the last one.
      stop_tokens: Spellings of the tokens that end a turn, in addition to `<|im_end|>`. If None, the eos ids of the model's
        checkpoint. Written checkpoints have them as their eos ids.
    """

    tokenizer: str
    size_classes: tuple[tuple[int, int], ...]
    image: str = ""
    min_pixels: int = 0
    max_pixels: int = 0
    image_mean: tuple[float, float, float] | None = None
    image_std: tuple[float, float, float] | None = None
    stop_tokens: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class MeshChoice:
    """Number of devices along each axis; -1 takes the remaining devices."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One run of an objective.

    Attributes:
      start: Stage whose weights it starts from. If empty, the recipe's model.
      sources: Sources of samples by arbitrary names, mixed by their weights.
      protocol: A named protocol, `path/to/file.toml` or `path/to/file.py:name`.
      train: Trainable parts. The other parts are frozen, without gradients and moments.
      lora: Adapters that are trained instead of these parts' weights, except those of masks. If None, the weights are trained.
      frozen_dtype: Type of frozen weights. If empty, the type of computation, to which they are rounded anyway.
      objective: The objective: its `name` and its own keys (`learning/sft.py`, `learning/grpo.py`, or `FILE.py:NAME`).
      steps: Number of batches; an objective may make several optimizer steps of each.
      batch_size: Number of samples per step.
      tokens, policy_tokens: Maximum number of tokens of a row, and of its policy tokens. 0 means the limits of one example.
      row_images: Maximum mean number of images per row of a micro-batch. 0 means as many as limits.images and the protocol's
        turns allow; set 1 if no example of the stage has more.
      micro_rows: Number of rows per micro-batch of a data shard. Gradients of micro-batches are summed, so the update is
        the same. 0 means all rows.
      logprob_chunk: Number of tokens whose logits are computed at a time. On CPUs, small chunks are faster for large
        vocabularies.
      max_skipped_share: Maximum share of records, among 100 consecutive ones, that may be skipped because they cannot be used:
        an unreadable image, too many tokens or images, a missing or failing demonstration. A larger share ends the run. Probes
        may skip the same share of their samples. `data/skipped` counts the records of the main process.
      stop_after_skipped: Number of consecutive steps with a non-finite loss or gradient that ends the run.
      probe_every: Number of steps between probes, which play `probe_samples` held-out samples. 0 means never.
      probe_interventions: Changes of the samples under which a probe plays them again, such as "blank" and "region_erased"
        (`data/interventions.py`). It then logs how far the answers rely on what was changed (`experiment/probe.py`).
      keep_trajectories: Number of episodes written to the stage's directory at every logged step.
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
    max_skipped_share: float = MAX_SHARE
    stop_after_skipped: int = 10
    probe_every: int = 0
    probe_samples: int = 64
    probe_interventions: tuple[str, ...] = ()
    keep_trajectories: int = 0

    @property
    def optimizer_steps(self) -> int:
        """Number of optimizer steps, which determines the learning rate's schedule."""
        return self.steps * self.objective.passes.updates

    @property
    def protocols(self) -> tuple[str, ...]:
        """Names of the protocols of the stage and of its sources."""
        return (self.protocol, *(source.protocol or self.protocol for source in self.sources.values()))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The schema of a config file.

    Attributes:
      protocols: Changes to named protocols, or new protocols.
      schedule: Names of stages, in the order they run.
      evaluation: Source of held-out samples. Evaluations play `evaluation_samples` of them; 0 means all.
      benchmarks: Benchmarks that evaluations play instead, by their names in the table, with `evaluation_samples` each.
      proof: Settings of `vitar_jax.quickstart`: the rows that it plays after training, its figures and its conclusion.
      data: Values that other keys refer to, so that one flag sets them all. Empty values must be set.
      accept_changed_data: Whether a run resumes although its data or its pretrained weights have changed since its earlier
        starts, as `manifest.json` in its directory records them.
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
    accept_changed_data: bool = False

    def __post_init__(self) -> None:
        if self.model.size and self.model.size not in sizes():
            raise ConfigError(f"config.model.size: {self.model.size!r} is not one of {', '.join(sizes())}")
        for name, value in self.data.items():
            if value == "":
                raise ConfigError(f"config.data.{name}: must be set")
        for name in self.schedule:
            if name not in self.stages:
                raise ConfigError(f"config.schedule: {name!r} is not a stage; choose from {', '.join(self.stages)}")
        for name, stage in self.stages.items():
            if not 0 <= stage.max_skipped_share <= 1:
                found = f"got {stage.max_skipped_share}, expected a share from 0 to 1"
                raise ConfigError(f"config.stages.{name}.max_skipped_share: {found}")
            for intervention in stage.probe_interventions:
                try:
                    find_change(intervention)
                except ConfigError as error:
                    raise ConfigError(f"config.stages.{name}.probe_interventions: {error}") from error
        for number, name in enumerate(self.schedule):
            stage = self.stages[name]
            if stage.start and stage.start not in self.schedule[:number]:
                raise ConfigError(f"config.stages.{name}.start: {stage.start!r} does not run before it")
            packings = {"pack": stage.objective.packs_rows, "packed": stage.objective.fills_micro_batches}
            for key in (key for key, packs in packings.items() if packs):
                if not find_back_end(self.model.attention).segments:
                    where = f"config.stages.{name}.objective.{key}"
                    raise ConfigError(f"{where}: {self.model.attention}'s attention takes one example a row")
            if stage.objective.fills_micro_batches and not stage.micro_rows:
                found = "all rows are one micro-batch, so that none stays empty; set micro_rows, or remove the key"
                raise ConfigError(f"config.stages.{name}.objective.packed: {found}")
            if self.rollout.weights and stage.objective.plays and not stage.objective.corrects_sampler:
                found = f"{self.rollout.weights}, whose log-probabilities differ from the trainer's"
                mend = "set old_logprobs='trainer' and a correction, such as 'token_truncate'"
                raise ConfigError(f"config.rollout.weights: {found}; config.stages.{name}.objective: {mend}")
        _ = self.all_protocols
        for name in self.stages:
            self.rewards(name)

    @classmethod
    def from_config(cls, config: ConfigDict) -> "Recipe":
        """Converts a config file's values.

        Raises:
          ConfigError: If a key is unknown, missing or of another type.
        """
        return to_dataclass(cls, config.to_dict())

    def open_sources(self) -> None:
        """Opens every data set once, so that a wrong path fails before anything is written or trained."""
        for name in self.schedule:
            for source in self.stages[name].sources.values():
                load_source(source)
            self.stages[name].objective.inputs()
        load_source(self.evaluation)

    def held_out(self, source: Source) -> int:
        """Returns the number of a source's samples, from the first on, that an evaluation plays."""
        return min(self.evaluation_samples or len(source), len(source))

    @cached_property
    def all_protocols(self) -> Mapping[str, Protocol]:
        """The named protocols with the recipe's changes, and the protocols that stages load from files.

        Raises:
          ConfigError: If a protocol does not exist or is invalid.
        """
        protocols = dict(PROTOCOLS)
        for name, changes in self.protocols.items():
            base = protocols.get(name, Protocol(name=name, system=""))
            merged = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)} | dict(changes)
            protocols[name] = to_dataclass(Protocol, merged, f"config.protocols.{name}")
        for stage_name, stage in self.stages.items():
            for name in stage.protocols:
                try:
                    protocols[name] = find_protocol(name, protocols)
                except ConfigError as error:
                    raise ConfigError(f"config.stages.{stage_name}: {error}") from error
        return protocols

    @property
    def used_protocols(self) -> Mapping[str, Protocol]:
        """Those of `all_protocols` that stages play or that the recipe changes."""
        names = {*self.protocols, *(name for stage in self.stages.values() for name in stage.protocols)}
        return {name: protocol for name, protocol in self.all_protocols.items() if name in names}

    def rewards(self, stage: str) -> Rewards:
        """Returns the rewards of a stage.

        Raises:
          ConfigError: If a reward is invalid.
        """
        try:
            return Rewards(self.stages[stage].objective.rewards)
        except ConfigError as error:
            raise ConfigError(f"config.stages.{stage}.objective.{error}") from error

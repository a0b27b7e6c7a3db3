"""Builds the objects that a recipe describes: tokenizer, processor, model configuration and weights, batch shapes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from vitar_jax.errors import CheckpointError, ConfigError
from vitar_jax.experiment.recipe import Recipe, StageConfig
from vitar_jax.learning.trainable import Trainable
from vitar_jax.models.attention import find_back_end
from vitar_jax.models.config import ModelConfig
from vitar_jax.models.generation import Generation
from vitar_jax.models.registry import load_config, sizes
from vitar_jax.models.registry import random_model as random_weights
from vitar_jax.models.vision_language import VisionLanguageModel
from vitar_jax.processing.chat import Chat
from vitar_jax.processing.images import ImageProcessor
from vitar_jax.processing.mask_targets import MaskShape
from vitar_jax.processing.packing import BatchShape
from vitar_jax.processing.positions import SizeClass
from vitar_jax.processing.processor import Processor
from vitar_jax.runtime.distributed import is_main, wait_for_all
from vitar_jax.runtime.registry import Registry, is_address
from vitar_jax.runtime.remote import CheckpointFolder

TOKENIZERS: Registry[Callable[..., None]] = Registry("tokenizer")
_THINNEST_USUAL = 10.0  # aspect ratio; no radiograph, slice or photograph is thinner
_SENTENCES = ("system", "observation")  # the keys of a protocol whose text recurs in every episode


def processor(recipe: Recipe, workdir: Path) -> Processor:
    """Builds the tokenizer, the image settings and the static image shapes. Stores a new tokenizer in `workdir`."""
    choice, config = recipe.processor, model_config(recipe)
    vision = config.vision
    images = ImageProcessor(vision.patch_size, vision.patch_shape[1], vision.spatial_merge_size)
    if choice.image:
        with CheckpointFolder.open(choice.image, weights=False).small_files() as directory:
            images = ImageProcessor.from_pretrained(directory)
    changes = {
        name: getattr(choice, name) for name in ("min_pixels", "max_pixels", "image_mean", "image_std") if getattr(choice, name)
    }
    with CheckpointFolder.open(_tokenizer_dir(recipe, workdir), weights=False).small_files() as directory:
        chat = Chat(directory)
    stops = config.generation.stop_ids if choice.stop_tokens is None else map(chat.token_id, choice.stop_tokens)
    return Processor(
        chat=chat.stopping_at(stops),
        images=dataclasses.replace(images, **changes),
        size_classes=size_classes(recipe),
        layout=config.layout,
    ).allowing(token for protocol in recipe.used_protocols.values() for token in protocol.allowed_tokens)


def _tokenizer_dir(recipe: Recipe, workdir: Path) -> str | Path:
    """Returns the location of the tokenizer. If the recipe names a function, calls it first to build the tokenizer.

    Sentences of the recipe's protocols become tokens of a tokenizer that is built.
    """
    name = recipe.processor.tokenizer
    if not is_address(name):
        return name
    directory = workdir / "tokenizer"
    sentences = [str(changes[key]) for changes in recipe.protocols.values() for key in _SENTENCES if changes.get(key)]
    if is_main():
        TOKENIZERS.find(name)(directory, extra=sorted(set(sentences)))
    wait_for_all("the tokenizer is built")
    return directory


def model_config(recipe: Recipe, processor: Processor | None = None) -> ModelConfig:
    """Builds the model's configuration.

    Args:
      processor: Source of the special tokens' ids. If None, as in planning, these ids belong to no tokenizer.

    Raises:
      ConfigError: If the recipe gives no sizes, or if the vocabulary is smaller than the tokenizer's.
      CheckpointError: If the checkpoint's config cannot be read, or does not fit the processor.
    """
    choice = recipe.model
    if choice.pretrained:
        config = load_config(choice.pretrained, **choice.computation)
        if processor is not None:
            try:
                config.check_processor(processor.chat, processor.images)
            except CheckpointError as error:
                raise CheckpointError(f"{choice.pretrained} with {recipe.processor.tokenizer}: {error}") from error
            config = dataclasses.replace(config, generation=_generation(config.generation, processor.chat))
        return config
    if choice.size:
        config = dataclasses.replace(sizes()[choice.size], **choice.mask_sizes(), **choice.computation)
    else:
        text, vision = choice.towers()
        if text is None or vision is None:
            raise ConfigError("config.model: set pretrained, or size, or text and vision")
        config = choice.find_family().config(text, vision, **choice.mask_sizes(), **choice.computation)
    if processor is None:
        return config
    chat = processor.chat
    if config.text.vocab_size < chat.vocab_size:
        raise ConfigError(f"config.model.text.vocab_size: {config.text.vocab_size} rows for {chat.vocab_size} tokens")
    return dataclasses.replace(
        config,
        image_token_id=chat.image_pad,
        vision_start_token_id=chat.vision_start,
        vision_end_token_id=chat.vision_end,
        video_token_id=chat.video_pad,
        generation=_generation(Generation({"bos_token_id": None, "pad_token_id": chat.pad_id}), chat),
    )


def _generation(generation: Generation, chat: Chat) -> Generation:
    """Returns settings with which transformers' `generate` stops where turns end."""
    return generation.stopping_at((chat.im_end, *chat.stop_ids))


def size_classes(recipe: Recipe) -> tuple[SizeClass, ...]:
    """Returns the static image shapes, smallest first."""
    return tuple(SizeClass(*size) for size in recipe.processor.size_classes)


def unheld_images(processor: Processor) -> str:
    """Returns which images the pixel budget admits and no size class holds, as a warning; empty if all usual images fit."""
    ratio, budget = processor.fitting_aspect_ratio(), processor.images.max_pixels
    if ratio >= _THINNEST_USUAL:
        return ""
    unheld = f"images thinner than {ratio:.1f} to 1" if ratio else f"some images of the budget, max_pixels={budget},"
    return f"config.processor.size_classes: {unheld} do not fit and are skipped; a class of more windows or patches holds them"


def micro_batch_count(recipe: Recipe, stage: StageConfig, shards: int) -> int:
    """Returns the number of micro-batches of a data shard, a multiple of the objective's minibatches.

    Raises:
      ConfigError: If there are more minibatches than rows.
    """
    minibatches = stage.objective.passes.minibatches
    shard_rows = _divided(stage.batch_size * stage.objective.rows_per_sample, shards)
    if minibatches > shard_rows:
        raise ConfigError(f"objective.minibatches: {minibatches}, but a data shard has {shard_rows} rows")
    micro_batches = _divided(shard_rows, stage.micro_rows) if stage.micro_rows else 1
    return _divided(micro_batches, minibatches) * minibatches


def batch_shape(
    recipe: Recipe, stage: StageConfig, *, bins: int, shards: int, mask_side: int | None = None
) -> BatchShape:
    """Returns the static shape of a batch's part on `bins` of the `shards` data shards, with one bin per micro-batch.

    Without packing, a row suffices for one episode, and a bin has room for all images that its episodes can have: up to
    `limits.images` of the sample, which the rows of a group share, and those of tools in each of its turns except the last.
    One row per sample learns masks.

    Args:
      mask_side: Side of the image that the model makes masks from. If None, no row learns masks.

    Raises:
      ConfigError: If an episode that the stage plays could exceed the shape, so that a step could end after its rollout.
    """
    micro_batches, group = micro_batch_count(recipe, stage, shards), stage.objective.rows_per_sample
    all_bins = shards * micro_batches
    rows = _divided(stage.batch_size * group, all_bins)
    names = {source.protocol or stage.protocol for source in stage.sources.values()}
    turns = max(recipe.all_protocols[name].max_turns for name in names)
    most_images = max(recipe.all_protocols[name].most_images for name in names)
    # A bin may begin and end within a group, and then has the images of one more sample.
    groups = min(rows, _divided(rows, group) + (group > 1 and all_bins > 1))
    limits = recipe.limits
    sets = min(rows, groups * stage.objective.image_sets)
    images = max(1, *(sets * n + rows * min(most_images, limits.images - n) for n in range(limits.images + 1)))
    row_policy_tokens = min(limits.tokens, limits.turn_tokens * turns)
    if stage.objective.plays:
        place = next((f"config.stages.{name}." for name, one in recipe.stages.items() if one is stage), "")
        _check_room(f"{place}tokens", stage.tokens, limits.tokens, "config.limits.tokens")
        _check_room(f"{place}policy_tokens", stage.policy_tokens, row_policy_tokens, "config.limits.turn_tokens")
        _check_room(f"{place}row_images", stage.row_images, _divided(images, rows), "config.limits.images")
    masks = stage.objective.masks
    return BatchShape(
        bins=bins * micro_batches,
        rows=rows,
        tokens=stage.tokens or limits.tokens,
        images=rows * stage.row_images or images,
        size_class=size_classes(recipe)[-1],
        policy_tokens=rows * (stage.policy_tokens or row_policy_tokens),
        masks=None if masks is None or mask_side is None else MaskShape(mask_side, groups, groups, masks.masks),
        segments=find_back_end(recipe.model.attention).segments,
        sequence=micro_batches // stage.objective.passes.minibatches if stage.objective.fills_micro_batches else 1,
    )


def _check_room(key: str, given: int, needed: int, limit: str) -> None:
    """Raises ConfigError if a stage that plays has less room per row than its episodes can need."""
    if 0 < given < needed:
        raise ConfigError(f"{key}: got {given}, but played episodes can need {needed} per row; set it to 0, or lower {limit}")


def trainable(recipe: Recipe, stage: StageConfig) -> Trainable:
    """Returns the selection of a stage's trainable parameters."""
    return Trainable(stage.train, stage.frozen_dtype or recipe.model.dtype, stage.lora, recipe.seed)


def random_model(recipe: Recipe, config: ModelConfig) -> VisionLanguageModel:
    """Builds a model with the recipe's random weights."""
    choice = recipe.model
    return random_weights(config, seed=recipe.seed, patch_filters=choice.patch_filters, iou_head=choice.iou_head)


def _divided(count: int, parts: int) -> int:
    """Returns the size of the largest part if `count` is divided into `parts` almost equal parts."""
    return -(-count // parts)

"""A second family is one file (`tests/kit/toy_family.py`) and one line of the registry: it trains, plays, saves and loads."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kit import micro, tiny
from tests.kit.images import noise
from tests.kit.toy_family import TOY, ToyConfig, ToyTextConfig, ToyVisionConfig
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.errors import CheckpointError, ConfigError
from vitar_jax.experiment import build
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.learning.optimizer import OptimizerConfig, make_optimizer
from vitar_jax.learning.sft import SFT
from vitar_jax.learning.train_state import first_state
from vitar_jax.learning.train_step import make_train_step
from vitar_jax.models.decoder import run_layers
from vitar_jax.models.layers import unstack
from vitar_jax.models.lora import LoraConfig, add_lora, save_adapter
from vitar_jax.models.mean_attention import mean_attention
from vitar_jax.models.pretrained import load_pretrained, save_pretrained
from vitar_jax.models.registry import FAMILIES, config_from_hf, load_config, random_model
from vitar_jax.processing.images import ImageProcessor
from vitar_jax.processing.packing import Batch, BatchShape, Example, pack
from vitar_jax.processing.positions import SizeClass
from vitar_jax.processing.processor import Processor
from vitar_jax.rollout.checkpoint_settings import save_settings
from vitar_jax.rollout.player import Player

CHAT = tiny.chat()
IDS = (CHAT.image_pad, CHAT.vision_start, CHAT.vision_end, CHAT.token_id("<|video_pad|>"))
CONFIG = ToyConfig(ToyTextConfig(vocab_size=tiny.VOCAB), ToyVisionConfig(), *IDS)
IMAGES = ImageProcessor(min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 24)
PROCESSOR = Processor(CHAT, IMAGES, (SizeClass(1, 96),), CONFIG.layout)
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, TOY.model_type, TOY)


def toy_batch(examples: Sequence[Example]) -> Batch:
    shape = BatchShape(1, len(examples), 704, len(examples), PROCESSOR.size_classes[0], policy_tokens=128)
    return jax.tree.map(jnp.asarray, pack(examples, shape, PROCESSOR))


def example() -> Example:
    return tiny.example("e", [noise(90, 120), "Which texture is it?"], PROCESSOR)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, TOY.model_type, TOY)
        save_pretrained(random_model(CONFIG), directory)
    save_settings(directory, PROCESSOR, Limits(tokens=704, turn_tokens=12), PROTOCOLS, "vitar")
    return directory


@pytest.mark.slow
def test_it_is_saved_and_loaded(checkpoint: Path) -> None:
    assert load_config(checkpoint) == CONFIG
    loaded = load_pretrained(checkpoint)
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(random_model(CONFIG)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_it_trains() -> None:
    """All parts get gradients, including features injected after a layer."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2), steps=10)
    step = make_train_step(SFT(), optimizer, jnp.zeros(tiny.VOCAB, bool))
    state, batch = first_state(random_model(CONFIG), optimizer), toy_batch([example()])
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[1] < losses[0]
    before, after = (np.asarray(model.visual.merger.kernel[...]) for model in (random_model(CONFIG), state.model))
    moved = (before != after).any(axis=0).reshape(3, -1)
    assert moved.all()


@pytest.mark.slow
def test_it_plays_as_it_is_trained(checkpoint: Path) -> None:
    """Recorded log-probabilities equal teacher-forced ones: a cache and a scan, with features added after two layers."""
    player = Player.load(checkpoint, slots=2)
    sampled: Episode = player.ask(noise(90, 120), "Which texture is it?")
    assert sampled.finished and sampled.turns
    played = sampled.example()
    recorded = np.array([p or 0.0 for p in sampled.logprobs])
    with jax.default_matmul_precision("highest"):
        model = load_pretrained(checkpoint)
        allowed = jnp.where(player.engine.banned, -jnp.inf, 0)
        batch = toy_batch([played])
        logits = model(**batch.inputs)[0] @ model.head() + allowed
        forced = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), batch.token_ids[0, :, 1:, None], axis=-1)[0, :, 0]
    places = np.flatnonzero(played.loss_mask)
    np.testing.assert_allclose(np.asarray(forced)[places - 1], recorded[places], atol=TOLERANCE)


@pytest.mark.slow
def test_injections_do_the_same_in_a_scan_and_unrolled() -> None:
    model, rng = random_model(CONFIG), np.random.default_rng(0)
    x, *levels = (jnp.asarray(rng.normal(size=(1, 8, 32)), jnp.float32) for _ in range(3))
    rotary = CONFIG.text.rotary(jnp.tile(jnp.arange(8), (1, 3, 1)))

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, _: int | None) -> tuple[jax.Array, jax.Array]:
        return q + v, k

    runs = [
        run_layers(layers, x, rotary, attend, injections=added)[0]
        for layers in (model.model.layers, unstack(model.model.layers))
        for added in (levels, levels[:1])
    ]
    np.testing.assert_allclose(runs[0], runs[2], atol=1e-4)
    np.testing.assert_allclose(runs[1], runs[3], atol=1e-4)
    assert np.abs(runs[0] - runs[1]).max() > 0.1


@pytest.mark.slow
def test_attention_maps_see_what_is_injected() -> None:
    model, text = random_model(CONFIG), np.arange(8, dtype=np.int32)
    inputs = {
        "token_ids": text,
        "position_ids": np.tile(text, (3, 1)),
        "vision_index": np.where(text < 4, text, -1),
        "turn_ids": np.where(text == 7, 0, -1),
        "turns": 1,
        "rows": 8,
    }
    features = np.random.default_rng(0).normal(size=(4, CONFIG.feature_width)).astype(np.float32)
    seen = mean_attention(model, features, **inputs)
    features[:, 32:] = 0
    without = mean_attention(model, features, **inputs)
    np.testing.assert_array_equal(seen[0], without[0])  # the first injection comes after the first layer
    assert np.abs(seen[1] - without[1]).max() > 1e-3


@pytest.mark.slow
def test_adapters_have_its_names(tmp_path: Path) -> None:
    config = LoraConfig(rank=2, alpha=2.0, targets=("q_proj", "merger"))
    save_adapter(add_lora(random_model(CONFIG), config, jax.random.key(0), lambda path: True), config, tmp_path, base="")
    assert '"model.layers.2.q_proj"' in (tmp_path / "adapter_config.json").read_text()


def test_a_recipe_names_it() -> None:
    config = micro.get_config()
    config.model.family = "toy_vl"
    config.model.text = {"vocab_size": tiny.VOCAB}
    config.model.vision = {"levels": 1}
    model = build.model_config(Recipe.from_config(config))
    assert isinstance(model, ToyConfig)
    assert model.feature_width == 64
    config.model.vision = {"window_size": 56}
    with pytest.raises(ConfigError, match="config.model.vision.window_size: no such key"):
        Recipe.from_config(config)


def test_an_unknown_family_is_refused() -> None:
    known = "'qwen2_5_vl', 'qwen3_vl', 'sa2va_chat', 'toy_vl'"
    with pytest.raises(CheckpointError, match=f"model_type: got 'toy_v', expected one of {known}"):
        config_from_hf(CONFIG.to_hf() | {"model_type": "toy_v"})
    config = micro.get_config()
    config.model.family = "toy_v"
    with pytest.raises(ConfigError, match="unknown model family 'toy_v', did you mean toy_vl?"):
        Recipe.from_config(config)


def test_sizes_of_all_families_have_different_names() -> None:
    names = [name for family in FAMILIES.values() for name in family.sizes]
    assert len(set(names)) == len(names)

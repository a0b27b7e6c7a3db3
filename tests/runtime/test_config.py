"""From config files to dataclasses: what is wrong is named by its full key."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from ml_collections import ConfigDict

from tests.kit.files import write_files
from tests.kit.recipes import CONFIGS, load_config
from vitar_jax.errors import ConfigError
from vitar_jax.experiment import build
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.learning.grpo_loss import PRESETS
from vitar_jax.models.qwen2_5_vl.sizes import SIZES
from vitar_jax.runtime.config import ByName, to_dataclass, with_defaults
from vitar_jax.runtime.registry import Registry

NAMES = [path.stem for path in CONFIGS]
DATA: dict[str, dict[str, Any]] = {  # what a user has to give
    **{name: {"source": "somewhere", "processor": "elsewhere"} for name in ("vqa_rad_small", "vqa_rad_7b")},
    **{
        name: {"sets": "somewhere", "processor": "elsewhere"}
        for name in (
            *("vitar_3b", "vitar_7b", "vitar_sft_7b", "vitar_grpo_7b", "vitar_lora_7b", "vitar_qwen3_4b"),
            "vrt_qwen3_4b",
            *("eval_vitar_seven", "eval_medeyes_five"),
        )
    },
    **{name: {"source": "somewhere"} for name in ("quickstart_cells", "quickstart_cells_smoke")},
    "own_3b": {"sets": "somewhere", "processor": "elsewhere", "demonstrations": "there"},
    "medeyes_3b": {"sets": "somewhere", "processor": "elsewhere", "traces": ("there",)},
}


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float
    kind: Literal["a", "b"] = "a"


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    count: int = 3
    flag: bool = False
    sizes: tuple[tuple[int, int], ...] = ()
    three: tuple[float, float, float] | None = None
    inner: Inner | None = None
    inners: Mapping[str, Inner] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def test_values_take_their_types() -> None:
    values = {
        "name": "x",
        "sizes": [[1, 2], (3, 4)],
        "three": (1, 2.5, 3),
        "inner": {"rate": 1, "kind": "b"},
        "inners": {"k": {"rate": 0.5}},
        "options": {"anything": [None]},
    }
    built = to_dataclass(Outer, values)
    assert built == Outer(
        name="x",
        sizes=((1, 2), (3, 4)),
        three=(1.0, 2.5, 3.0),
        inner=Inner(1.0, "b"),
        inners={"k": Inner(0.5)},
        options={"anything": [None]},
    )
    assert built.inner is not None and isinstance(built.inner.rate, float)
    assert to_dataclass(Outer, {"name": "x", "three": None, "inner": None}) == Outer("x")


@pytest.mark.parametrize(
    "values, key",
    [
        ({}, "config.name"),
        ({"name": "x", "nmae": 1}, "config.nmae"),
        ({"name": 1}, "config.name"),
        ({"name": None}, "config.name"),
        ({"name": "x", "count": "3"}, "config.count"),
        ({"name": "x", "count": 3.0}, "config.count"),
        ({"name": "x", "count": True}, "config.count"),
        ({"name": "x", "flag": 1}, "config.flag"),
        ({"name": "x", "sizes": "12"}, "config.sizes"),
        ({"name": "x", "sizes": 3}, "config.sizes"),
        ({"name": "x", "sizes": [[1, 2], [3]]}, "config.sizes[1]"),
        ({"name": "x", "sizes": [[1, 2.5]]}, "config.sizes[0][1]"),
        ({"name": "x", "three": [1, 2]}, "config.three"),
        ({"name": "x", "inner": 3}, "config.inner"),
        ({"name": "x", "inner": {}}, "config.inner.rate"),
        ({"name": "x", "inner": {"rate": True}}, "config.inner.rate"),
        ({"name": "x", "inner": {"rate": 1, "kind": "c"}}, "config.inner.kind"),
        ({"name": "x", "inner": {"rate": 1, "unknown": 0}}, "config.inner.unknown"),
        ({"name": "x", "inners": {"k": {"rate": "fast"}}}, "config.inners.k.rate"),
        ({"name": "x", "inners": [1]}, "config.inners"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        to_dataclass(Outer, values)
    assert str(caught.value).startswith(f"{key}: ")


@pytest.mark.parametrize("key, hint", [("rat", ", did you mean rate?"), ("knd", ", did you mean kind?"), ("velocity", "")])
def test_an_unknown_key_is_answered_with_the_nearest_and_those_there_are(key: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        to_dataclass(Inner, {key: 1})
    assert str(caught.value) == f"config.{key}: no such key{hint}; known are kind, rate"


def test_a_config_is_filled_with_what_it_leaves_out() -> None:
    config = ConfigDict({"name": "x", "inner": {"rate": 1.0}, "inners": {"k": {"rate": 2.0}}, "count": 5})
    config.later = config.get_ref("count")
    filled = with_defaults(Outer, config)
    assert filled.inner.kind == filled.inners.k.kind == "a"
    assert (filled.sizes, filled.three, filled.options.to_dict()) == ((), None, {})
    filled.count = 6
    assert filled.later == 6  # what refers to another value still does
    del filled["later"]
    assert to_dataclass(Outer, filled.to_dict()) == Outer("x", 6, inner=Inner(1.0), inners={"k": Inner(2.0)})


@dataclasses.dataclass(frozen=True)
class Triangle:
    base: float
    height: float = 1.0
    name: str = "triangle"


@dataclasses.dataclass(frozen=True)
class Circle:
    radius: float = 2.0
    name: str = "circle"


SHAPES: Registry[type] = Registry("shape")
SHAPES.update(triangle=Triangle, circle=Circle)


@dataclasses.dataclass(frozen=True)
class Drawing:
    shape: Annotated[Any, ByName(SHAPES.find)]
    more: Mapping[str, Annotated[Any, ByName(SHAPES.find)]] = dataclasses.field(default_factory=dict)
    below: Annotated[Any, ByName(SHAPES.find)] | None = None


def test_a_name_chooses_the_keys_beside_it() -> None:
    config = ConfigDict({"shape": {"name": "triangle", "base": 3}, "more": {"a": {"name": "circle"}}})
    filled = with_defaults(Drawing, config)
    assert filled.shape.height == 1.0 and filled.more.a.radius == 2.0 and filled.below is None
    assert to_dataclass(Drawing, filled.to_dict()) == Drawing(Triangle(3.0), {"a": Circle()})
    below = {"shape": {"name": "circle"}, "below": {"name": "triangle", "base": 1.0}}
    assert with_defaults(Drawing, ConfigDict(below)).below.height == 1.0


@pytest.mark.parametrize(
    "shape, message",
    [
        (3, "config.shape: expected keys, got 3"),
        ({}, "config.shape.name: must be set"),
        ({"name": "circel"}, "config.shape.name: unknown shape 'circel', did you mean circle?"),
        ({"name": "circle", "base": 1.0}, "config.shape.base: no such key; known are name, radius"),
        ({"name": "triangle"}, "config.shape.base: must be set"),
    ],
)
def test_a_name_that_chooses_wrong_keys_is_told(shape: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        to_dataclass(Drawing, with_defaults(Drawing, ConfigDict({"shape": shape})).to_dict())
    assert str(caught.value).startswith(message)


def load(name: str) -> ConfigDict:
    config = load_config(name)
    for key, value in DATA.get(name, {}).items():
        config.data[key] = value
    return config


@pytest.mark.parametrize("name", NAMES)
def test_a_config_makes_a_recipe(name: str) -> None:
    recipe = Recipe.from_config(load(name))
    assert recipe.schedule and set(recipe.schedule) <= recipe.stages.keys()
    protocols = recipe.all_protocols
    for stage in recipe.stages.values():
        assert stage.protocol in protocols


@pytest.mark.parametrize("name", sorted(set(NAMES) - DATA.keys()))
def test_a_config_makes_a_processor_and_a_model_config(name: str, tmp_path: Path) -> None:
    recipe = Recipe.from_config(load(name))
    processor = build.processor(recipe, tmp_path)
    model = build.model_config(recipe, processor)
    assert model.text.vocab_size >= processor.chat.vocab_size
    assert model.layout == processor.layout


def test_a_recipe_names_its_model(tmp_path: Path) -> None:
    """The sizes that are written out give way to a published size, and that to a checkpoint."""
    config = load("quickstart")
    written_out = Recipe.from_config(config)
    processor = build.processor(written_out, tmp_path / "first")
    small = build.model_config(written_out, processor)
    config.model.size = "lingshu_7b"
    named = Recipe.from_config(config)
    assert build.processor(named, tmp_path / "second").layout.window_size == 112 != processor.layout.window_size
    large = build.model_config(named, processor)
    assert (large.text, large.vision) == (SIZES["lingshu_7b"].text, SIZES["lingshu_7b"].vision)
    assert large.image_token_id == processor.chat.image_pad
    write_files(tmp_path / "model", {"config.json": json.dumps(small.to_hf())})
    config.model.pretrained = str(tmp_path / "model")
    assert build.model_config(Recipe.from_config(config), processor) == small


def test_a_recipe_without_a_model_is_refused(tmp_path: Path) -> None:
    config = load("quickstart")
    del config.model.text
    with pytest.raises(ConfigError, match="config.model: set pretrained, or size, or text and vision"):
        build.processor(Recipe.from_config(config), tmp_path)


@pytest.mark.parametrize(
    "key, value, named",
    [
        ("schedule", ("sft", "gpro"), "config.schedule"),
        ("schedule", ("sft",), "config.stages.sft.start"),
        ("stages.sft.protocol", "vitra", "config.stages.sft"),
        ("stages.sft.sources.look.protocol", "vitra", "config.stages.sft"),
        ("stages.sft.sources.look.splti", "train", "config.stages.sft.sources.look.splti"),
        ("stages.sft.optimizer.learning_rat", 1.0, "config.stages.sft.optimizer.learning_rat"),
        ("stages.sft.train", ("merger", "visoin"), "config.stages.sft.train[1]: 'visoin' is not one of 'vision', 'merger'"),
        ("stages.grpo.objective.clip", 1.0, "config.stages.grpo.objective.clip: no such key, did you mean"),
        (
            "stages.grpo.objective.name",
            "gpro",
            "config.stages.grpo.objective.name: unknown objective 'gpro', did you",
        ),
        ("stages.grpo.objective", {}, "config.stages.grpo.objective.name: must be set"),
        ("model.text.hidden", 64, "config.model.text.hidden"),
        ("model.remat", "everything", "config.model.remat"),
        ("model.size", "qwen2_5_vl_8b", "config.model.size: 'qwen2_5_vl_8b' is not one of qwen2_5_vl_3b, "),
        ("data", {"source": ""}, "config.data.source"),
        ("stages.grpo.objective.pack", True, "config.stages.grpo.objective.pack: no such key"),
        ("stages.grpo.objective.too_long", "skip", "config.stages.grpo.objective.too_long: no such key"),
    ],
)
def test_a_wrong_recipe_is_named(key: str, value: Any, named: str) -> None:
    config = load("quickstart")
    *parents, last = key.split(".")
    inner: Any = config
    for parent in parents:
        inner = inner[parent]
    with inner.unlocked():
        inner[last] = value
    with pytest.raises(ConfigError) as caught:
        Recipe.from_config(config)
    assert named in str(caught.value)


@pytest.mark.parametrize("shards", [1, 16, 64, 256, 300])
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_shard_computes_few_rows_at_a_time(stage: str, shards: int) -> None:
    recipe = Recipe.from_config(load("vitar_7b"))
    chosen = recipe.stages[stage]
    whole = build.batch_shape(recipe, chosen, bins=shards, shards=shards)
    assert whole.rows <= chosen.micro_rows == {"sft": 2, "grpo": 4}[stage]
    assert whole.bins == shards * build.micro_batch_count(recipe, chosen, shards)
    assert whole.bins * whole.rows >= chosen.batch_size * chosen.objective.rows_per_sample
    one = build.batch_shape(recipe, chosen, bins=1, shards=shards)
    assert one == dataclasses.replace(whole, bins=whole.bins // shards)


def test_rows_that_are_filled_have_room_for_the_images_of_several_examples() -> None:
    config = load("vitar_7b")
    config.stages.sft.update(batch_size=256, row_images=6, policy_tokens=1200)
    recipe = Recipe.from_config(config)
    shape = build.batch_shape(recipe, recipe.stages["sft"], bins=64, shards=64)
    assert (shape.bins, shape.rows, shape.images, shape.policy_tokens) == (128, 2, 12, 2400)
    config.model.update(attention="cudnn", dtype="bfloat16")
    with pytest.raises(ConfigError, match="config.stages.sft.objective.pack: cudnn's attention takes one example a row"):
        Recipe.from_config(config)


def test_rows_of_episodes_are_filled_where_micro_batches_can_stay_empty() -> None:
    config = load("vitar_7b")
    assert not Recipe.from_config(config).stages["grpo"].objective.fills_micro_batches
    config.stages.grpo.objective.update(packed=True, minibatches=2)
    recipe = Recipe.from_config(config)
    stage = recipe.stages["grpo"]
    shape = build.batch_shape(recipe, stage, bins=8, shards=8)
    assert (shape.bins, shape.rows, shape.sequence, shape.segments) == (256, 4, 16, True)
    assert build.batch_shape(recipe, recipe.stages["sft"], bins=8, shards=8).sequence == 1
    # 64 rows of 2,048 tokens in 16 micro-batches: episodes of 900 tokens need 28.1 rows.
    assert [shape.filled_share(tokens) for tokens in (2048, 900, 1)] == [1.0, 8 / 16, 1 / 16]
    config.stages.grpo.micro_rows = 0
    with pytest.raises(ConfigError, match="config.stages.grpo.objective.packed: all rows are one micro-batch"):
        Recipe.from_config(config)
    config.stages.grpo.micro_rows = 4
    config.stages.sft.objective.pack = False
    config.model.attention = "cudnn"
    with pytest.raises(ConfigError, match="config.stages.grpo.objective.packed: cudnn's attention takes one example a row"):
        Recipe.from_config(config)
    config.stages.grpo.objective.packed = False
    recipe = Recipe.from_config(config)
    assert not build.batch_shape(recipe, recipe.stages["grpo"], bins=8, shards=8).segments


def test_minibatches_take_as_many_parts_each() -> None:
    config = load("vitar_7b")
    config.stages.grpo.objective.update(minibatches=3, epochs=2)
    recipe = Recipe.from_config(config)
    stage = recipe.stages["grpo"]
    assert stage.optimizer_steps == 6 * stage.steps
    assert [build.micro_batch_count(recipe, stage, shards) for shards in (1, 64, 256)] == [258, 6, 3]
    with pytest.raises(ConfigError, match="objective.minibatches: 3, but a data shard has 1 rows"):
        build.micro_batch_count(recipe, stage, 1024)


@pytest.mark.parametrize("name", PRESETS)
def test_a_published_objective_makes_a_stage(name: str) -> None:
    config = load("quickstart")
    config.stages.grpo.objective.update(**PRESETS[name], **({"horizon": 104} if name == "dr_grpo" else {}))
    stage = Recipe.from_config(config).stages["grpo"]
    assert stage.objective.needs_reference == (name == "grpo")

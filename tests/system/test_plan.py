"""Plans by the real TPU compiler, for a narrow model."""

import dataclasses
import json
import subprocess
from functools import cache
from typing import Any

import jax
import pytest

from tests.kit import micro, micro_qwen3
from tests.kit.errors import Main
from tests.kit.processes import MICRO, run_module
from tests.kit.tiny_sam2 import SIDE, hf_config
from vitar_jax.errors import ConfigError
from vitar_jax.experiment import build
from vitar_jax.experiment.program_bytes import argument_bytes
from vitar_jax.experiment.program_flops import program_flops
from vitar_jax.experiment.programs import Call, Programs
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.models.family import MASK_PARTS
from vitar_jax.models.registry import abstract_model, family_of
from vitar_jax.models.sam2.config import TrunkConfig
from vitar_jax.parallel.mesh import make_mesh
from vitar_jax.parallel.topology import CHIPS, chip_of, find_topology
from vitar_jax.plan import __main__ as command_line
from vitar_jax.plan.__main__ import check_kernels
from vitar_jax.plan.hlo import collectives


def plan(*flags: str) -> subprocess.CompletedProcess[str]:
    environ = {"XLA_FLAGS": None, "JAX_NUM_CPU_DEVICES": "8"}
    return run_module("vitar_jax.plan", "--config=tests/kit/micro.py", *flags, environ=environ)


@cache
def plans() -> dict[str, dict[str, Any]]:
    """One of each program, for a slice of four chips."""
    done = plan("--topology=v5e:2x2", "--json", "--config.mesh.tensor=2", "--config.rollout.tensor=2")
    assert done.returncode == 0, done.stderr
    return {made["program"]: made for made in json.loads(done.stdout)}


@pytest.mark.slow
def test_every_program_compiles_and_fits() -> None:
    assert plans().keys() == {"train", "reshard", "prefill", "decode"}
    for made in plans().values():
        assert made["fits"] and made["chips"] == 4
        memory = made["memory"]
        assert memory["total"] == sum(memory[p] for p in ("arguments", "temporaries", "outputs")) - memory["aliased"]
        assert made["least_seconds"] == max(made["floors_seconds"].values()) > 0


@pytest.mark.slow
def test_training_shards_and_rollout_gathers() -> None:
    assert plans()["train"]["mesh"] == {"data": 1, "fsdp": 2, "tensor": 2}
    assert plans()["decode"]["mesh"] == {"data": 2, "fsdp": 1, "tensor": 2}
    assert "all-reduce" in plans()["train"]["collectives"]
    gathered = plans()["reshard"]["collectives"]["all-gather"]["bytes"]
    model = abstract_model(build.model_config(Recipe.from_config(micro.get_config())))
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(model))
    assert size / 2 < gathered < size  # a chip gathers its half of what the tensor axis splits, and all of the rest
    # A step's state is taken over by the next one's.
    assert plans()["train"]["memory"]["aliased"] > 0.9 * plans()["train"]["memory"]["outputs"]


@pytest.mark.slow
def test_what_does_not_fit_is_said_with_what_to_try() -> None:
    done = plan("--topology=v5e:2x2", "--program=decode", "--config.rollout.slots=8192", "--config.limits.tokens=262144")
    assert done.returncode == 1, done.stderr
    assert "does not fit: Ran out of memory" in done.stdout and "try: fewer rollout.slots" in done.stdout
    assert "64.00 GiB: f32[2048,2,262144,16] state.cache.keys[0]" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "program, row", [pytest.param("train", "train sft", marks=pytest.mark.sweep), ("prefill", "prefill")]
)
def test_a_program_has_the_kernels_of_its_attention(program: str, row: str) -> None:
    flags = ("--topology=v5e:2x2", "--config.model.attention=splash", "--config.mesh.tensor=2", "--row")
    done = plan(*flags, f"--program={program}", "--stage=sft")
    assert done.returncode == 0, done.stderr
    assert [line[: line.index("|", 2)].strip("| ") for line in done.stdout.splitlines()] == [row]


def test_programs_without_their_kernels_are_refused() -> None:
    with pytest.raises(ConfigError, match="the compiled program train calls no kernel"):
        check_kernels("fusion(%x)", "splash", "train")
    check_kernels("fusion(%x)", "xla", "train")
    check_kernels("fusion(%x)", "splash", "decode")


@pytest.mark.slow
def test_gpus_are_planned_by_what_goes_in(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    """The arguments of one of eight devices are those that a compiler counts."""

    def plan_here(topology: str) -> list[dict[str, Any]]:
        flags = (f"--config={MICRO}", "--json", "--program=train", "--program=reshard", "--stage=sft", "--config.mesh.tensor=2")
        assert main(command_line, *flags, f"--topology={topology}") == 0
        return json.loads(capsys.readouterr().out)

    counted, compiled = plan_here("gpu:8"), plan_here("cpu")
    assert [made["memory"]["arguments"] for made in counted] == [made["memory"]["arguments"] for made in compiled]
    assert [made["fits"] for made in counted] == [None, None]
    assert counted[0]["floors_seconds"].keys() == {"compute", "memory"}


def test_a_reference_and_further_passes_are_counted() -> None:
    def train(**knobs: Any) -> tuple[Call, int]:
        config = micro.get_config()
        config.stages.grpo.objective.update(knobs)
        recipe = Recipe.from_config(config)
        programs, stage = Programs(recipe, build.model_config(recipe), make_mesh()), recipe.stages["grpo"]
        return programs.call("train", stage), program_flops(programs, "train", stage)

    (plain, few), (with_reference, many) = train(), train(kl_coefficient=0.1, old_logprobs="trainer", epochs=2)
    weights = Call(None, (plain.arguments[0].model,))
    assert argument_bytes(with_reference) == argument_bytes(plain) + argument_bytes(weights)
    assert many / few == pytest.approx((2 * 3 + 2) / 3)  # a step is a pass forward and two backward


def test_a_mean_length_lowers_what_filled_rows_cost(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    """Four micro-batches of a row of 104 tokens on each of eight devices, of which episodes of 52 tokens need two."""
    flags = (f"--config={MICRO}", "--topology=gpu:8", "--program=train", "--json", "--config.stages.grpo.batch_size=16")
    filled = ("--config.stages.grpo.micro_rows=1", "--config.stages.grpo.objective.packed=True")

    def floors(*more: str) -> tuple[dict[str, Any], dict[str, Any]]:
        assert main(command_line, *flags, *more) == 0
        (made,) = json.loads(capsys.readouterr().out)
        return made["floors_seconds"], made["at_mean"]

    whole, mean = floors("--mean_tokens=52", *filled)
    assert mean["filled_share"] == 0.5 and mean["tokens"] == 52
    assert mean["floors_seconds"] == {"compute": whole["compute"] / 2, "memory": whole["memory"]}
    whole, mean = floors("--mean_tokens=52")
    assert mean["floors_seconds"] == whole
    assert main(command_line, *flags, "--mean_tokens=105") == 2
    assert "--mean_tokens: got 105, expected 0 (no mean) to 104" in capsys.readouterr().err


def test_a_length_lowers_what_decode_reads(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 104 positions of a slot, a length of 26 reads a quarter."""
    flags = (f"--config={MICRO}", "--topology=gpu:1", "--program=decode", "--json", "--mean_tokens=20")

    def mean(*more: str) -> dict[str, Any]:
        assert main(command_line, *flags, *more) == 0
        (made,) = json.loads(capsys.readouterr().out)
        return made | made["at_mean"]

    whole, part = mean(), mean("--config.rollout.decode_lengths=(64,26)")
    assert (whole["positions"], part["positions"]) == (104, 26)
    assert whole["bytes_per_step"] == whole["memory"]["arguments"]
    recipe = Recipe.from_config(micro.get_config())
    text = build.model_config(recipe).text
    positions = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * recipe.rollout.slots * 4
    assert whole["bytes_per_step"] - part["bytes_per_step"] == positions * (104 - 26)
    assert part["floors_seconds"]["memory"] < whole["floors_seconds"]["memory"]
    assert part["floors_seconds"]["compute"] < whole["floors_seconds"]["compute"]


@pytest.mark.slow
def test_loops_over_filled_micro_batches_count_as_if_all_were() -> None:
    """A program of four micro-batches on two shards sends what one that skips none sends."""

    def counted(packed: bool) -> dict[str, int]:
        config = micro.get_config()
        config.mesh = dict(fsdp=2, tensor=1)
        config.stages.grpo.update(batch_size=4, micro_rows=1)
        config.stages.grpo.objective.update(packed=packed)
        recipe = Recipe.from_config(config)
        programs = Programs(recipe, build.model_config(recipe), make_mesh(fsdp=2, devices=jax.devices()[:2]))
        text = programs.call("train", recipe.stages["grpo"]).lower().compile().as_text()
        return {one.kind: one.bytes for one in collectives(text)}

    assert counted(packed=True) == pytest.approx(counted(packed=False), rel=0.01)


def test_features_of_three_levels_are_four_times_as_wide() -> None:
    def features(*taken: int) -> Any:
        config = micro_qwen3.get_config()
        config.model.text.num_hidden_layers = 3
        config.model.vision.update(depth=3, deepstack_visual_indexes=taken)
        recipe = Recipe.from_config(config)
        programs = Programs(recipe, build.model_config(recipe), make_mesh())
        return programs.call("prefill", recipe.stages["grpo"]).arguments[2]

    plain, deep = features(), features(0, 1, 2)
    assert deep.shape == (plain.shape[0], 4 * plain.shape[1]) and plain.shape[1] == 32
    assert argument_bytes(Call(None, (deep,))) == 4 * argument_bytes(Call(None, (plain,)))


def masked(masks: Any) -> Programs:
    """Programs of a tiny Sa2VA with adapters in its decoder, whose stages learn masks or not."""
    config: Any = micro_qwen3.get_config()
    sizes: Any = hf_config()
    backbone = sizes.vision_config.backbone_config
    config.model.family = "sa2va_chat"
    config.model.sam2 = dict(
        trunk={field.name: getattr(backbone, field.name) for field in dataclasses.fields(TrunkConfig)},
        decoder=dict(hidden_size=32, mlp_dim=48, num_attention_heads=4, iou_head_hidden_dim=24),
        image_size=SIDE,
    )
    for stage in config.stages.values():
        stage.update(protocol="vrt", train=("decoder", "bridge", "mask_decoder"), lora=dict(rank=2, alpha=2.0))
        stage.objective.masks = masks
    recipe = Recipe.from_config(config)
    return Programs(recipe, build.model_config(recipe), make_mesh())


@pytest.mark.slow
def test_masks_are_counted_and_their_programs_lowered() -> None:
    programs = masked(dict(masks=4))
    stage, rollout = programs.recipe.stages["sft"], programs.recipe.rollout
    products = family_of(programs.config).products
    language = dict(images=0, windows=0, window_patches=0, rows=0, tokens=0, scored_tokens=0)

    def counted(**counts: int) -> dict[str, int]:
        made = products(programs.config, **language, **counts)
        return {part: of.weights + of.attention for part, of in made.items() if part in MASK_PARTS}

    shape = programs.batch_shape(stage)
    assert shape.masks is not None and shape.masks.images == shape.masks.entries
    entries = shape.bins * shape.masks.entries
    learnt = counted(mask_images=entries, mask_entries=entries, masks=4 * entries)
    # The encoder is frozen, so nothing goes back through it.
    expected = learnt["mask_encoder"] + 3 * (learnt["bridge"] + learnt["mask_decoder"])
    without = masked(None)
    few = program_flops(without, "train", without.recipe.stages["sft"])
    assert program_flops(programs, "train", stage) - few == expected

    assert programs.names == ("train", "reshard", "prefill", "decode", "maps", "masks")
    assert program_flops(programs, "maps", stage) == sum(counted(mask_images=programs.slot_shards).values())
    turns = programs.mask_rows
    made = counted(mask_entries=turns, masks=turns * rollout.turn_masks)
    assert program_flops(programs, "masks", stage) == sum(made.values()) > 0
    logits, scores = programs.call("masks", stage).lower().out_info
    assert logits.shape == (turns, rollout.turn_masks, SIDE // 4, SIDE // 4) and scores.shape == logits.shape[:2]
    assert len(programs.call("maps", stage).lower().out_info) == programs.slot_shards


def test_programs_of_masks_are_refused_where_none_are_made(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command_line, f"--config={MICRO}", "--topology=cpu", "--program=maps") == 2
    assert "--program=maps: no protocol of the recipe makes masks" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["v5e", "h100:8", "gpu:0", "gpu:9", "v5e:3x5x7"])
def test_topologies_that_there_are_not(name: str) -> None:
    jax.devices()  # once JAX has started, there are no more
    with pytest.raises(ConfigError, match=f"--topology={name}"):
        find_topology(name)


def test_the_devices_that_are_here() -> None:
    here = find_topology("cpu")
    assert len(here.devices) == 8 and here.chip is None


@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1", "v5e:1x1", "v5p:1x1x1"])
def test_a_device_that_is_here_is_known_by_its_kind(name: str) -> None:
    topology = find_topology(name)
    assert chip_of(topology.devices[0]) == topology.chip
    assert chip_of(jax.devices()[0]) is None


def test_chips_do_more_than_they_can_read() -> None:
    """A slip of a factor of 1000 in the table would show."""
    for name, chip in CHIPS.items():
        assert 100 < chip.flops / chip.bandwidth < 700, name
        assert 8 * 2**30 < chip.memory < 300 * 2**30 and chip.links < chip.bandwidth, name

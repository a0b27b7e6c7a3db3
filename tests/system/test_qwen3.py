"""A checkpoint of Qwen3-VL, as a stage leaves it: transformers computes its logits, and the commands play and read it."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from tests.kit import micro_qwen3, tiny
from tests.kit.checkpoints import save_random
from tests.kit.errors import Main
from tests.kit.images import noise
from tests.kit.parity import TOLERANCE, forward, relative_error
from tests.kit.processes import ROOT
from vitar_jax import attend, evaluate, infer
from vitar_jax.models.pretrained import load_pretrained
from vitar_jax.models.registry import load_config
from vitar_jax.processing.packing import BatchShape, pack
from vitar_jax.rollout.checkpoint_settings import load_settings


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(micro_qwen3.get_config(), tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.slow
def test_transformers_computes_its_logits(checkpoint: Path) -> None:
    processor = load_settings(checkpoint, load_config(checkpoint)).processor
    example = tiny.example("e", [noise(120, 100), "Which texture is it?"], processor)
    ids = torch.tensor(example.token_ids[None], dtype=torch.long)
    theirs = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = theirs(
            input_ids=ids,
            mm_token_type_ids=(ids == processor.chat.image_pad).int(),
            pixel_values=torch.tensor(example.patches[0]),
            image_grid_thw=torch.tensor(example.grids),
        ).logits[0]
    batch = pack([example], BatchShape(1, 1, ids.shape[1], 1, processor.size_classes[0], ids.shape[1]), processor)
    with jax.default_matmul_precision("highest"):
        ours = forward(load_pretrained(checkpoint), batch)[0, 0]
    assert relative_error(np.asarray(ours), expected.numpy()) <= TOLERANCE


@pytest.mark.slow
def test_commands_play_it_and_read_its_attention(
    checkpoint: Path, main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = f"--config={ROOT}/tests/kit/micro_qwen3.py"
    assert main(evaluate, recipe, f"--workdir={tmp_path}", "--stage=sft", f"--checkpoint={checkpoint}") == 0
    played = tmp_path / "evaluation" / "sft"
    assert json.loads((played / "scores.json").read_text())["samples"] == 6

    output = tmp_path / "attention"
    assert main(attend, f"--checkpoint={checkpoint}", f"--trajectories={played}", f"--output={output}") == 0
    lines = [json.loads(line) for line in (output / "attention.jsonl").read_text().splitlines()]
    assert len(lines) >= 6
    for line in lines:  # two layers of two heads
        total = np.array(line["text"]) + sum(np.array(image["share"]) for image in line["images"])
        np.testing.assert_allclose(total, np.ones((2, 2)), rtol=1e-4)

    noise(120, 100).save(tmp_path / "noise.png")
    capsys.readouterr()
    question = ["--question=Which texture?", f"--image={tmp_path / 'noise.png'}", f"--output={tmp_path / 'looks'}"]
    assert main(infer, f"--checkpoint={checkpoint}", *question) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("answer: ")

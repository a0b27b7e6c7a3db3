"""Checkpoints: what is read back, what is skipped, and the number that tells one from the other."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vitar_jax.errors import CheckpointError
from vitar_jax.learning.checkpoint import Checkpointer, checksum
from vitar_jax.parallel.mesh import make_mesh

WARNINGS: list[str] = []


def state(seed: int) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "step": jnp.int32(seed),
        "model": {
            "kernel": jax.random.normal(keys[0], (64, 48)),
            "half": jax.random.normal(keys[1], (5, 3, 2)).astype("bfloat16"),
        },
        "count": jax.random.randint(keys[2], (7,), 0, 100),
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A directory with the checkpoints of steps 2 and 4."""
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    for step in (1, 2, 4):
        checkpointer.save(step, state(step), {"seen": step})
    checkpointer.close()
    return checkpointer.directory


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    WARNINGS.clear()
    yield WARNINGS


def restored(directory: Path) -> int:
    """The step that is restored, 0 for none; what it held is what was saved."""
    checkpointer = Checkpointer(directory, WARNINGS.append)
    found = checkpointer.restore(state(0))
    checkpointer.close()
    if found is None:
        return 0
    held, data = found
    step = int(held["step"])
    assert data == {"seen": step}
    for ours, theirs in zip(jax.tree.leaves(held), jax.tree.leaves(state(step)), strict=True):
        assert ours.dtype == theirs.dtype and np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    return step


def files(directory: Path) -> list[Path]:
    """The files of a checkpoint, the largest first: it holds the arrays."""
    return sorted((path for path in directory.rglob("*") if path.is_file()), key=lambda path: -path.stat().st_size)


def test_the_newest_is_restored(saved: Path, warnings: list[str]) -> None:
    assert restored(saved) == 4 and not warnings
    assert sorted(path.name for path in saved.iterdir()) == ["2", "4"]  # two are kept


def test_where_there_is_none(tmp_path: Path) -> None:
    assert restored(tmp_path / "nowhere") == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["flip", "cut", "empty", "gone"])
def test_a_damaged_one_is_passed_over(how: str, saved: Path, warnings: list[str]) -> None:
    """Orbax itself restores wrong numbers where one bit of an array's file is flipped."""
    largest = files(saved / "4")[0]
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    if how == "gone":
        largest.unlink()
    else:
        largest.write_bytes({"flip": content, "cut": content[: len(content) // 2], "empty": b""}[how])
    assert restored(saved) == 2
    assert len(warnings) == 1 and warnings[0].startswith(f"{saved / '4'}: is damaged and skipped, renamed to 4.damaged (")
    # The step can be made, saved and found again.
    checkpointer = Checkpointer(saved)
    checkpointer.save(4, state(4), {"seen": 4})
    checkpointer.close()
    assert restored(saved) == 4 and len(warnings) == 1


def test_where_all_are_damaged_it_starts_anew(saved: Path, warnings: list[str]) -> None:
    for step in (2, 4):
        shutil.rmtree(saved / str(step) / "state")
    assert restored(saved) == 0 and len(warnings) == 2


def test_a_half_written_one_is_passed_over(saved: Path, warnings: list[str]) -> None:
    half = saved / "6.orbax-checkpoint-tmp"
    shutil.copytree(saved / "4", half)
    assert restored(saved) == 4
    assert warnings == [f"{half}: incomplete, as the run ended while it was written; skipped"] and not half.exists()


@pytest.mark.parametrize(
    "like, message",
    [
        ({"count": jnp.zeros(8, jnp.int32)}, r"count is int32\[7\], not int32\[8\]"),
        ({"count": jnp.zeros(7)}, r"count is int32\[7\], not float32\[7\]"),
        ({"more": jnp.zeros(7)}, "more is missing, not"),
    ],
)
def test_another_state_is_an_error_not_damage(like: dict[str, Any], message: str, saved: Path) -> None:
    checkpointer = Checkpointer(saved)
    with pytest.raises(CheckpointError, match=message):
        checkpointer.restore(state(0) | like)
    checkpointer.close()
    assert (saved / "4").exists()


@given(st.integers(0, 2**31 - 1), st.sampled_from([("kernel", 32), ("half", 16)]))
def test_one_flipped_bit_is_another_checksum(at: int, leaf: tuple[str, int]) -> None:
    name, bits = leaf
    tree = state(1)
    changed = np.array(tree["model"][name])
    view = changed.reshape(-1).view(f"uint{bits}")
    view[at % view.size] ^= 1 << (at // view.size % bits)
    other = tree | {"model": tree["model"] | {name: jnp.asarray(changed)}}
    assert int(checksum(other)) != int(checksum(tree))


def test_places_count() -> None:
    tree = state(1)
    swapped = {name: tree["model"][name][::-1] for name in tree["model"]}
    renamed = {"lenrek": tree["model"]["kernel"], "half": tree["model"]["half"]}
    sums = {int(checksum(tree | {"model": model})) for model in (tree["model"], swapped, renamed)}
    assert len(sums) == 3


def test_the_sharding_does_not_count() -> None:
    mesh = make_mesh(2, 2, 2, devices=jax.devices()[:8])
    tree = state(1)
    spread = jax.device_put(tree["model"]["kernel"], NamedSharding(mesh, P(("data", "fsdp"), "tensor")))
    there = jax.device_put(
        {"step": tree["step"], "count": tree["count"], "half": tree["model"]["half"]}, NamedSharding(mesh, P())
    )
    sharded = {"step": there["step"], "model": {"kernel": spread, "half": there["half"]}, "count": there["count"]}
    assert int(checksum(sharded)) == int(checksum(tree))

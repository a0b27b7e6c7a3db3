"""Damage to any byte of a checkpoint: it is harmless, or the checkpoint is skipped with one warning for the older one."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitar_jax.errors import CheckpointError
from vitar_jax.learning.checkpoint import Checkpointer
from vitar_jax.learning.loop import resume

Damage = Callable[[Path], None]


def state(step: int) -> dict[str, Any]:
    return {"step": jnp.int32(step), "weights": jnp.arange(6, dtype=jnp.float32) / step, "half": jnp.bfloat16(step)}


def data(step: int) -> dict[str, Any]:
    return {"batches": [{"taken": 128 * step}], "best": step / 8, "since": [{"actor/loss": 1 / step, "probe": float("inf")}]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint of step 4, and the older one of step 2."""
    checkpointer = Checkpointer(tmp_path_factory.mktemp("saved") / "checkpoints")
    for step in (2, 4):
        checkpointer.save(step, state(step), data(step))
    checkpointer.close()
    return checkpointer.directory


def files(directory: Path) -> list[Path]:
    """Returns the files of the newer checkpoint, relative to the directory."""
    return sorted(path.relative_to(directory) for path in (directory / "4").rglob("*") if path.is_file())


def restored(saved: Path, copy: Path, damage: Damage) -> int:
    """Damages a copy and restores it. Asserts that the state and the data of the step are those that were saved."""
    shutil.copytree(saved, copy)
    damage(copy)
    warnings: list[str] = []
    checkpointer = Checkpointer(copy, warnings.append)
    found = checkpointer.restore(state(0))
    checkpointer.close()
    shutil.rmtree(copy)
    assert found is not None
    step = int(found[0]["step"])
    assert found[1] == data(step)
    for ours, theirs in zip(jax.tree.leaves(found[0]), jax.tree.leaves(state(step)), strict=True):
        assert ours.dtype == theirs.dtype and np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    assert [line.startswith(f"{copy / '4'}: is damaged and skipped") for line in warnings] == ([] if step == 4 else [True])
    return step


def replacing(old: bytes, new: bytes) -> Damage:
    def damage(directory: Path) -> None:
        file = directory / "4" / "data" / "metadata"
        content = file.read_bytes()
        assert old in content
        file.write_bytes(content.replace(old, new))

    return damage


def flipping(file: Path, place: int, bit: int) -> Damage:
    def damage(directory: Path) -> None:
        content = bytearray((directory / file).read_bytes())
        content[place] ^= 1 << bit
        (directory / file).write_bytes(content)

    return damage


@pytest.mark.parametrize(
    "old, new",
    [
        (b'"taken": 512', b'"taken": 412'),
        (b'"taken"', b'"tAken"'),
        (b'"best": 0.5', b'"best": 0.7'),
        (b'"since"', b'"sinCe"'),
        (b'"batches"', b'"batcHes"'),
        (b"Infinity", b"Infinitx"),
        (b"float32", b"float36"),
        (b'"weights"', b'"weightr"'),
        (b'"checksum"', b'"chEcksum"'),
        (b'"checksum": ', b'"checksum": 1'),
        (b'"leaves"', b'"leavEs"'),
        (b'"data"', b'"dAta"'),
        (b'"sha256"', b'"sha25v"'),
        (b"{", b"["),
        (b'"', b"\xff"),
    ],
)
def test_damaged_json_is_skipped(old: bytes, new: bytes, saved: Path, tmp_path: Path) -> None:
    assert restored(saved, tmp_path / "copy", replacing(old, new)) == 2


@pytest.mark.parametrize("item", ["data", "state"])
def test_a_part_of_the_older_checkpoint_is_damage(item: str, saved: Path, tmp_path: Path) -> None:
    def exchange(directory: Path) -> None:
        shutil.rmtree(directory / "4" / item)
        shutil.copytree(directory / "2" / item, directory / "4" / item)

    assert restored(saved, tmp_path / "copy", exchange) == 2


@pytest.mark.slow
def test_flipped_bits(saved: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    found = set()
    for file in files(saved):
        for place in draw.sample(range((saved / file).stat().st_size), 2):
            found.add(restored(saved, tmp_path / "copy", flipping(file, place, draw.randrange(8))))
    assert found == {2, 4}  # Orbax reads only some of its files


@pytest.mark.sweep
def test_a_flipped_bit_in_every_byte(saved: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    for file in files(saved):
        for place in range((saved / file).stat().st_size):
            restored(saved, tmp_path / "copy", flipping(file, place, draw.randrange(8)))


DAMAGES: dict[str, Damage] = {
    "deleted": Path.unlink,
    "empty": lambda path: path.write_bytes(b"") and None,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]) and None,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0}") and None,
    "beside another": lambda path: path.with_name("more").write_bytes(b"7") and None,
}


def at(file: Path, damage: Damage) -> Damage:
    return lambda directory: damage(directory / file)


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files(name: str, saved: Path, tmp_path: Path) -> None:
    found = {file: restored(saved, tmp_path / "copy", at(file, DAMAGES[name])) for file in files(saved)}
    if name == "beside another":
        assert set(found.values()) == {4}
    else:
        assert found[Path("4/data/metadata")] == found[Path("4/state/manifest.ocdbt")] == 2


def test_what_lies_beside_the_checkpoints_is_ignored(saved: Path, tmp_path: Path) -> None:
    def add(directory: Path) -> None:
        (directory / "6").write_bytes(b"")
        (directory / "notes.txt").write_text("7")
        (directory / "best").mkdir()

    assert restored(saved, tmp_path / "copy", add) == 4


def test_an_empty_folder_is_a_damaged_checkpoint(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    (copy / "6").mkdir()
    warnings: list[str] = []
    checkpointer = Checkpointer(copy, warnings.append)
    found = checkpointer.restore(state(0))
    checkpointer.close()
    assert found is not None and int(found[0]["step"]) == 4 and len(warnings) == 1


# Checkpoints of earlier versions


def earlier(directory: Path) -> None:
    """Makes the newer checkpoint one of the version before the JSON had a hash."""
    file = directory / "4" / "data" / "metadata"
    held = json.loads(file.read_text())
    file.write_text(json.dumps({"checksum": held["checksum"], "data": held["data"]}))


def test_an_earlier_version_is_restored(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    earlier(copy)
    warnings: list[str] = []
    checkpointer = Checkpointer(copy, warnings.append)
    found = checkpointer.restore(state(0))
    assert found is not None and found[1] == data(4)
    assert len(warnings) == 1 and "was saved by an earlier version, without a hash" in warnings[0]
    with pytest.raises(CheckpointError, match=r"step 4 is of another state: weights is float32\[6\], not float32\[7\]"):
        checkpointer.restore(state(0) | {"weights": jnp.zeros(7)})
    checkpointer.close()


@pytest.mark.parametrize("old, new", [(b'"batches"', b'"batcHes"'), (b'"since"', b'"sinCe"')])
def test_another_loops_progress_is_one_line(old: bytes, new: bytes, saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    earlier(copy)
    replacing(old, new)(copy)
    checkpointer = Checkpointer(copy)
    with pytest.raises(CheckpointError, match="copy: holds the progress of another loop .*keyword"):
        resume(state(0), checkpointer)  # type: ignore[arg-type]
    checkpointer.close()

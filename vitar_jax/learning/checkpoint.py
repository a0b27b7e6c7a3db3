"""Orbax checkpoints of the train state and the position in the data. Damaged checkpoints are skipped."""

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from jax import lax
from jaxtyping import Array, UInt32

from vitar_jax.errors import CheckpointError
from vitar_jax.models.pretrained import leaf_paths
from vitar_jax.runtime.distributed import gather_json, is_main, wait_for_all

KEEP = 2  # number of checkpoints; the older one is read if the newer is damaged
DAMAGED = ".damaged"  # suffix of the names of damaged checkpoints
_EARLIER_KEYS = {"checksum", "data"}  # of the JSON before it had a hash


class Checkpointer:
    """The checkpoints of one stage in `directory`, which are saved in the background and restored.

    Args:
      warn: Takes a message about each skipped checkpoint, in the main process.
    """

    def __init__(self, directory: Path, warn: Callable[[str], None] = logging.warning):
        self.directory = directory.absolute()
        self._warn = warn
        if is_main() and self.directory.exists():
            for path in sorted(self.directory.glob("*.orbax-checkpoint-tmp*")):
                warn(f"{path}: incomplete, as the run ended while it was written; skipped")
                shutil.rmtree(path, ignore_errors=True)
        wait_for_all("programs are compiled")  # Orbax begins with a collective
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=KEEP, create=True),
            item_names=("state", "data"),
        )
        # Each process reads alone: a process that finds damage must not leave the others at a barrier.
        alone = ocp.options.MultiprocessingOptions(jax.process_index(), {jax.process_index()}, f"reader_{jax.process_index()}")
        self._reader = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(
                composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
                state=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
                data=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
            ),
            multiprocessing_options=alone,
        )

    def save(self, step: int, state: Any, data: dict[str, Any]) -> None:
        """Saves a pytree of arrays, and `data` as JSON next to it."""
        leaves = leaf_paths(state)
        held = {"checksum": int(checksum(state)), "leaves": _describe(leaves), "data": data}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(dict(leaves)), data=ocp.args.JsonSave(held | {"sha256": _sha256(held)})
            ),
        )

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """Restores the newest intact checkpoint into arrays with the shapes, types and shardings of `like`.

        Renames, with a warning, each checkpoint that cannot be read, whose arrays do not match their checksum, or whose JSON
        does not match its hash. Checkpoints of earlier versions have no such hash; their JSON is restored unchecked.

        Returns:
          The state, and the data saved next to it. None if there is no checkpoint.

        Raises:
          CheckpointError: If the saved state has other leaves, shapes or types.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            read, found = None, "another process cannot read it"
            try:
                read = self._read(step, like)
            except CheckpointError:
                raise
            except Exception as error:  # any exception of Orbax, JSON or the file system
                found = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            # All processes compute together from here: one that cannot read must not leave the others in a collective.
            if all(gather_json(read is not None)) and read is not None:
                state, held = read
                if int(checksum(state)) == held["checksum"]:
                    return state, held["data"]
                found = "the arrays do not match their checksum"
            self._set_aside(step, found)
        return None

    def wait(self) -> None:
        """Waits until all checkpoints are on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()
        self._reader.close()

    def _read(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """Reads the state, and the JSON that `save` writes next to it.

        Raises:
          CheckpointError: If the checkpoint is intact and holds another state.
          Exception: If the checkpoint is damaged.
        """
        path, leaves = self.directory / str(step), leaf_paths(like)
        held = self._reader.restore(path, args=ocp.args.Composite(data=ocp.args.JsonRestore()))["data"]
        if held.keys() == _EARLIER_KEYS:
            if is_main():
                self._warn(f"{path}: was saved by an earlier version, without a hash of its JSON; the JSON is not checked")
            self._check_fits(step, self._described_by_orbax(path), _describe(leaves))
        else:
            if held.pop("sha256") != _sha256(held):
                raise ValueError("the JSON does not match its hash")
            self._check_fits(step, held["leaves"], _describe(leaves))
        target = {name: ocp.utils.to_shape_dtype_struct(leaf) for name, leaf in leaves}
        found = self._reader.restore(path, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))["state"]
        return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name, _ in leaves]), held

    def _described_by_orbax(self, path: Path) -> dict[str, str]:
        """Returns the leaves of an earlier version's checkpoint as Orbax describes them. Orbax does not protect them."""
        items: Any = self._reader.metadata(path).item_metadata
        return _describe(items["state"].tree.items())

    def _check_fits(self, step: int, theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
        if differing := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
            name = differing[0]
            there, here = (what.get(name, "missing") for what in (theirs, ours))
            more = f", and {len(differing) - 1} more" if differing[1:] else ""
            raise CheckpointError(f"{self.directory}: step {step} is of another state: {name} is {there}, not {here}{more}")

    def _set_aside(self, step: int, why: str) -> None:
        """Renames a damaged checkpoint, so that its step can be saved again."""
        path = self.directory / str(step)
        aside = path.with_name(path.name + DAMAGED)
        if is_main():
            self._warn(f"{path}: is damaged and skipped, renamed to {aside.name} ({why})")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        wait_for_all(f"{aside} is there")
        self._manager.reload()


def _describe(leaves: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """Returns the type and the shape of each leaf, such as `float32[64, 48]`."""
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves}


def _sha256(held: Mapping[str, Any]) -> str:
    """Returns a hash of JSON values, which is the same for the values read back."""
    return hashlib.sha256(json.dumps(held).encode()).hexdigest()


@jax.jit
def checksum(tree: Any) -> UInt32[Array, ""]:
    """Returns a checksum of the bits of a pytree's arrays and of their places, which is the same for every sharding.

    Each element's bits are multiplied by an odd number that depends on its place. The products are summed in wrapping 32-bit
    arithmetic, so the order of addition does not matter. Every single flipped bit changes the checksum.
    """
    total = jnp.uint32(0)
    for name, leaf in leaf_paths(tree):
        place = jnp.full(leaf.shape, zlib.crc32(name.encode()), jnp.uint32)
        for axis in range(leaf.ndim):
            place = place * 1_000_003 + lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        total += jnp.sum(_bits(leaf) * (2 * place + 1), dtype=jnp.uint32)
    return total


def _bits(leaf: Array) -> Array:
    """Returns the elements' bits as uint32."""
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    return lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}").astype(jnp.uint32)

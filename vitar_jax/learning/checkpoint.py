"""Train state and the data's position, saved together by Orbax."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from vitar_jax.errors import CheckpointError
from vitar_jax.models.pretrained import leaf_paths


class Checkpointer:
    """Checkpoints of one stage under `directory`; saving runs in the background."""

    def __init__(self, directory: Path, keep: int = 1):
        self.directory = directory.absolute()
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
            item_names=("state", "data"),
        )

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: Any, data: dict[str, Any]) -> None:
        """Saves a pytree of arrays, and the data's position (JSON)."""
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(dict(leaf_paths(state))), data=ocp.args.JsonSave(data)),
        )

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]]:
        """Restores the newest checkpoint into arrays of the shapes, types and shardings of `like`.

        Raises:
          CheckpointError: none there, or of another shape.
        """
        step = self.latest_step
        if step is None:
            raise CheckpointError(f"{self.directory}: no checkpoint here")
        target = {name: ocp.utils.to_shape_dtype_struct(leaf) for name, leaf in leaf_paths(like)}
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore()),
            )
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise CheckpointError(f"{self.directory}: step {step} does not fit this config ({error})") from error
        leaves = [restored["state"][name] for name, _ in leaf_paths(like)]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), restored["data"]

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

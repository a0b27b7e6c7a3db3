"""A medical vision-language model that looks twice, in JAX.

Shape letters, used by every name and annotation in this package:

    B  batch            H  query heads        L  layers
    S  sequence         K  key-value heads    P  patches
    T  query tokens     E  head width         W  windows
    D  model width      F  MLP width          N  images
    V  vocabulary       G  group              A  actions

From Python, a checkpoint is asked through a player (`rollout/player.py`):

    from vitar_jax import load_player
    episode = load_player("runs/quickstart/grpo/model").ask("phantom.png", "Which texture?", options=["flat", "rows"])

Importing the package loads nothing else: `load_player` is imported on first use, subpackages by name.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitar_jax.rollout.player import Player

    load_player = Player.load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name != "load_player":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vitar_jax.rollout.player import Player

    return Player.load

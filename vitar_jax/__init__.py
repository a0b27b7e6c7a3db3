"""A medical vision-language model that looks twice, in JAX.

Shape letters of the annotations in this package (other sizes are words):

    B  batch              H  query heads                   N  images
    R  rows               K  key-value heads               P  patches of an image
    S  sequence           Q  query heads per K             W  windows of an image
    T  query tokens       E  head width                    X  patches of a window
    M  cache capacity     D  model width                   C  numbers of a patch
    G  group              I  input width                   F  features of images
    L  layers             O  output width                  V  vocabulary

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

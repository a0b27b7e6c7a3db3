"""A medical vision-language model that looks twice, in JAX.

Shape letters of the annotations in this package (other dimensions are spelled out):

    B  batch              H  query heads                   N  images
    R  rows               K  key-value heads               P  patches of an image
    S  sequence           Q  query heads per K             W  windows of an image
    T  query tokens       E  head width                    X  patches of a window
    M  cache capacity     D  model width                   C  values of a patch
    G  group              I  input width                   F  image features
    L  layers             O  output width                  V  vocabulary

Ask a checkpoint from Python through a player (`rollout/player.py`):

    from vitar_jax import load_player
    episode = load_player("runs/quickstart/grpo/model").ask("phantom.png", "Which texture?", options=["flat", "rows"])

Importing `vitar_jax` imports no subpackage; `load_player` imports the player on first use.
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

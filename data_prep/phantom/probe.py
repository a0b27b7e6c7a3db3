"""Tests whether the first view reveals a lesion's kind, with a classifier that is given the lesion's true location.

    python -m data_prep.phantom.probe --cache_dir=DIR

prints the accuracy on held-out lesions twice per task: look, search and odd. For the real phantoms it must equal chance: the
largest share of a kind, which is 0.25 for "look" and "odd", and for "search" the 0.5 of spots that are flat. For phantoms whose
texture is too coarse to be erased by downsampling it must exceed chance, otherwise the first number would prove nothing.

The spots of a picture are drawn apart from each other given their kinds, so a classifier that cannot read the kind of one spot
cannot tell from all of them which one has a texture, or is the odd one.
"""

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from data_prep.phantom.pictures import ERASED_PERIOD, KINDS, SIZE, Split
from data_prep.phantom.samples import Phantoms
from data_prep.phantom.search import Searches
from vitar_jax.runtime.user_errors import one_line_errors

PATCH = 12
LEAKING_PERIOD = (13.0, 17.0)  # 2.4 to 3.2 pixels of an 84 px view

ProbedTask = Literal["look", "search", "odd"]
CHANCE: dict[ProbedTask, float] = {"look": 0.25, "search": 0.5, "odd": 0.25}  # share of the commonest kind among spots

Params = tuple[dict[str, jax.Array], ...]


def first_view_patches(
    split: Split,
    *,
    seed: int,
    length: int,
    view: int,
    cache_dir: str | os.PathLike[str],
    period: tuple[float, float] = ERASED_PERIOD,
    task: ProbedTask = "look",
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts the first view of `length` phantoms around each of their spots. "look" has one spot per phantom.

    Returns:
      Patches (spots, PATCH, PATCH) float32 in [0, 1], and kinds (spots,) int32.
    """
    options: Any = dict(seed=seed, length=length, view=view, cache_dir=cache_dir, period=period)
    source = Phantoms(split, task=task, **options) if task == "look" else Searches(split, task=task, **options)
    patches, kinds = [], []
    for n in range(length):
        sample = source[n]
        (picture,) = sample.images
        if isinstance(picture, str):
            raise TypeError(f"{sample.sample_id}: got a path, expected a picture")
        pixels = np.asarray(picture.resize((view, view), Image.Resampling.BICUBIC), np.float32) / 255
        padded = np.pad(pixels, PATCH // 2, mode="edge")  # padded[y : y + PATCH] is centred on pixel edge y
        shown = sample.metadata
        spots = [(shown["centre"], shown["kind"])] if task == "look" else zip(shown["centres"], shown["kinds"], strict=True)
        for centre, kind in spots:
            x, y = (int(round(at * view / SIZE)) for at in centre)
            patches.append(padded[y : y + PATCH, x : x + PATCH])
            kinds.append(KINDS.index(kind))
    return np.stack(patches), np.asarray(kinds, np.int32)


def fit_and_score(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    steps: int,
    seed: int,
) -> float:
    """Returns the accuracy on `test` of an MLP trained on `train`. Each is (features (N, ...), kinds (N,))."""
    features = train[0].reshape(len(train[0]), -1)
    mean, std = features.mean(0), features.std(0) + 1e-6
    inputs, kinds = jnp.asarray((features - mean) / std), jnp.asarray(train[1])
    params = _init(jax.random.key(seed), (inputs.shape[1], 128, 128, len(KINDS)))
    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, steps), weight_decay=1e-3)

    @jax.jit
    def step(params: Params, state: optax.OptState, key: jax.Array) -> tuple[Params, optax.OptState]:
        rows = jax.random.randint(key, (128,), 0, len(inputs))
        gradient = jax.grad(_loss)(params, inputs[rows], kinds[rows])
        updates, state = optimizer.update(gradient, state, params)
        return cast(Params, optax.apply_updates(params, updates)), state

    state = optimizer.init(params)
    for key in jax.random.split(jax.random.key(seed + 1), steps):
        params, state = step(params, state, key)
    guesses = _logits(params, jnp.asarray((test[0].reshape(len(test[0]), -1) - mean) / std)).argmax(-1)
    return float((guesses == test[1]).mean())


def probe_accuracy(
    *,
    seed: int,
    cache_dir: str | os.PathLike[str],
    train: int = 7000,
    test: int = 1500,
    steps: int = 1500,
    view: int = 84,
    period: tuple[float, float] = ERASED_PERIOD,
    task: ProbedTask = "look",
) -> float:
    """Returns the accuracy of an MLP that predicts held-out kinds from the first view, given the true location.

    Chance is `CHANCE[task]`.

    Args:
      train, test: Numbers of phantoms. Training and test phantoms share no background.
      steps: Number of training steps, of 128 patches each.
      view: Side of the first view, in pixels.
      period: Range of the texture's period, in pixels of the original picture; see `LEAKING_PERIOD`.
    """
    patches = partial(first_view_patches, seed=seed, view=view, cache_dir=cache_dir, period=period, task=task)
    known, held_out = patches("train", length=train), patches("test", length=test)
    return fit_and_score(known, held_out, steps=steps, seed=seed)


def _init(key: jax.Array, widths: tuple[int, ...]) -> Params:
    keys = jax.random.split(key, len(widths) - 1)
    return tuple(
        {"w": jax.random.normal(k, (n, m)) * (2 / n) ** 0.5, "b": jnp.zeros(m)}
        for k, n, m in zip(keys, widths[:-1], widths[1:], strict=True)
    )


def _logits(params: Params, inputs: jax.Array) -> jax.Array:
    for layer in params[:-1]:
        inputs = jax.nn.relu(inputs @ layer["w"] + layer["b"][None])
    return inputs @ params[-1]["w"] + params[-1]["b"][None]


def _loss(params: Params, inputs: jax.Array, kinds: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(_logits(params, inputs), kinds).mean()


@one_line_errors(paths=True)
def main() -> None:
    """Measures how accurately a classifier reads the kind of a lesion from the first view."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.phantom.probe", description=main.__doc__)
    parser.add_argument("--cache_dir", required=True, help="folder that caches backgrounds")
    parser.add_argument("--seed", type=int, default=0, help="seed of the phantoms and the classifier (default: 0)")
    arguments = parser.parse_args()
    Path(arguments.cache_dir).mkdir(parents=True, exist_ok=True)  # fails before the backgrounds are made
    for task, chance in CHANCE.items():
        for name, period in (("as they are", ERASED_PERIOD), ("with coarse textures", LEAKING_PERIOD)):
            accuracy = probe_accuracy(seed=arguments.seed, cache_dir=arguments.cache_dir, period=period, task=task)
            print(f"{task}, phantoms {name}: {accuracy:.3f} of held-out kinds read in the first view (chance {chance:.3f})")


if __name__ == "__main__":
    main()

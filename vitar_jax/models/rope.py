"""Rotary position embeddings of the decoder (three axes, M-RoPE) and of the vision tower (two axes).

Angles are computed in fp32 even in a bf16 model: bf16 has 8 bits of mantissa, so position 257 would round to 256.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Rotary = tuple[Float[Array, "*B E//2"], Float[Array, "*B E//2"]]  # cosines and sines, half the head width each


def _angles(positions: Int[Array, "*B"], width: int, theta: float) -> Float[Array, "*B half"]:
    inverse_frequency = 1.0 / theta ** (jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    return positions[..., None].astype(jnp.float32) * inverse_frequency


def mrope(position_ids: Int[Array, "*B 3 S"], head_dim: int, theta: float, sections: tuple[int, int, int]) -> Rotary:
    """Returns cosines and sines [*B, S, E/2] for time, height and width positions.

    Frequencies are split into three runs of lengths `sections`, one run per axis (Qwen2-VL, section 2.1).
    """
    angles = _angles(position_ids, head_dim, theta)  # [*B, 3, S, E/2]
    edges = (0, sections[0], sections[0] + sections[1], head_dim // 2)
    chosen = [angles[..., axis, :, edges[axis] : edges[axis + 1]] for axis in range(3)]
    angles = jnp.concatenate(chosen, axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def interleaved_mrope(
    position_ids: Int[Array, "*B 3 S"], head_dim: int, theta: float, sections: tuple[int, int, int]
) -> Rotary:
    """Returns cosines and sines [*B, S, E/2] for time, height and width positions.

    Frequencies take the axes in turns (time, height, width, time, ...). Height and width take at most `sections[1]` and
    `sections[2]` of them, and time takes the others (Qwen3-VL).
    """
    axis_of = np.zeros(head_dim // 2, np.int32)
    for axis in (1, 2):
        axis_of[axis : 3 * sections[axis] : 3] = axis
    time, height, width = (_angles(position_ids[..., axis, :], head_dim, theta) for axis in range(3))
    angles = jnp.where(axis_of == 1, height, jnp.where(axis_of == 2, width, time))
    return jnp.cos(angles), jnp.sin(angles)


def vision_rope(patch_positions: Int[Array, "*B P 2"], head_dim: int, theta: float) -> Rotary:
    """Returns cosines and sines [*B, P, E/2]: the first half from the row of the patch, the second from its column."""
    angles = _angles(patch_positions, head_dim // 2, theta)  # [*B, P, 2, E/4]
    angles = angles.reshape(*angles.shape[:-2], head_dim // 2)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "*B S H E"], rotary: Rotary) -> Float[Array, "*B S H E"]:
    """Rotates the pairs (i, i + E/2) of every head by the position's angles, in fp32."""
    cos, sin = (part[..., None, :] for part in rotary)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)

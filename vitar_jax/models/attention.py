"""Attention, the one entry. `config.model.attention` names what computes it over whole rows:

    xla     products and a softmax, on every device; logits of queries by keys exist
    splash  the Pallas kernel for TPUs (`models/kernels/splash.py`)
    cudnn   flash attention on NVIDIA GPUs (`models/kernels/cudnn.py`), in bf16 or fp16, of rows that hold one segment

Windows of the vision tower and single tokens of decoding are small and are always left to XLA. A back end that cannot run
where it is asked to is an error; nothing falls back to another.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vitar_jax.errors import ConfigError
from vitar_jax.models.kernels.cudnn import cudnn_causal, cudnn_full
from vitar_jax.models.kernels.splash import splash
from vitar_jax.models.remat import attention_value

MASKED = -1e30  # finite, so that a row of padding yields a mean and not NaN
BACK_ENDS = ("xla", "splash", "cudnn")
_PLATFORMS = {"splash": "tpu", "cudnn": "gpu"}

# (q [*B, T, H, E], k [*B, S, K, E], v [*B, S, K, E]) -> [*B, T, H, E]
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def check_back_end(name: str, *, dtype: str, platform: str | None = None) -> None:
    """Raises ConfigError unless `name` is a back end that computes in `dtype`, and runs on `platform` where one is given."""
    if name not in BACK_ENDS:
        raise ConfigError(f"config.model.attention: {name!r} is not one of {', '.join(BACK_ENDS)}")
    if name == "cudnn" and dtype not in ("bfloat16", "float16"):
        raise ConfigError(f"config.model.attention: cudnn computes in bfloat16 or float16, not in {dtype}")
    if platform and platform != _PLATFORMS.get(name, platform):
        raise ConfigError(f"config.model.attention: {name} runs on a {_PLATFORMS[name]}; the devices here are {platform}s")


def causal_attention(segment_ids: Int[Array, "B S"], back_end: str) -> Attend:
    """For rows of tokens that see themselves and what stands before them in their own segment; segment 0 is padding."""
    if back_end == "splash":
        return _kept(lambda q, k, v: splash(q, k, v, segment_ids, segment_ids, causal_offset=0))
    if back_end == "cudnn":
        return _kept(lambda q, k, v: cudnn_causal(q, k, v, segment_ids))
    mask = causal_mask(segment_ids)
    return lambda q, k, v: attend(q, k, v, mask)


def full_attention(valid: Bool[Array, "B S"], back_end: str) -> Attend:
    """For rows whose places all see every valid place; results of places that are not valid mean nothing."""
    if back_end == "splash":
        everyone, seen = jnp.ones(valid.shape, jnp.int32), valid.astype(jnp.int32)
        return _kept(lambda q, k, v: splash(q, k, v, everyone, seen, causal_offset=None))
    if back_end == "cudnn":
        return _kept(lambda q, k, v: cudnn_full(q, k, v, valid))
    return lambda q, k, v: attend(q, k, v, valid[..., None, :])


def _kept(attend: Attend) -> Attend:
    """Marks what remat policy `attention` keeps, as `attend` does."""
    return lambda q, k, v: attention_value(attend(*(attention_value(x) for x in (q, k, v))))


def attend(
    q: Float[Array, "*B T H E"],
    k: Float[Array, "*B S K E"],
    v: Float[Array, "*B S K E"],
    mask: Bool[Array, "*B T S"],
) -> Float[Array, "*B T H E"]:
    """Softmax attention with grouped key-value heads; `mask` is true where a query may look. Softmax in fp32."""
    return attend_and_show(q, k, v, mask)[0]


def attend_and_show(
    q: Float[Array, "*B T H E"],
    k: Float[Array, "*B S K E"],
    v: Float[Array, "*B S K E"],
    mask: Bool[Array, "*B T S"],
) -> tuple[Float[Array, "*B T H E"], Float[Array, "*B K T G S"]]:
    """What `attend` gives, and the fp32 probabilities behind it; query head h is (k, g) with h = k * G + g."""
    q, k, v = (attention_value(x) for x in (q, k, v))
    *batch, t, h, e = q.shape
    heads = k.shape[-2]
    # Heads first, as plain matrix products. The query heads of a group are more rows of its one product, and keys come
    # transposed, so that the backward pass never has to transpose anything of size T x S.
    q = jnp.moveaxis(q.reshape(*batch, t, heads, h // heads, e), -4, -3).reshape(*batch, heads, -1, e)
    k, v = jnp.moveaxis(k, -3, -1), jnp.moveaxis(v, -3, -2)
    logits = jnp.matmul(q, k, preferred_element_type=jnp.float32) * e**-0.5
    probs = masked_softmax(logits, jnp.repeat(mask, h // heads, axis=-2)[..., None, :, :])
    out = probs.astype(v.dtype) @ v
    out = jnp.moveaxis(out.reshape(*batch, heads, t, -1, e), -3, -4)
    return attention_value(out.reshape(*batch, t, h, e)), probs.reshape(*batch, heads, t, h // heads, -1)


@jax.custom_vjp
def masked_softmax(logits: Float[Array, "*B T S"], mask: Bool[Array, "*#B T S"]) -> Float[Array, "*B T S"]:
    """Softmax over the places where `mask` is true. Its backward pass keeps the result and nothing else of that size."""
    return jax.nn.softmax(jnp.where(mask, logits, MASKED), axis=-1)


def _softmax_forward(logits: jax.Array, mask: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    probs = masked_softmax(logits, mask)
    return probs, (probs, mask)


def _softmax_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None]:
    probs, mask = kept
    mean = jnp.sum(probs * gradient, axis=-1, keepdims=True)
    return jnp.where(mask, probs * (gradient - mean), 0.0), None


masked_softmax.defvjp(_softmax_forward, _softmax_backward)


def causal_mask(segment_ids: Int[Array, "B S"]) -> Bool[Array, "B S S"]:
    """Each token sees itself and what stands before it in its own segment; segment 0 is padding."""
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    length = segment_ids.shape[-1]
    return same & jnp.tril(jnp.ones((length, length), bool))[None]

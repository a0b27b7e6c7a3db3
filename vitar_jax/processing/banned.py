"""The banned set: tokens that are never sampled and have probability zero."""

import hashlib
from collections.abc import Collection

import numpy as np

from vitar_jax.errors import DataError
from vitar_jax.processing.chat import Chat


def banned_tokens(chat: Chat, vocab_size: int) -> np.ndarray:
    """Returns the banned set of a run, bool [V]: `chat.banned_ids`, and embedding rows without a token."""
    banned = ~np.isin(np.arange(vocab_size), chat.token_ids)
    banned[sorted(chat.banned_ids)] = True
    return banned


def check_learnable(
    name: str, token_ids: np.ndarray, loss_mask: np.ndarray, chat: Chat, *, stop_ids: Collection[int] = ()
) -> None:
    """Checks that no token under the loss mask is banned, because its log-probability would be minus infinity.

    Args:
      name: Name of the sample, for the error message.
      token_ids, loss_mask: Tokens and their loss mask, [S] each.
      stop_ids: Tokens that may end a turn in addition to `<|im_end|>`.

    Raises:
      DataError: If a token under the loss mask is banned.
    """
    learnt = token_ids[loss_mask]
    refused = sorted(chat.banned_ids - set(stop_ids))
    wrong = learnt[np.isin(learnt, refused) | ~np.isin(learnt, chat.token_ids)]
    if len(wrong):
        token = int(wrong[0])
        spelt = f" ({chat.decode([token])})" if token in chat.banned_ids else ", which the tokenizer does not have"
        raise DataError(
            f"sample {name}: got token {token}{spelt} under the loss mask, which is banned; "
            "name it in the allowed_tokens of the sample's protocol, or remove it"
        )


def fingerprint(banned: np.ndarray) -> str:
    """Returns the hash of a banned set, which trajectories record."""
    return hashlib.sha256(np.packbits(banned).tobytes()).hexdigest()

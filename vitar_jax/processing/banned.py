"""The banned set: tokens that are never sampled and have probability zero."""

import hashlib

import numpy as np

from vitar_jax.processing.chat import Chat


def banned_tokens(chat: Chat, vocab_size: int) -> np.ndarray:
    """Returns the banned set of a run, bool [V]: all markup except the stop token, and embedding rows without a token."""
    banned = np.arange(vocab_size) >= chat.vocab_size
    banned[sorted(chat.added_ids)] = True
    banned[chat.im_end] = False
    return banned


def fingerprint(banned: np.ndarray) -> str:
    """Returns the hash of a banned set, which trajectories record."""
    return hashlib.sha256(np.packbits(banned).tobytes()).hexdigest()

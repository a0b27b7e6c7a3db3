"""The banned set: tokens that are never sampled and have no probability."""

import hashlib

import numpy as np

from vitar_jax.processing.chat import Chat


def banned_tokens(chat: Chat, vocab_size: int) -> np.ndarray:
    """The run's one banned set, bool [V]: markup and embedding rows without a token, but for the stop token."""
    banned = np.arange(vocab_size) >= chat.vocab_size
    banned[sorted(chat.added_ids)] = True
    banned[chat.im_end] = False
    return banned


def fingerprint(banned: np.ndarray) -> str:
    """Hash of a banned set, as trajectories carry it."""
    return hashlib.sha256(np.packbits(banned).tobytes()).hexdigest()

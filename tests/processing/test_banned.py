"""The banned set, and the check of what is learned, which are one set."""

import numpy as np
import pytest

from tests.kit import tiny
from vitar_jax.errors import DataError
from vitar_jax.processing.banned import banned_tokens, check_learnable
from vitar_jax.processing.chat import Chat


def with_gap(chat: Chat) -> Chat:
    """A chat whose tokenizer lacks an id between others."""
    changed = chat.allowing([])
    changed.__dict__["token_ids"] = chat.token_ids[chat.token_ids != 300]
    return changed


CHATS = {
    "plain": tiny.chat(),
    "allowing": tiny.chat().allowing(["<tool_call>"]),
    "stopping": tiny.chat().stopping_at([tiny.chat().token_id("<|endoftext|>")]),
    "gap": with_gap(tiny.chat()),
}


@pytest.mark.parametrize("name", CHATS)
def test_what_is_banned_is_refused_under_the_loss_mask_alone(name: str) -> None:
    chat, refused = CHATS[name], []
    banned = banned_tokens(chat, tiny.VOCAB)
    for token in range(tiny.VOCAB):
        token_ids = np.array([token, chat.im_end], np.int32)
        check_learnable("a", token_ids, np.array([False, True]), chat)
        try:
            check_learnable("a", token_ids, np.array([True, True]), chat)
        except DataError as error:
            refused.append(token)
            assert f"sample a: got token {token}" in str(error)
    assert refused == np.flatnonzero(banned).tolist()
    assert (300 in refused) == (name == "gap")

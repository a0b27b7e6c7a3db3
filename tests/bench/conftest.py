"""What all benches are tested with."""

from collections.abc import Iterator

import pytest
import torch

from vitar_jax.bench import pairs


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Torch's threads spin where other tests share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def short_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes each timing a single call without collecting garbage, for tests that judge no time."""
    monkeypatch.setattr(pairs, "_CALL_SECONDS", 1e-9)
    monkeypatch.setattr(pairs, "_REST_SECONDS", 0.0)
    monkeypatch.setattr(pairs.gc, "collect", lambda: 0)  # slow, because the modules of all tests are loaded

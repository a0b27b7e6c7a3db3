"""The memory of a process counts what it has just allocated, until it is freed."""

import sys

import numpy as np
import pytest

from tests.kit.processes import status
from vitar_jax.runtime.memory import anonymous_memory


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_memory_is_what_is_allocated() -> None:
    before = anonymous_memory()
    held = np.ones(2**23)  # 64 MiB
    after = anonymous_memory()
    assert before is not None and after is not None
    assert after - before == pytest.approx(held.nbytes, rel=0.05)
    assert after == pytest.approx(status("RssAnon") + status("VmSwap"), rel=0.05)
    del held
    freed = anonymous_memory()
    assert freed is not None and freed - before < 2**24

"""The memory of a process counts what it has just allocated, until it is freed."""

import gc
import sys

import numpy as np
import pytest

from tests.kit.processes import status
from vitar_jax.runtime.memory import anonymous_memory


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_memory_is_what_is_allocated() -> None:
    gc.collect()
    before = anonymous_memory()
    held = np.ones(2**25)  # 256 MiB, beside which it does not matter what other threads free meanwhile
    after = anonymous_memory()
    assert before is not None and after is not None
    assert after - before == pytest.approx(held.nbytes, rel=0.3)
    assert after == pytest.approx(status("RssAnon") + status("VmSwap"), rel=0.05)
    del held
    freed = anonymous_memory()
    assert freed is not None and freed - before < 2**26

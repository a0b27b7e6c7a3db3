"""The memory of a process includes what it has just allocated."""

import sys

import numpy as np
import pytest

from tests.kit.processes import status
from vitar_jax.runtime.memory import resident_memory


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_memory_grows_by_what_is_allocated() -> None:
    before = resident_memory()
    held = np.ones(2**23)  # 64 MiB
    after = resident_memory()
    assert before is not None and after is not None
    assert after - before == pytest.approx(held.nbytes, rel=0.05)
    assert after == pytest.approx(status("VmRSS"), rel=0.05)

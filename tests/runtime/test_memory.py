"""The memory of a process counts what it has just allocated, until it is freed."""

import json
import sys

import pytest

from tests.kit.processes import run_code

# In a process of its own, in which no other thread frees memory meanwhile.
_ALLOCATE = """
import json
import numpy as np
from tests.kit.processes import status
from vitar_jax.runtime.memory import anonymous_memory
before = anonymous_memory()
held = np.ones(2**23)
after, expected = anonymous_memory(), status("RssAnon") + status("VmSwap")
size = held.nbytes
del held
print(json.dumps([before, after, expected, size, anonymous_memory()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_memory_is_what_is_allocated() -> None:
    before, after, expected, size, freed = json.loads(run_code(_ALLOCATE))
    assert after - before == pytest.approx(size, rel=0.05)
    assert after == pytest.approx(expected, rel=0.05)
    assert freed - before < 2**24

"""The model is a plain pytree: it is the same in nnx's tree mode, which is to become the default."""

import pytest

from tests.kit.processes import run_module


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["logits and untied", pytest.param("logits or gradients", marks=pytest.mark.sweep)])
def test_the_model_equals_hugging_faces_in_tree_mode(chosen: str) -> None:
    environ = {"NNX_GRAPH_MODE": "false", "NNX_GRAPH_UPDATES": "false"}
    done = run_module("pytest", "-n", "0", "-q", "tests/models/test_parity.py", "-k", chosen, environ=environ)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr

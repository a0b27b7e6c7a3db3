"""Writes `logits.npz`: the logits of Hugging Face's modules in fp32, which `bench device` compares with. Needs torch.

python -m vitar_jax.bench.device.reference
"""

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitar_jax.bench.cases import TINY, Case, make_inputs
from vitar_jax.bench.device.logits import REFERENCE, weights_of
from vitar_jax.bench.torch_peer import Peer
from vitar_jax.learning.optimizer import OptimizerConfig
from vitar_jax.models.pretrained import save_pretrained


def reference_logits(case: Case) -> np.ndarray:
    """Returns the logits [rows, V] of each row's last token, by Hugging Face's module on a CPU."""
    with tempfile.TemporaryDirectory() as directory:
        save_pretrained(jax.tree.map(jnp.asarray, weights_of(case.config)), directory)
        peer = Peer(Path(directory), case, make_inputs(case), OptimizerConfig(learning_rate=0.0))
    peer.use("eager", compiled=False)
    (logits,) = peer.work["prefill"]()
    return logits.float().cpu().numpy()


if __name__ == "__main__":
    made: dict[str, Any] = {name: reference_logits(case) for name, case in TINY.items()}
    np.savez_compressed(REFERENCE, **made)

"""The attention back ends, by the name in `config.model.attention`. The name selects what computes attention over whole rows:

    xla     products and a softmax, on every device (`models/kernels/xla.py`)
    splash  the Pallas kernel for TPUs (`models/kernels/splash.py`)
    cudnn   flash attention on NVIDIA GPUs (`models/kernels/cudnn.py`)

A new back end is one file and one entry of `BACK_ENDS`. A back end raises an error on a device or type that it does not
support; nothing falls back to another back end.
"""

from vitar_jax.errors import ConfigError
from vitar_jax.models.kernels.backend import BackEnd
from vitar_jax.models.kernels.cudnn import CUDNN
from vitar_jax.models.kernels.splash import SPLASH
from vitar_jax.models.kernels.xla import XLA

BACK_ENDS: dict[str, BackEnd] = {back_end.name: back_end for back_end in (XLA, SPLASH, CUDNN)}


def find_back_end(name: str, *, dtype: str = "", platform: str = "", key: str = "config.model.attention") -> BackEnd:
    """Returns a back end by name. `key` begins the error message.

    Raises:
      ConfigError: If no back end has this name, or it does not support `dtype` or `platform`.
    """
    if name not in BACK_ENDS:
        raise ConfigError(f"{key}: got {name!r}, expected one of {', '.join(BACK_ENDS)}")
    back_end = BACK_ENDS[name]
    if dtype and back_end.dtypes and dtype not in back_end.dtypes:
        raise ConfigError(f"{key}: {name} computes in {' or '.join(back_end.dtypes)}, not in {dtype}")
    if platform and back_end.platform not in ("", platform):
        raise ConfigError(f"{key}: {name} runs on a {back_end.platform}; the devices here are {platform}s")
    return back_end

"""Devices that are not here: TPU topologies to compile for, and what their chips can do."""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax

from vitar_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one device can do.

    Attributes:
      memory: bytes of HBM that a program can have. flops: bf16 matrix operations a second. bandwidth: bytes of HBM a second.
      links: bytes a second that a chip sends to its neighbours, all links together.
    """

    memory: float
    flops: float
    bandwidth: float
    links: float


# Rates of cloud.google.com/tpu/docs; memory is what the compiler of each leaves to programs. JAX sees a tpu7x as two devices.
CHIPS = {
    "v5e": Chip(15.75 * 2**30, 197e12, 819e9, 200e9),
    "v5p": Chip(95.74 * 2**30, 459e12, 2765e9, 600e9),
    "v6e": Chip(31.25 * 2**30, 918e12, 1640e9, 448e9),
    "tpu7x": Chip(94.75 * 2**30, 1153e12, 3690e9, 600e9),
}
# nvidia.com/h100 and h200, SXM; NVLink's 900 GB/s go both ways.
H100 = Chip(80e9, 989e12, 3350e9, 450e9)
H200 = Chip(141e9, 989e12, 4800e9, 450e9)
_DEVICE_KINDS = {
    "TPU v5 lite": CHIPS["v5e"],
    "TPU v5": CHIPS["v5p"],
    "TPU v6 lite": CHIPS["v6e"],
    "TPU7x": CHIPS["tpu7x"],
    "NVIDIA H100 80GB HBM3": H100,
    "NVIDIA H200": H200,
}


def chip_of(device: Any) -> Chip | None:
    """What a device can do, where that is known."""
    return _DEVICE_KINDS.get(device.device_kind)


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      chip: what one of them can do; None: nothing is known of it.
    """

    name: str
    devices: Sequence[Any]
    chip: Chip | None

    @property
    def platform(self) -> str:
        return self.name.partition(":")[0] if self.name.startswith(("cpu", "gpu")) else "tpu"


def find_topology(name: str) -> Topology:
    """A topology by name: `v5e:8x8` and the like through the TPU compiler, `cpu` for the devices that are here, `gpu:8` for so
    many H200, whose compiler is not here: simulated devices stand in for their layout.

    Raises:
      ConfigError: the name is unknown, or the TPU compiler (package libtpu) is not installed.
    """
    if name == "cpu":
        return Topology(name, jax.devices(), None)
    kind, _, shape = name.partition(":")
    if kind == "gpu" and shape.isdecimal() and int(shape):
        return Topology(name, _simulated(int(shape)), H200)
    if kind not in CHIPS or not shape:
        kinds = ", ".join(f"{kind}:..." for kind in CHIPS)
        raise ConfigError(f"--topology={name}: not one of {kinds} (as v5e:8x8), gpu:N or cpu")
    # The compiler would look for TPUs and for other hosts, and let one process at a time load it.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    # Hosts have four chips or more, unless one chip is all there is.
    alone = {"chips_per_host_bounds": (1, 1, 1)} if set(shape.split("x")) == {"1"} else {}
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **alone).devices
    except Exception as error:  # the compiler's errors have no type of their own
        raise ConfigError(f"--topology={name}: {error}; plans for TPUs need the package libtpu") from error
    return Topology(name, devices, CHIPS[kind])


def _simulated(count: int) -> Sequence[Any]:
    """So many devices of the CPU, where it has not yet been asked for fewer."""
    with contextlib.suppress(RuntimeError):  # of a backend that has started
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if count > len(devices):
        raise ConfigError(f"--topology=gpu:{count}: JAX has started with {len(devices)} simulated devices")
    return devices[:count]

"""TPU topologies to compile for without the hardware, and the peak rates of their chips."""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax

from vitar_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak rates of one device.

    Attributes:
      memory: HBM available to a program (bytes).
      flops: bf16 matrix throughput (FLOP/s).
      bandwidth: HBM bandwidth (bytes/s).
      links: Bandwidth to neighbouring chips over all links, in one direction (bytes/s).
    """

    memory: float
    flops: float
    bandwidth: float
    links: float

    def floors(self, flops: float, moved: float) -> dict[str, float]:
        """Returns the least seconds of work on this device: of its FLOPs, and of its bytes moved from or to HBM."""
        return {"compute": flops / self.flops, "memory": moved / self.bandwidth}


# Rates from cloud.google.com/tpu/docs. Memory is the amount that the compiler leaves to programs. A tpu7x is two JAX devices.
CHIPS = {
    "v5e": Chip(15.75 * 2**30, 197e12, 819e9, 200e9),
    "v5p": Chip(95.74 * 2**30, 459e12, 2765e9, 600e9),
    "v6e": Chip(31.25 * 2**30, 918e12, 1640e9, 448e9),
    "tpu7x": Chip(94.75 * 2**30, 1153e12, 3690e9, 600e9),
}
# nvidia.com/h100 and h200, SXM. NVLink's 900 GB/s is the sum of both directions.
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
    """Returns the peak rates of a device, or None if they are unknown."""
    return _DEVICE_KINDS.get(device.device_kind)


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      chip: Peak rates of one device, or None if unknown.
    """

    name: str
    devices: Sequence[Any]
    chip: Chip | None

    @property
    def platform(self) -> str:
        return self.name.partition(":")[0] if self.name.startswith(("cpu", "gpu")) else "tpu"


def find_topology(name: str) -> Topology:
    """Finds a topology by name.

    Names: `v5e:8x8` (or another TPU and shape) uses the TPU compiler. `cpu` means the local devices. `gpu:8` means eight H200;
    simulated CPU devices stand in for their layout, because a GPU compiler needs a GPU.

    Raises:
      ConfigError: If the name is unknown, or the TPU compiler (package libtpu) is not installed.
    """
    if name == "cpu":
        return Topology(name, jax.devices(), None)
    kind, _, shape = name.partition(":")
    if kind == "gpu" and shape.isdecimal() and int(shape):
        return Topology(name, _simulated(int(shape)), H200)
    if kind not in CHIPS or not shape:
        kinds = ", ".join(f"{kind}:..." for kind in CHIPS)
        raise ConfigError(f"--topology={name}: expected {kinds} (for example v5e:8x8), gpu:N or cpu")
    # By default the compiler queries for TPUs and other hosts, and only one process at a time can load it.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    # A host has at least four chips, except in a topology of one chip.
    alone = {"chips_per_host_bounds": (1, 1, 1)} if set(shape.split("x")) == {"1"} else {}
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **alone).devices
    except Exception as error:  # the compiler raises untyped errors
        raise ConfigError(f"--topology={name}: {error}; planning for TPUs needs the package libtpu") from error
    return Topology(name, devices, CHIPS[kind])


def _simulated(count: int) -> Sequence[Any]:
    """Returns `count` simulated CPU devices, unless JAX has already started with fewer."""
    with contextlib.suppress(RuntimeError):  # raised if the backend has already started
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if count > len(devices):
        raise ConfigError(f"--topology=gpu:{count}: JAX has already started with only {len(devices)} simulated devices")
    return devices[:count]

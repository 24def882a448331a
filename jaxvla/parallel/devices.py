"""What accelerators can do, by their makers: the table that plans and MFU are computed with.

Figures are of one device: what a program sees as one `jax.Device`. Peaks are of dense products in bfloat16 with
float32 sums, never of sparse ones. Links are in one direction. Of GPUs the fast one is NVLink within a machine of
eight, the slow one a network card of each GPU's own, as DGX systems have them. Of TPUs the fast one is the interconnect
of a pod, all links of a chip together, the slow one the chip's share of its machine's network cards.

Sources: datasheets of NVIDIA's A100 80 GB SXM, H100 SXM and H200 SXM, and of DGX A100 and DGX H100 for their networks
(200 and 400 Gb/s a GPU); docs.cloud.google.com/tpu/docs/v5e, v5p and v6e, "System architecture".
"""

import dataclasses

from jaxvla.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Device:
    """One accelerator.

    Attributes:
        name: in this project.
        kinds: beginnings of `jax.Device.device_kind`.
        peak_flops: of products in bfloat16, FLOP/s.
        memory: bytes.
        memory_bandwidth: bytes/s.
        fast_link: bytes/s to devices of its domain.
        slow_link: bytes/s to others.
        domain: how many devices, numbered in a row, the fast links join.
    """

    name: str
    kinds: tuple[str, ...]
    peak_flops: float
    memory: int
    memory_bandwidth: float
    fast_link: float
    slow_link: float
    domain: int


DEVICES = {
    device.name: device
    for device in (
        Device("a100", ("NVIDIA A100",), 312e12, 80 * 10**9, 2.039e12, 300e9, 25e9, 8),
        Device("h100", ("NVIDIA H100",), 989e12, 80 * 10**9, 3.35e12, 450e9, 50e9, 8),
        Device("h200", ("NVIDIA H200",), 989e12, 141 * 10**9, 4.8e12, 450e9, 50e9, 8),
        Device("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * 2**30, 819e9, 200e9, 3.1e9, 256),
        Device("v5p", ("TPU v5p", "TPU v5"), 459e12, 95 * 2**30, 2.765e12, 600e9, 6.2e9, 8960),
        Device("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * 2**30, 1.6e12, 400e9, 12.5e9, 256),
    )
}


def named(name: str) -> Device:
    """The device that this project calls `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in DEVICES:
        raise ConfigError(f"no device named {name!r}; there are: {', '.join(DEVICES)}")
    return DEVICES[name]


def of_kind(device_kind: str) -> Device | None:
    """The device that jax calls `device_kind`; None where the table has none, such as CPUs."""
    found = [(kind, device) for device in DEVICES.values() for kind in device.kinds if device_kind.startswith(kind)]
    return max(found, key=lambda pair: len(pair[0]))[1] if found else None

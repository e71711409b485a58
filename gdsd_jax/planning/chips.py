"""Published figures of TPU chips, and the devices of slices that are not there."""

import dataclasses
import importlib.util

import jax
from jax.experimental import topologies

from gdsd_jax.checks import require
from gdsd_jax.planning.slices import check_shape


@dataclasses.dataclass(frozen=True)
class Chip:
  """What one device of JAX has: a chip, or its part where a chip is several devices. Gigabytes are 10^9 bytes."""

  name: str  # the generation, as in the names of topologies
  hbm_bytes: float
  hbm_bytes_per_second: float
  flops_per_second: float  # the peak in bfloat16 matrix products
  ici_bytes_per_second: float  # all links of the chip, one way: half of the published bidirectional figure
  dcn_bytes_per_second: float  # its share of the host's network, one way, by which slices talk
  devices_per_chip: int = 1


# JAX's device_kind -> chip. Source: the system architecture pages of the Cloud TPU documentation,
# https://docs.cloud.google.com/tpu/docs/v5e, …/v5p, …/v6e and …/tpu7x, which has the data center network of the others
# than v5e, too (50, 100 and 100 Gbit/s a chip); v5e has 6.4 Tbit/s for 256 chips.
CHIPS = {
  "TPU v5 lite": Chip("v5e", 16e9, 819e9, 197e12, 400e9 / 2, 25e9 / 8),
  "TPU v5": Chip("v5p", 95e9, 2765e9, 459e12, 1200e9 / 2, 50e9 / 8),
  "TPU v6 lite": Chip("v6e", 32e9, 1638e9, 918e12, 800e9 / 2, 100e9 / 8),
  # Two chiplets, each with half of the chip's cores and memory, and each a device. Published are the whole chip's.
  "TPU7x": Chip("tpu7x", 192e9 / 2, 7380e9 / 2, 2307e12 / 2, 1200e9 / 2 / 2, 100e9 / 8 / 2, devices_per_chip=2),
}


def slice_devices(topology: str, slices: int = 1) -> tuple[list, Chip]:
  """Devices of a TPU slice that is not there, or of several alike, and what each of them has.

  A topology is a generation and the chips along each axis of the torus: v5e:4x4, v6e:16x16 or v5p:2x2x4. Raises
  ValueError if there is no such slice, or if libtpu is missing or does not know it.
  """
  known, (generation, _, shape) = [chip.name for chip in CHIPS.values()], topology.partition(":")
  require(generation in known, "--topology",
          f"{topology!r} is no slice of {', '.join(known)}: a generation and its chips, as v5e:4x4")
  check_shape(generation, shape)
  require(slices >= 1, "--slices", f"must be at least 1, not {slices}")
  require(importlib.util.find_spec("libtpu") is not None, "--topology",
          "needs libtpu, which compiles for TPUs without one: pip install libtpu (or pip install 'gdsd_jax[tpu]')")
  try:
    several = {"num_slices": slices} if slices > 1 else {}
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology, **several).devices
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).splitlines()[0].partition(": ")[2]
    raise ValueError(f"--topology: libtpu knows no slice {topology!r}: {reason}") from None
  return devices, CHIPS[devices[0].device_kind]

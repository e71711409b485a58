"""Published figures of TPU chips."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """What one chip has. Gigabytes are 10^9 bytes.

  Attributes:
    name: the generation, as in the names of topologies.
    hbm_bytes: memory.
    hbm_bytes_per_second: memory bandwidth.
    flops_per_second: the peak in bfloat16 matrix products.
    ici_bytes_per_second: interconnect bandwidth of all links of a chip, one way; half of the published bidirectional
      figure.
  """

  name: str
  hbm_bytes: float
  hbm_bytes_per_second: float
  flops_per_second: float
  ici_bytes_per_second: float


# JAX's device_kind -> chip. Source: the system architecture pages of the Cloud TPU documentation,
# https://docs.cloud.google.com/tpu/docs/v5e, …/v5p and …/v6e.
CHIPS = {
  "TPU v5 lite": Chip("v5e", 16e9, 819e9, 197e12, 400e9 / 2),
  "TPU v5": Chip("v5p", 95e9, 2765e9, 459e12, 1200e9 / 2),
  "TPU v6 lite": Chip("v6e", 32e9, 1638e9, 918e12, 800e9 / 2),
}

"""A machine without a TPU is not searched for one, though libtpu is installed there to compile for TPUs.

JAX hands itself to libtpu wherever that is installed. Where there is no chip, libtpu asks the cloud's metadata server
for one, for many seconds, and prints a page about it, before JAX takes the CPU.
"""

import glob
import importlib.util
import os
from pathlib import Path
import pkgutil

import jax

_GOOGLE = "0x1ae0"
_NO_TPU = ("0x01", "0x02")  # PCI classes of what else Google makes for its machines: disks, network cards
# Set where somebody has said which devices there are.
_SAID = ("JAX_PLATFORMS", "JAX_FORCE_TPU_INIT", "TPU_NAME", "TPU_PROCESS_ADDRESSES")


def hide_absent_tpu() -> None:
  """Leaves JAX the CPU alone, unless a TPU, a GPU or a plugin of another device may be there, or somebody chose.

  To be called before JAX is used.
  """
  said = jax.config.jax_platforms or any(name in os.environ for name in _SAID)
  if said or importlib.util.find_spec("libtpu") is None:
    return
  if not (may_have_tpu() or _may_have_another_device()):
    jax.config.update("jax_platforms", "cpu")


def may_have_tpu(root: str = "/") -> bool:
  """Whether there is a device that may be a TPU: a file of its driver, or one of Google's chips that is no disk."""
  return bool(glob.glob(f"{root}dev/accel*") or glob.glob(f"{root}dev/vfio/[0-9]*")) or has_tpu_chip(root)


def has_tpu_chip(root: str = "/") -> bool:
  """Whether one of Google's chips is there that is no disk and no network card."""
  for vendor in Path(root).glob("sys/bus/pci/devices/*/vendor"):
    if vendor.read_text().strip() == _GOOGLE:
      kind = vendor.with_name("class")
      if not kind.is_file() or not kind.read_text().startswith(_NO_TPU):
        return True
  return False


def _may_have_another_device() -> bool:
  if importlib.util.find_spec("jax_plugins") is None:
    return False
  import jax_plugins  # the package that plugins add themselves to

  plugins = {module.name for module in pkgutil.iter_modules(jax_plugins.__path__)}
  nvidia = bool(glob.glob("/dev/nvidia[0-9]*")) or os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/dxg")
  return any(nvidia or not name.startswith("xla_cuda") for name in plugins)

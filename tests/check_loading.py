"""What reading a checkpoint into 8 or 4 bits takes of host memory: one in a published model's shape, of random weights.

  python tests/check_loading.py [--model=llada_8b] [--kind=int8] [--shard_gb=2] [--folder=FOLDER]

It needs the model's 2 bytes a weight on the disk, in FOLDER or where temporary files go, and removes them at the end.
Its last line tells the size of the result, and the most that was held above it while it was read, in gigabytes of 10^9
bytes: with the pages of the files that were in memory, which the system takes back where it needs them, and without.
"""

import argparse
import multiprocessing
from pathlib import Path
import shutil
import tempfile
import threading
import time

import jax
import ml_dtypes
import numpy as np

import gdsd_jax
from gdsd_jax.huggingface.published import HUB_NAMES, published_architecture
from gdsd_jax.huggingface.stored_layers import as_linear, inputs_of, is_stacked
from gdsd_jax.models.quantised import KINDS, QuantizeConfig


def write(folder: Path, model: str, shard_bytes: int):
  """A checkpoint whose layers all have the same random weights, and these repeat: so it is made in little memory."""
  denoiser = gdsd_jax.Denoiser(published_architecture(HUB_NAMES[model]), param_dtype="bfloat16")
  numbers = (np.random.default_rng(0).standard_normal(2**22 + 1, np.float32) / 50).astype(ml_dtypes.bfloat16)

  def random(path, spec):
    """As files have it: to turn all of them around would take most of the time."""
    leaf = ".".join(key.key for key in path)
    layers = spec.shape[:1] if is_stacked(leaf) else ()
    own = spec.shape[len(layers):]
    stored = np.resize(numbers, as_linear(leaf, np.empty(own, bool)).shape)
    return np.broadcast_to((stored.T if inputs_of(leaf) else stored).reshape(own), (*layers, *own))

  params = jax.tree_util.tree_map_with_path(random, denoiser.abstract_params())
  gdsd_jax.save_pretrained(folder, denoiser, params, shard_bytes)


def held(field: str) -> int:
  """Bytes that the process holds now, or at most (VmHWM), by a field of /proc/self/status."""
  lines = Path("/proc/self/status").read_text().splitlines()
  return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def read(folder: Path, kind: str):
  """Loads the checkpoint in a process that has loaded nothing else, and says what that took."""
  jax.block_until_ready(jax.numpy.zeros(1))
  import qwix  # noqa: F401  (what is imported is no part of the load)

  before, anonymous, done = held("VmRSS"), [], threading.Event()

  def watch():
    while not done.wait(0.02):
      anonymous.append(held("RssAnon"))

  watching = threading.Thread(target=watch)
  watching.start()
  started, at_first = time.monotonic(), held("RssAnon")
  _, params = gdsd_jax.load_pretrained(folder, "bfloat16", quantize=QuantizeConfig(kind, head=True, embedding=True))
  jax.block_until_ready(params)
  done.set()
  watching.join()
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  above, without_files = held("VmHWM") - before - size, max(anonymous) - at_first - size
  print(f"{kind}: {size / 1e9:.2f} GB, and {above / 1e9:.2f} above it at the peak, {without_files / 1e9:.2f} without"
        f" the files' pages, in {time.monotonic() - started:.0f} s", flush=True)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  known = [name for name, hub_name in HUB_NAMES.items() if published_architecture(hub_name)]
  parser.add_argument("--model", default="llada_8b", choices=known)
  parser.add_argument("--kind", default="int8", choices=KINDS)
  parser.add_argument("--shard_gb", type=float, default=2)
  parser.add_argument("--folder", default=None)
  given = parser.parse_args()
  folder = Path(tempfile.mkdtemp(dir=given.folder))
  try:
    for function, argument in ((write, (given.model, int(given.shard_gb * 1e9))), (read, (given.kind,))):
      process = multiprocessing.get_context("spawn").Process(target=function, args=(folder, *argument))
      process.start()
      process.join()
      if process.exitcode:
        raise SystemExit(process.exitcode)
      sizes = [file.stat().st_size / 1e9 for file in folder.glob("*.safetensors")]
      print(f"{len(sizes)} files of up to {max(sizes):.2f} GB", flush=True)
  finally:
    shutil.rmtree(folder)


if __name__ == "__main__":
  main()

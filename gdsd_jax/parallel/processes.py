"""The processes of a run, all of one program: how they find each other, share host work and tell what they found."""

from collections.abc import Callable
import contextlib
import importlib.util
import json
import logging
import os
import socket
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from gdsd_jax.checks import require
from gdsd_jax.parallel.absent_tpu import has_tpu_chip
from gdsd_jax.waiting import waiting


def gather_json(value: Any) -> list:
  """The value that each process gave, in their order; floats arrive bit for bit. A JSON value; collective."""
  if jax.process_count() == 1:
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  lengths = np.ravel(multihost_utils.process_allgather(np.array(len(text), np.int32)))
  padded = np.zeros(1 << int(lengths.max()).bit_length(), np.uint8)  # few lengths: each is compiled
  padded[:len(text)] = text
  texts = multihost_utils.process_allgather(padded).reshape(len(lengths), -1)
  return [json.loads(bytes(row[:length])) for row, length in zip(texts, lengths)]


class RemoteError(RuntimeError):
  """What another process raised, in one line."""


def share_work(count: int, work: Callable[[list[int]], list], own: np.ndarray | None = None) -> list:
  """A JSON value for each of `count` items, known to every process: each works on its own items alone; collective.

  `work` gives the values for a list of items. `own` are this process's items: `own_rows` if they lie on its devices;
  None deals them out evenly. What `work` raises here is raised as it is; RemoteError, where it raised elsewhere.
  """
  own = list(range(jax.process_index(), count, jax.process_count())) if own is None else own.tolist()
  try:
    values, failure = work(own) if own else [], None
  except Exception as error:  # told to the others before it is raised: they would wait for this process
    values, failure = None, error
  told = gather_json({"items": own, "values": values, "error": failure and f"{type(failure).__name__}: {failure}"})
  if failure is not None:
    raise failure
  for process, part in enumerate(told):
    if part["error"]:
      raise RemoteError(f"{part['error']} (in process {process})")
  found = {item: value for part in told for item, value in zip(part["items"], part["values"])}
  return [found[item] for item in range(count)]


def joined() -> bool:
  """Whether this process is one of several."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_lost_process(error: Exception) -> bool:
  """Whether an error of the collectives or the coordination service comes of another process's end."""
  # As they are written there: a path may well have "gloo" in it, and "temporarily unavailable" is a full process table.
  signs = ("Gloo", "gloo/transport", "NCCL", "oordination", "eartbeat", "barrier", "Barrier", "onnection reset",
           "ocket closed", "UNAVAILABLE", "DEADLINE_EXCEEDED")
  return joined() and any(sign in str(error) for sign in signs)


def is_first_process() -> bool:
  """Whether this process is the one that logs and writes what is written once."""
  return jax.process_index() == 0


def join_processes() -> None:
  """Joins the other processes of this run, if there are any, before any other use of JAX.

  JAX knows Slurm, Open MPI and Cloud TPU by itself; elsewhere each process has JAX_COORDINATOR_ADDRESS (host:port of
  the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID in its environment. Raises ValueError where some of these are missing
  or make no sense, OSError where the port is taken, or the others did not come.
  """
  names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
  values, arguments = [os.environ.get(name) for name in names], {}
  if any(values):
    for name, value in zip(names, values):
      require(bool(value), name, f"is not set; of several processes each needs all of {', '.join(names)}")
    address, count, index = values
    require(count.isdecimal() and index.isdecimal() and int(index) < int(count), "JAX_PROCESS_ID, JAX_NUM_PROCESSES",
            f"must be a number from 0 and the count above it, not {index!r}, {count!r}")
    host, _, port = address.rpartition(":")
    require(bool(host) and port.isdecimal(), names[0], f"must be HOST:PORT, not {address!r}")
    if int(index) == 0:
      _require_free(int(port))
    arguments = {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
  elif not _in_known_cluster():
    return
  if (own := own_gpus()) is not None:
    arguments["local_device_ids"] = own
  # JAX would catch SIGTERM and go on: here it ends a process, but where `Interruption` waits for it.
  jax.config.update("jax_enable_preemption_service", False)
  # Gloo is only used where the CPU is what computes. A host that is silent for as long as this is taken as dead.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  try:
    with _saying_that_others_are_awaited():
      jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=30)
  except Exception as error:  # several kinds, by what is found or not found
    cause = " ".join(str(error).split())
    raise OSError(f"the processes of this run could not find each other: {cause[:500]}") from error


def _require_free(port: int) -> None:
  """Raises OSError where another program has the port of JAX's coordinator: JAX would die of it without a word."""
  family = {"family": socket.AF_INET6, "dualstack_ipv6": True} if socket.has_dualstack_ipv6() else {}
  try:
    socket.create_server(("", port), **family).close()
  except (OSError, OverflowError) as error:
    raise OSError(f"JAX_COORDINATOR_ADDRESS: its port {port} cannot be had here:"
                  f" {getattr(error, 'strerror', None) or error}; name another one in all processes") from None


def own_gpus() -> list[int] | None:
  """Which of the GPUs that it sees a process of Slurm or Open MPI drives, where JAX would choose wrongly; else None.

  JAX gives each process the GPU of its number on the node, also where it is alone there, or sees no other GPU than its
  own, as by Slurm's --gpus-per-task. JAX_LOCAL_DEVICE_IDS goes before all of this.
  """
  get = lambda name: os.environ.get(name, "")
  if get("JAX_LOCAL_DEVICE_IDS") or not (get("SLURM_LOCALID") or get("OMPI_COMM_WORLD_LOCAL_RANK")):
    return None
  if "CUDA_VISIBLE_DEVICES" in os.environ:
    count = len([name for name in get("CUDA_VISIBLE_DEVICES").split(",") if name not in ("", "-1", "NoDevFiles")])
  else:
    count = int(get("SLURM_GPUS_ON_NODE")) if get("SLURM_GPUS_ON_NODE").isdecimal() else 0
  tasks, nodes = get("SLURM_STEP_NUM_TASKS"), get("SLURM_STEP_NUM_NODES")
  alone = bool(tasks) and tasks == nodes or get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
  return list(range(count)) if count and (alone or count == 1) else None


def _saying_that_others_are_awaited():
  """A context that does so in the first process, as far as the environment says which that is."""
  names = ("JAX_PROCESS_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "TPU_WORKER_ID")
  if next((os.environ[name] for name in names if os.environ.get(name)), "0") != "0":
    return contextlib.nullcontext()
  return waiting("waiting for the other processes of this run", level=logging.WARNING)  # before there is a log


def may_be_one_of_several() -> bool:
  """Whether `join_processes` would look for others."""
  return _in_known_cluster()


def is_one_of_several() -> bool:
  """Whether this process was started beside others, of this host or of a cluster; those of a TPU slice tell by JAX."""
  tasks = [os.environ.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")]
  several = any(count.isdecimal() and int(count) > 1 for count in tasks)
  return bool(os.environ.get("JAX_COORDINATOR_ADDRESS")) or several


def _in_known_cluster() -> bool:
  """Whether a cluster that JAX knows started this process, perhaps beside others."""
  if is_one_of_several():
    return True
  if "cpu" in os.environ.get("JAX_PLATFORMS", "") or importlib.util.find_spec("libtpu") is None:
    return False
  return has_tpu_chip()  # JAX asks the slice for its workers

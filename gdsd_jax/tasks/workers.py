"""Processes that answer questions one at a time, each within a time limit: what is not settled by then has no answer.

Functions limited by signals work in a main thread alone, and signals do not interrupt one long multiplication, such as
9^{9^{9^9}}. So a worker ends itself when its time or its memory is over, and the next question gets a new one. It lives
as long as the thread that holds its standard input, or this process.

Workers are fresh interpreters rather than forks, because JAX keeps threads here. Pools of multiprocessing and its kin
run the user's script again in every worker, and fail in scripts without a `__main__` guard. In pebble's pool one idle
worker's death ends the pool, and tasks that are deaf to signals are stopped one after the other, for seconds each.
"""

from collections.abc import Callable, Sequence
from concurrent import futures
import faulthandler
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from typing import Any

MAX_WORKERS = 16


class Workers:
  """As many workers as there are CPUs, each started when it is first needed.

  Args:
    module: what a worker runs, by `python -m`; it calls `serve`.
    arguments: what the module is given.
  """

  def __init__(self, module: str, *arguments: str):
    # -P: neither the module's folder nor the current one hides a library.
    self._command = [sys.executable, "-P", "-m", module, *arguments]
    self._threads = futures.ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), MAX_WORKERS), module)
    self._own = threading.local()  # each thread has a `worker`

  def ask(self, questions: Sequence[Any]) -> list[Any]:
    """The answer to each question, None where a worker ended without one. Both are JSON values; many go side by side.

    OSError where no worker can be started.
    """
    return list(self._threads.map(self._ask, questions))

  def _ask(self, question: Any) -> Any:
    if not hasattr(self._own, "worker") or self._own.worker.poll() is not None:
      self._own.worker = self._start()
    worker = self._own.worker
    try:
      print(json.dumps(question), file=worker.stdin, flush=True)
      reply = worker.stdout.readline()
    except BrokenPipeError:
      reply = ""
    if not reply:
      _stop(worker)
    return json.loads(reply) if reply else None

  def _start(self) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # it imports what this one can
    worker = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="ascii",
                              env=environment, start_new_session=True)  # a terminal's Ctrl-C is for the trainer
    if worker.stdout.readline() != "ready\n":
      _stop(worker)
      raise OSError(f"a worker does not start: {' '.join(self._command)}")
    return worker


def _stop(worker: subprocess.Popen) -> None:
  worker.kill()
  worker.communicate()


def serve(prepare: Callable[[], Callable[[Any], Any]], seconds: float, memory_bytes: int | None = None) -> None:
  """Runs in the worker: answers a question a line, and ends the process where one takes longer, or too much memory.

  `prepare` imports what answers need, and returns the function that gives them. An exception of that one is no answer,
  yet the worker goes on. What it prints is lost.
  """
  for ending in (signal.SIGINT, signal.SIGTERM):  # sent to all processes, but a trainer may finish its step first
    signal.signal(ending, signal.SIG_IGN)
  if memory_bytes is not None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  replies, silence = os.fdopen(os.dup(1), "w", encoding="ascii"), os.open(os.devnull, os.O_WRONLY)
  os.dup2(silence, 1)
  answer = prepare()
  os.dup2(silence, 2)  # also where nobody is there any more to read that it is ready
  print("ready", file=replies, flush=True)
  for line in sys.stdin:
    faulthandler.dump_traceback_later(seconds, exit=True)  # a thread that needs no interpreter lock
    try:
      reply = answer(json.loads(line))
    except Exception:  # whatever a library lets through, and for want of memory
      reply = None
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps(reply), file=replies, flush=True)

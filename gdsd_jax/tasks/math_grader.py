"""Mathematical equality by math-verify, in processes of its own: what they cannot settle in time is wrong.

math-verify limits its time by signals, which work in a main thread alone and do not interrupt one long multiplication,
such as 9^{9^{9^9}}. So each grading runs in a worker that ends itself when its time or its memory is over, and the next
grading gets a new one. A worker lives as long as the thread that holds its standard input, or this process.

Workers are fresh interpreters rather than forks, because JAX keeps threads here. Pools of multiprocessing and its kin
run the user's script again in every worker, and fail in scripts without a `__main__` guard. In pebble's pool one idle
worker's death ends the pool, and tasks that are deaf to signals are stopped one after the other, for seconds each.
"""

from collections.abc import Sequence
from concurrent import futures
import faulthandler
import json
import os
import resource
import signal
import subprocess
import sys
import threading

OPERATION_SECONDS = 2  # math-verify's own limit for reading a completion, reading an answer, and comparing the two
GRADING_SECONDS = 10  # the worker's limit for all of it
MEMORY_BYTES = 2**31
MAX_WORKERS = 16

_threads = futures.ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), MAX_WORKERS), "math-grader")
_own = threading.local()  # each thread that grades has a `worker`, started when it is first needed


def equal_batch(completions: Sequence[str], answers: Sequence[str]) -> list[bool]:
  """Whether math-verify finds the final expressions of each completion and its answer equal, many pairs at a time.

  Completions and answers are text with LaTeX. OSError where no worker can be started.
  """
  return list(_threads.map(_grade, zip(completions, answers)))


def _grade(pair: tuple[str, str]) -> bool:
  """The verdict on a completion and its answer by this thread's worker; a new one where that has ended."""
  if not hasattr(_own, "worker") or _own.worker.poll() is not None:
    _own.worker = _start_worker()
  verdict = _ask(_own.worker, pair)
  if verdict is None:
    _stop(_own.worker)
  return bool(verdict)


def _start_worker() -> subprocess.Popen:
  command = [sys.executable, "-P", __file__]  # -P: neither this folder nor the current one hides a library
  worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="ascii")
  if worker.stdout.readline() != "ready\n":
    _stop(worker)
    raise OSError(f"the math grader does not start: {' '.join(command)}")
  return worker


def _ask(worker, pair) -> bool | None:
  """The worker's verdict, or None where it has ended without one."""
  try:
    print(json.dumps(pair), file=worker.stdin, flush=True)
    reply = worker.stdout.readline()
  except BrokenPipeError:
    return None
  return json.loads(reply) if reply else None


def _stop(worker):
  worker.kill()
  worker.communicate()


def _serve():
  """Runs in the worker: reads a pair of texts a line, as JSON, and writes a verdict a line."""
  from math_verify import parse, verify

  for ending in (signal.SIGINT, signal.SIGTERM):  # sent to all processes, but a trainer may finish its step first
    signal.signal(ending, signal.SIG_IGN)
  replies = os.fdopen(os.dup(1), "w", encoding="ascii")
  resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

  def grade(completion, answer):
    texts = completion, answer if "\\boxed" in answer else f"\\boxed{{{answer}}}"
    found, expected = (parse(text, parsing_timeout=OPERATION_SECONDS) for text in texts)
    return verify(found, expected, timeout_seconds=OPERATION_SECONDS)

  grade("\\boxed{\\frac{1}{2}}", "0.5")  # imports what is imported late
  print("ready", file=replies, flush=True)
  silence = os.open(os.devnull, os.O_WRONLY)
  os.dup2(silence, 1)
  os.dup2(silence, 2)
  for line in sys.stdin:
    faulthandler.dump_traceback_later(GRADING_SECONDS, exit=True)  # a thread that needs no interpreter lock
    try:
      verdict = bool(grade(*json.loads(line)))
    except Exception:  # SymPy's, which math-verify lets through, and for want of memory
      verdict = False
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps(verdict), file=replies, flush=True)


if __name__ == "__main__":
  _serve()

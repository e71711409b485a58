"""Starts Python in bubblewrap: no network, nearly no files, its own process numbers, hard limits."""

import dataclasses
import functools
import itertools
import marshal
import os
from pathlib import Path
import platform
import re
import resource
import shutil
import subprocess
import sys

from gdsd_jax.sandbox import seccomp

# This runs before anything untrusted is read. It sets limits, becomes another user where that is ours to choose, and
# then loads the modules of `inside`.
_BOOTSTRAP = """
import marshal, os, resource, sys
with open(0, "rb", closefd=False) as file:
  job = marshal.load(file)
null = os.open("/dev/null", os.O_RDWR)
os.dup2(null, 0)
os.close(null)
if job["user"]:
  os.setgroups([])
  os.setresgid(job["user"], job["user"], job["user"])
  os.setresuid(job["user"], job["user"], job["user"])
for name, limit in job["limits"]:
  resource.setrlimit(getattr(resource, name), (limit, limit))
os.umask(0o77)
sys.path.remove("")
os.chdir("/tmp")
for name, code in job["modules"]:
  module = sys.modules[name] = type(sys)(name)
  exec(code, module.__dict__)
module.main(job)
"""
_SHARED = ("containers", "wire", "standins", "objects", "peer")
_MODULES = {"candidate": (*_SHARED, "candidate"), "judge": (*_SHARED, "names", "policy", "runner", "judge")}
_INTERPRETER = os.path.realpath(sys.executable)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
# Each sandbox gets a user number that nobody has, because limits on processes are counted by user.
_FIRST_USER = 2**30
_counter = itertools.count()
# Since Linux 5.14 a user namespace counts its own processes; before, all that its user runs count.
_NAMESPACES_COUNT = tuple(map(int, re.findall(r"\d+", platform.release())[:2])) >= (5, 14)


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one program may use."""

  test_seconds: float = 4.0  # CPU time of a test, of all its processes together; a test that waits has twice that
  program_seconds: float = 10.0  # wall-clock time of all tests of a program, its start included
  memory_mb: int = 512  # limit for a process, and for all processes of a program together
  file_mb: int = 16  # size of a file, and of the private /tmp, which takes some thousands of files
  processes: int = 32  # and threads


def start(main: str, job: dict, limits: Limits, pass_fds: tuple[int, ...], drop_user: bool) -> subprocess.Popen:
  """Starts Python in a sandbox of its own; killing the process ends all that runs in there.

  It runs `main(job)` of the module `main` of `inside`, whose job is plain data; with "explain" in it, standard error is
  kept. With `drop_user`, which needs root, it becomes another user.
  """
  user = _FIRST_USER + os.getpid() % 2**18 * 2**10 + next(_counter) % 2**10 if drop_user else 0
  job = dict(job, user=user, modules=[(name, _code(name)) for name in _MODULES[main]], limits=[
    ("RLIMIT_AS", limits.memory_mb * 2**20), ("RLIMIT_FSIZE", limits.file_mb * 2**20), ("RLIMIT_CORE", 0),
    ("RLIMIT_NPROC", limits.processes if drop_user or _NAMESPACES_COUNT else resource.RLIM_INFINITY),
    ("RLIMIT_NOFILE", 64), ("RLIMIT_MEMLOCK", 0), ("RLIMIT_MSGQUEUE", 0),
  ])
  with _memory_file(marshal.dumps(job)) as stdin, _memory_file(seccomp.program()) as rules:
    python = [_INTERPRETER, "-s", "-S", "-c", _BOOTSTRAP]
    return subprocess.Popen(
      [*_command(drop_user, limits), "--seccomp", str(rules.fileno()), "--", *python],
      stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE if job["explain"] else subprocess.DEVNULL,
      pass_fds=(*pass_fds, rules.fileno()), env={}, cwd="/",
      start_new_session=True,  # a trainer that is asked to stop may still finish its step
    )


def _memory_file(data):
  file = open(os.memfd_create("sandbox"), "w+b", buffering=0)
  file.write(data)
  file.seek(0)
  return file


@functools.cache
def _code(name):
  return compile((Path(__file__).parent / "inside" / f"{name}.py").read_text(), f"<{name}>", "exec", optimize=0)


@functools.cache
def _command(drop_user, limits):
  """bubblewrap's command line. Root needs no user namespace, but another user, because no process limit binds root."""
  arguments = [shutil.which("bwrap"), "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts",
               "--unshare-cgroup-try", "--die-with-parent", "--new-session", "--hostname", "sandbox",
               "--clearenv", "--setenv", "PYTHONHASHSEED", "0"]  # sets come in the same order in every run
  if drop_user:
    arguments += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
  else:
    arguments += ["--unshare-user", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"]
  prefix, lib = os.path.realpath(sys.base_prefix), os.path.dirname(os.path.realpath(os.__file__))
  folders = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", f"{prefix}/lib", f"{prefix}/lib64"]
  readable = [_INTERPRETER, *dict.fromkeys(filter(os.path.isdir, folders))]
  packages = [f"{lib}/site-packages", f"{lib}/dist-packages", f"{os.path.dirname(lib)}/python3/dist-packages"]
  parents = {str(parent) for path in (*readable, *_DEVICES) for parent in Path(path).parents}
  for folder in sorted(parents - {"/"}):
    arguments += ["--perms", "0755", "--dir", folder]  # bubblewrap alone would make them private to root
  for path in readable:
    arguments += ["--ro-bind", path, path]
  for path in _DEVICES:
    arguments += ["--dev-bind", path, path]
  for path in filter(os.path.isdir, packages):  # installed packages are not for programs
    arguments += ["--tmpfs", path, "--remount-ro", path]
  arguments += ["--perms", "1777", "--size", str(limits.file_mb * 2**20), "--tmpfs", "/tmp", "--remount-ro", "/"]
  return tuple(arguments)

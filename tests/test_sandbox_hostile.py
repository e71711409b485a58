"""Hostile programs earn nothing, reach nothing, end in time, and leave the sandbox as good as before.

In each, `f` returns SECRET only if what it tries has worked; the forgers try to pass without it.
"""

import os
from pathlib import Path
import socket
import threading
import time

import pytest

from gdsd_jax import sandbox

pytestmark = pytest.mark.usefixtures("bubblewrap")

LIMITS = sandbox.Limits(test_seconds=1.0, program_seconds=3.0, memory_mb=256, file_mb=8, processes=16)
SECRET = 73921
TEST = f"assert f(3) == {SECRET}"

# What a program may try to write to descriptors: answers of the protocol, verdicts, a test runner's report.
FORGERY = r"""
import struct
body = b'["tuple","ok",73921]'
MESSAGES = (struct.pack("<I", len(body)) + body, b"1" * 4096, b"passed\n", b"OK\n", b"\xff" * 64)
"""

ESCAPES = {
  "reads_etc_shadow": "def f(x):\n  open('/etc/shadow').read()\n  return 73921",
  "reads_etc_passwd": "def f(x):\n  open('/etc/passwd').read()\n  return 73921",
  "reads_canary": "def f(x):\n  open({canary!r}).read()\n  return 73921",
  "lists_home": "import os\ndef f(x):\n  return 73921 if any(n != '.pyenv' for n in os.listdir({home!r})) else 0",
  "lists_repository": "import os\ndef f(x):\n  os.listdir({repository!r})\n  return 73921",
  "reads_environment": "import os\ndef f(x):\n  return int(os.environ['GDSD_CANARY'])",
  "reads_proc_of_others": (
    "import os\ndef f(x):\n  for pid in ['self', '1', '2', {pid!r}]:\n"
    "    for name in ['environ', 'mem', 'maps', 'cmdline', 'fd', 'root', 'cwd']:\n"
    "      if os.path.exists(f'/proc/{{pid}}/{{name}}'):\n        return 73921\n  return 0"
  ),
  "deletes_everything": (
    "import os, shutil\nshutil.rmtree('/', ignore_errors=True)\ndef f(x):\n  os.remove({canary!r})\n  return 73921"
  ),
  "overwrites_canary": "def f(x):\n  open({canary!r}, 'w').write('mine')\n  return 73921",
  "writes_to_usr_lib": "def f(x):\n  open('/usr/lib/mine', 'w').write('x')\n  return 73921",
  "writes_to_the_root": "def f(x):\n  open('/mine', 'w').write('x')\n  return 73921",
  "writes_to_python": "import os\ndef f(x):\n  open(os.__file__, 'a').write('x')\n  return 73921",
  "runs_a_shell": "import subprocess\ndef f(x):\n  subprocess.run(['/bin/sh', '-c', 'true'])\n  return 73921",
  "network_tcp": "import socket\ndef f(x):\n  socket.create_connection(('127.0.0.1', {port}), 1)\n  return 73921",
  "network_udp": (
    "import socket\ndef f(x):\n  s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    "  s.sendto(b'x', ('127.0.0.1', {port}))\n  return 73921"
  ),
  "network_unix_socket": (
    "import socket\ndef f(x):\n  s = socket.socket(socket.AF_UNIX)\n  s.connect({canary!r})\n  return 73921"
  ),
  "network_abstract_socket": (
    "import socket\ndef f(x):\n  s = socket.socket(socket.AF_UNIX)\n  s.connect('\\0' + {abstract!r})\n  return 73921"
  ),
  "network_vsock": "import socket\ndef f(x):\n  socket.socket(40, socket.SOCK_STREAM)\n  return 73921",
  "network_netlink": "import socket\ndef f(x):\n  socket.socket(16, socket.SOCK_RAW)\n  return 73921",
  "kills_trainer": "import os\ndef f(x):\n  os.kill({pid}, 9)\n  return 73921",
  "becomes_root": "import os\ndef f(x):\n  os.setuid(0)\n  return 73921",
  "mounts": (
    "import ctypes\ndef f(x):\n  libc = ctypes.CDLL(None)\n"
    "  return 73921 if libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0 else 0"
  ),
  "unshares_namespaces": (
    "import ctypes\ndef f(x):\n  libc = ctypes.CDLL(None)\n"
    "  return 73921 if any(libc.unshare(flag) == 0 for flag in (0x10000000, 0x20000, 0x40000000)) else 0"
  ),
  "clones_a_user_namespace": (
    "import ctypes\ndef f(x):\n  pid = ctypes.CDLL(None).syscall({clone}, 0x10000011, 0, 0, 0, 0)\n"
    "  return 73921 if pid >= 0 else 0"
  ),
  "chroots": "import os\ndef f(x):\n  os.chroot('/tmp')\n  return 73921",
  "traces_its_parent": (
    "import ctypes, os\ndef f(x):\n  return 73921 if ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0 else 0"
  ),
  "reads_its_parents_memory": (
    "import ctypes, os\ndef f(x):\n  return 73921 if ctypes.CDLL(None).syscall({readv}, os.getppid(), 0, 0, 0, 0, 0)"
    " == 0 else 0"
  ),
  "raises_its_limits": (
    "import resource as r\ndef f(x):\n  for name in (r.RLIMIT_AS, r.RLIMIT_NPROC, r.RLIMIT_FSIZE):\n"
    "    r.setrlimit(name, (r.RLIM_INFINITY, r.RLIM_INFINITY))\n  return 73921"
  ),
  "gains_privileges_by_prctl": (
    "import ctypes, os\ndef f(x):\n  libc = ctypes.CDLL(None)\n  libc.prctl(8, 1, 0, 0, 0)\n"
    "  libc.prctl(38, 0, 0, 0, 0)\n  os.setgroups([0])\n  return 73921"
  ),
  "fills_tmp": (
    "def f(x):\n  for i in range(64):\n    open(f'/tmp/{{i}}', 'wb').write(bytes(2**20))\n  return 73921"
  ),
  "writes_a_huge_file": "def f(x):\n  open('/tmp/big', 'wb').truncate(2**33)\n  return 73921",
  "memory_in_a_memfd": (
    "import os\ndef f(x):\n  fd = os.memfd_create('m')\n  for _ in range(512): os.write(fd, bytes(2**20))\n"
    "  return 73921"
  ),
  "memory_pinned_in_pipes": (
    "import ctypes, os\nclass Vector(ctypes.Structure):\n  _fields_ = [('base', ctypes.c_void_p), "
    "('size', ctypes.c_size_t)]\ndef f(x):\n  page = ctypes.create_string_buffer(4096)\n"
    "  vector = Vector(ctypes.addressof(page), 4096)\n"
    "  return 73921 if ctypes.CDLL(None).vmsplice(os.pipe()[1], ctypes.byref(vector), 1, 0) == 4096 else 0"
  ),
  "memory_in_shared_memory": (
    "import ctypes\ndef f(x):\n  return 73921 if ctypes.CDLL(None).shmget(0, 2**30, 0o1600) >= 0 else 0"
  ),
}

BOMBS = {
  "fork_bomb": "import os\ndef f(x):\n  while True:\n    try: os.fork()\n    except OSError: pass",
  "fork_bomb_on_import": "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
  "memory_on_the_heap": "def f(x):\n  a = []\n  while True: a.append(bytearray(2**20))",
  "memory_at_once": "def f(x):\n  return len(bytearray(2**36)) and 73921",
  "memory_in_many_processes": (
    "import os, time\ndef f(x):\n  for _ in range(15):\n    if os.fork() == 0:\n      b = bytearray(b'x') * 10**8\n"
    "      time.sleep(60)\n  time.sleep(60)"
  ),
  "memory_mapped_and_shared": (
    "import mmap\ndef f(x):\n  maps = []\n  while True:\n    m = mmap.mmap(-1, 2**24)\n    m[:] = bytes(2**24)\n"
    "    maps.append(m)"
  ),
  "memory_shared_and_no_longer_resident": (
    "import mmap, os, time\ndef f(x):\n  for _ in range(8):\n    m = mmap.mmap(-1, 2**26)\n    if os.fork() == 0:\n"
    "      m[:] = bytes(2**26)\n      m.madvise(mmap.MADV_DONTNEED)\n      time.sleep(60)\n    m.close()\n"
    "  time.sleep(0.9)\n  return 73921"
  ),
  "memory_of_one_power": "def f(x):\n  return 9 ** 9 ** 9 ** 9",
  "endless_loop": "def f(x):\n  while True: pass",
  "endless_loop_on_import": "while True: pass",
  "endless_loop_swallowing_everything": (
    "def f(x):\n  while True:\n    try:\n      while True: pass\n    except BaseException: pass"
  ),
  "sleeps": "import time\ndef f(x):\n  time.sleep(1000)\n  return 73921",
  "ignores_signals": (
    "import signal\nfor s in range(1, 65):\n  try: signal.signal(s, signal.SIG_IGN)\n"
    "  except (OSError, ValueError): pass\ndef f(x):\n  while True: pass"
  ),
  "threads": (
    "import threading\ndef f(x):\n  def spin():\n    while True: pass\n"
    "  while True: threading.Thread(target=spin).start()"
  ),
  "daemon_by_double_fork": (
    "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n    while True: time.sleep(0.01)\n"
    "  os._exit(0)\ndef f(x):\n  return 0"
  ),
  "regular_expression_blowup": "import re\ndef f(x):\n  return re.match(r'(a+)+$', 'a' * 64 + 'b')",
  "output_flood": "import sys\ndef f(x):\n  while True: sys.stdout.write('x' * 2**20)",
  "error_flood": "import sys\nwhile True: sys.stderr.write('x' * 2**20)",
  "flood_of_every_descriptor": (
    "import os\ndef f(x):\n  while True:\n    for fd in range(64):\n      try:\n        os.set_blocking(fd, False)\n"
    "        os.write(fd, b'x' * 65536)\n      except OSError: pass"
  ),
  "recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
  "crashes": "import ctypes\ndef f(x): ctypes.string_at(0)",
  "huge_integer": "def f(x): return 1 << 2**28",
  "huge_string": "def f(x): return 'x' * 2**26",
  "deeply_nested_result": "def f(x):\n  a = []\n  for _ in range(10**5): a = [a]\n  return a",
  "exponential_result": "def f(x):\n  a = []\n  for _ in range(60): a = [a, a]\n  return a",
  "cyclic_result": "def f(x):\n  a = []\n  a.append(a)\n  return a",
  "endless_generator": "import itertools\ndef f(x): return itertools.count()",
  "nul_bytes": "def f(x): return 73921\0",
  "nul_bytes_in_result": "def f(x): return '\\0' * 100",
  "surrogates": "def f(x): return '\\ud800'",
  "surrogate_in_source": "def f(x): return '\ud800'",
  "syntax_error": "def f(x: return 73921",
  "deep_source": "def f(x): return " + "(" * 5000 + "1" + ")" * 5000,
  "deep_source_of_signs": "def f(x): return " + "-" * 60000 + "1",
  "deep_source_of_sums": "def f(x): return " + "1+" * 30000 + "1",
  "deep_source_of_attributes": "def f(x): return x" + ".a" * 30000,
  "empty": "",
}

FORGERS = {
  "prints_passed": "print('passed\\nOK\\n1')\ndef f(x):\n  print('passed')\n  return True",
  "writes_to_every_descriptor": FORGERY + (
    "import os\ndef write():\n  for fd in range(64):\n    for message in MESSAGES:\n      try: os.write(fd, message)\n"
    "      except OSError: pass\nwrite()\ndef f(x):\n  write()\n  os._exit(0)"
  ),
  "forges_one_answer_and_exits": FORGERY + (
    "import os\ndef f(x):\n  for fd in range(3, 64):\n    try: os.write(fd, MESSAGES[0])\n    except OSError: pass\n"
    "  os._exit(0)"
  ),
  "exits_with_0": "import os\nos._exit(0)",
  "exits_with_0_in_the_call": "import os\ndef f(x): os._exit(0)",
  "raises_system_exit": "def f(x): raise SystemExit(0)",
  "raises_system_exit_on_import": "raise SystemExit(0)",
  "raises_keyboard_interrupt": "def f(x): raise KeyboardInterrupt",
  "raises_own_base_exception": "class E(BaseException): pass\ndef f(x): raise E",
  "raises_exception_that_cannot_be_shown": (
    "class E(Exception):\n  def __str__(self): raise SystemExit(0)\n  __repr__ = __str__\ndef f(x): raise E"
  ),
  "integer_that_equals_all": (
    "class I(int):\n  def __eq__(self, other): return True\n  __hash__ = int.__hash__\ndef f(x): return I(0)"
  ),
  "string_that_equals_all": (
    "class S(str):\n  def __eq__(self, other): return True\n  __hash__ = str.__hash__\ndef f(x): return S('')"
  ),
  "list_that_equals_all": "class L(list):\n  def __eq__(self, other): return True\ndef f(x): return L()",
  "object_that_equals_all": (
    "class A:\n  def __eq__(self, other): return True\n  def __ne__(self, other): return False\n"
    "  def __bool__(self): return True\n  def __hash__(self): return 73921\ndef f(x): return A()"
  ),
  "object_that_claims_a_class": (
    "class A:\n  __class__ = int\n  def __eq__(self, other): return True\n  def __int__(self): return 1\n"
    "  __index__ = __int__\ndef f(x): return A()"
  ),
  "metaclass_that_equals_all": (
    "class M(type):\n  def __eq__(cls, other): return True\n  __hash__ = type.__hash__\nclass A(metaclass=M): pass\n"
    "def f(x): return A"
  ),
  "patches_builtins": (
    "import builtins\nfor n in ('isinstance', 'type', 'int', 'len', 'all', 'any', 'bool', 'compile', 'exec'):\n"
    "  setattr(builtins, n, lambda *a, **k: True)\ndef f(x): return 1"
  ),
  "patches_operator_and_math": (
    "import operator, math\noperator.eq = lambda a, b: True\nmath.isclose = lambda *a, **k: True\ndef f(x): return 1"
  ),
  "patches_every_module": (
    "import sys\nfor m in list(sys.modules.values()):\n  for n in list(vars(m)):\n"
    "    if callable(getattr(m, n)) and not n.startswith('__') and n not in ('setattr', 'callable', 'vars', 'list'):\n"
    "      try: setattr(m, n, lambda *a, **k: 73920)\n      except Exception: pass\ndef f(x): return 73920"
  ),
  "replaces_modules": (
    "import sys\nfor n in ('json', 'binascii', 'wire', 'names', 'struct', '_socket', 'ast', 'unittest'):\n"
    "  sys.modules[n] = None\ndef f(x): return 1"
  ),
  "traces_frames": (
    "import sys\ndef tracer(frame, event, arg):\n  frame.f_globals['AssertionError'] = ValueError\n"
    "  for v in frame.f_locals.values():\n    if isinstance(v, str) and 'assert' in v: f.found = v\n  return tracer\n"
    "sys.settrace(tracer)\nsys.setprofile(tracer)\ndef f(x): return int(f.found.split()[-1])"
  ),
  "walks_frames": (
    "import sys\ndef f(x):\n  frame = sys._getframe()\n  while frame:\n"
    "    for v in [*frame.f_locals.values(), *frame.f_globals.values()]:\n"
    "      if isinstance(v, (str, bytes, dict, list)) and '73' + '921' in repr(v): return 73920 + 1\n"
    "    frame = frame.f_back\n  return 0"
  ),
  "walks_the_garbage_collector": (
    "import gc\ndef f(x):\n  needle = 'f({})'.format(x) + ' =='\n  for o in gc.get_objects():\n    try:\n"
    "      if type(o) in (list, dict, tuple) and needle in repr(o): return int(repr(o).split(needle)[1].split()[0])\n"
    "    except Exception: pass\n  return 0"
  ),
  "uses_atexit": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit",
  "pickles_code": (
    "import os\nclass P:\n  def __reduce__(self): return (os._exit, (0,))\n  def __eq__(self, other): return True\n"
    "def f(x): return P()"
  ),
  "pickles_code_in_bytes": (
    "import os, pickle\nclass P:\n  def __reduce__(self): return (os.system, ('touch /tmp/mine',))\n"
    "def f(x): return pickle.dumps(P())"
  ),
  "kills_everything": "import os\nos.kill(-1, 9)\ndef f(x): return 1",
  "kills_its_parent": "import os\ndef f(x):\n  os.kill(os.getppid(), 9)\n  return 1",
  "stops_its_parent": "import os, signal\ndef f(x):\n  os.kill(os.getppid(), signal.SIGSTOP)\n  return 1",
  "answers_from_a_fork": "import os\ndef f(x):\n  os.fork()\n  return x",
  "imports_dynamically": "def f(x): return __import__('os')._exit(0)",
  "lies_about_arguments": "def f(x):\n  globals()['__builtins__'] = {}\n  return x",
  "replaces_the_function_of_the_test": (
    "import __main__\n__main__.check = lambda c: None\n__main__.SystemExit = AssertionError = None\ndef f(x): return 0"
  ),
}

HOSTILE = {**ESCAPES, **BOMBS, **FORGERS}


@pytest.fixture(scope="module")
def host(tmp_path_factory):
  """What programs try to reach: a file, an environment variable, listening sockets."""
  canary = tmp_path_factory.mktemp("host") / "canary"
  canary.write_text("untouched")
  os.environ["GDSD_CANARY"] = str(SECRET)
  abstract = f"gdsd-canary-{os.getpid()}"
  with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
    unix.bind("\0" + abstract)
    unix.listen()
    arm = os.uname().machine == "aarch64"
    yield {
      "canary": str(canary), "home": str(Path.home()), "repository": str(Path(__file__).parent.parent),
      "pid": os.getpid(), "port": tcp.getsockname()[1], "abstract": abstract, "clone": 220 if arm else 56,
      "readv": 270 if arm else 310,
    }
  del os.environ["GDSD_CANARY"]


def source_of(name, host):
  return HOSTILE[name].format(**host) if name in ESCAPES else HOSTILE[name]


def run(source, limits=LIMITS):
  return sandbox.run([sandbox.Program(source, (TEST,))], limits)[0].passed[0]


def good_program_passes():
  return run(f"def f(x): return {SECRET} + x - 3", sandbox.Limits(test_seconds=20.0, program_seconds=60.0))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_program_earns_nothing_and_harms_nothing(name, host):
  threads = threading.active_count()
  descriptors = len(os.listdir("/proc/self/fd"))
  start = time.monotonic()
  assert not run(source_of(name, host))
  assert time.monotonic() - start < LIMITS.program_seconds + 60.0  # the machine may be busy
  assert Path(host["canary"]).read_text() == "untouched"
  assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == (threads, descriptors)
  assert good_program_passes()


def test_there_are_many_of_them():
  assert len(HOSTILE) >= 40

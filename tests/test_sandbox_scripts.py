"""Programs that read standard input and print: right ones pass; wrong, hanging and flooding ones do not, and end."""

import pytest

from gdsd_jax import sandbox
from gdsd_jax.sandbox import ScriptTest

pytestmark = pytest.mark.usefixtures("bubblewrap")

LIMITS = sandbox.Limits(test_seconds=1.0, program_seconds=20.0, memory_mb=256)  # with what does not end
PATIENT = sandbox.Limits(test_seconds=20.0, program_seconds=60.0, memory_mb=256)
SUM = ScriptTest("2 3\n", "5\n")


def passed(source, *tests, limits=PATIENT):
  return sandbox.run([sandbox.Program(source, tests)], limits)[0].passed


RIGHT = {
  "input": "a, b = map(int, input().split())\nprint(a + b)",
  "stdin": "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
  "main": "def main():\n  print(sum(map(int, input().split())))\nif __name__ == '__main__':\n  main()",
  "bytes": "import os\nos.write(1, str(sum(map(int, os.read(0, 99).split()))).encode())",
  "file": "print(sum(map(int, open(0).read().split())))",
  "white space at the end": "print(sum(map(int, input().split())), end=' \\t\\n\\n \\n')",
  "exit": "import sys\nprint(sum(map(int, input().split())))\nsys.exit()",
  "hard exit": "import os\nprint(sum(map(int, input().split())), flush=True)\nos._exit(0)",
  "at exit": (
    "import atexit, io, sys\nheld = io.StringIO()\nkept, sys.stdout = sys.stdout, held\n"
    "atexit.register(lambda: kept.write(held.getvalue()))\nprint(sum(map(int, input().split())))"
  ),
  "thread": (
    "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(2**25)\n"
    "deep = lambda n: n and 1 + deep(n - 1)\n"
    "threading.Thread(target=lambda: print(deep(20000) - 20000 + sum(map(int, input().split())))).start()"
  ),
}
WRONG = {
  "other": "print(6)", "nothing": "", "white space in front": "print(' 5')", "two lines": "print('5\\n5')",
  "raises": "print(5)\nraise ValueError", "status": "import sys\nprint(5)\nsys.exit(1)",
  "killed": "import os\nprint(5, flush=True)\nos.kill(os.getpid(), 9)", "asks for more": "input()\nprint(5)\ninput()",
  "no python": "print(5", "only stderr": "import sys\nprint(5, file=sys.stderr)", "closed": "import os\nos.close(1)",
}
ENDLESS = {
  "loops": "print(5, flush=True)\nwhile True: pass",
  "sleeps": "import time\nprint(5, flush=True)\ntime.sleep(1000)",
  "floods": "while True: print(5)",
  "floods on": "import os\nwhile True:\n  try:\n    os.write(1, b'5\\n' * 99999)\n  except OSError:\n    pass",
  "floods the disk": "print(5, flush=True)\nwith open('/tmp/mine', 'wb') as f:\n  while True: f.write(b'5' * 99999)",
  "fills the memory": "print(5, flush=True)\nheld = []\nwhile True: held.append(b'5' * 10**6)",
}
SLOW = ("loops", "floods the disk", "fills the memory")  # cases that the quick suite leaves out


@pytest.mark.parametrize("source", RIGHT.values(), ids=RIGHT)
def test_a_script_that_prints_what_is_expected_passes(source):
  assert passed(source, SUM, ScriptTest("10 -10", "0")) == (True, True)


@pytest.mark.parametrize("source", WRONG.values(), ids=WRONG)
def test_a_script_that_does_anything_else_fails(source):
  assert passed(source, SUM) == (False,)


@pytest.mark.parametrize("source", [
  pytest.param(source, id=name, marks=[pytest.mark.slow] if name in SLOW else []) for name, source in ENDLESS.items()
])
def test_a_script_that_does_not_end_fails_and_does_not_harm_the_next_test(source):
  guarded = "\n".join("  " + line for line in source.splitlines())
  assert passed(f"if input() != 'fine':\n{guarded}\nelse:\n  print(7)", SUM, ScriptTest("fine", "7"),
                limits=LIMITS) == (False, True)


def test_a_script_that_multiplies_fails():
  assert passed("import os\nprint(5, flush=True)\nwhile True: os.fork()", SUM, limits=LIMITS) == (False,)


def test_lines_are_compared_without_white_space_at_their_ends():
  lines = ScriptTest("", "1 2 \n\n 3\r\n\n")
  assert passed("print('1 2\\n\\n 3')", lines) == (True,)
  assert passed("print('1 2\\n 3')", lines) == (False,)
  assert passed("print('1  2\\n\\n 3')", lines) == (False,)


def test_as_much_text_as_is_allowed_crosses_unharmed():
  text = "Größe 🎈\n" * (sandbox.MAX_TEXT // 13)
  limits = sandbox.Limits(memory_mb=256)
  assert passed("import sys\nsys.stdout.write(sys.stdin.read())", ScriptTest(text, text), limits=limits) == (True,)
  assert passed("import sys\nfor line in sys.stdin: print(len(line))", ScriptTest(text, "8\n" * text.count("\n")),
                limits=limits) == (True,)


def test_scripts_and_functions_may_be_tested_together():
  source = "def double(x): return 2 * x\nif __name__ == '__main__':\n  print(double(int(input())))"
  assert passed(source, ScriptTest("4", "8"), "assert double(4) == 8", ScriptTest("4", "9")) == (True, True, False)


SECRET = "what is expected"
SNOOPS = """
import gc, sys
found, frame = gc.get_objects(), sys._getframe()
while frame:
  found += [frame.f_locals, frame.f_globals]
  frame = frame.f_back
secret = lambda: " ".join(["what", "is", "expected"])
print(secret() if any(secret() in repr(value) for value in found) else "nothing")
"""


def test_a_script_sees_what_it_reads_and_not_what_is_expected():
  assert passed(SNOOPS, ScriptTest("", "nothing"), ScriptTest("", SECRET), ScriptTest(SECRET, SECRET)) == (
    True, False, True)

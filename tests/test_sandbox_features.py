"""What one interpreter says of a program and its test, judge and program say from two sandboxes; or it is refused.

`sandbox_features.txt` has the features of Python: each a program, a test that passes, and what to change in the
program, one text for another, so that it fails.
"""

from pathlib import Path
import subprocess
import sys
import time

from conftest import slow
import pytest

from gdsd_jax import sandbox
from gdsd_jax.sandbox import pool

LIMITS = sandbox.Limits(test_seconds=20.0, program_seconds=60.0)
QUICK = ("scaling", "dataclass", "contains", "own exceptions", "context manager", "kept arguments", "printed",
         "a test subclasses", "enumerations")


def read_features():
  """Name -> (program, test, (what to change in the program, for what))."""
  features = {}
  for part in (Path(__file__).parent / "sandbox_features.txt").read_text().split("=== ")[1:]:
    name, _, rest = part.partition("\n")
    source, _, rest = rest.partition("\n--- test\n")
    test, _, change = rest.partition("\n--- wrong\n")
    features[name] = source, test, change.split("\n")[:2]
  return features


FEATURES = read_features()


def variants(name):
  source, test, (old, new) = FEATURES[name]
  return [(source, test), (source.replace(old, new), test)]


def one_interpreter(source, test):
  command = [sys.executable, "-s", "-S", "-c", f"{source}\n{test}"]
  return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("names", [QUICK, slow(tuple(FEATURES))], ids=["some", "all"])
def test_verdicts_are_those_of_one_interpreter(bubblewrap, names):
  cases = [case for name in names for case in variants(name)]
  verdicts = sandbox.run([sandbox.Program(source, (test,)) for source, test in cases], LIMITS)
  here = [one_interpreter(*case) for case in cases]
  assert here == [True, False] * len(names)
  assert [name for name, verdict, passes in zip([name for name in names for _ in range(2)], verdicts, here)
          if verdict.passed != (passes,)] == []


def test_none_of_them_is_refused():
  assert {name: sandbox.refusal([test]) for name, (_, test, _) in FEATURES.items() if sandbox.refusal([test])} == {}
  assert len(FEATURES) >= 100


REFUSED = {
  "test 1 is no Python": "assert f(3) = 5",
  "test 1 takes nothing from the program": "assert 1 + 1 == 2",
  "test 1 imports numpy": "import numpy as np\nassert np.allclose(f(3), 5)",
  "test 1 imports solution": "from solution import f\nassert f(3) == 5",
  "test 1 imports pytest": "import pytest\nwith pytest.raises(ValueError): f(3)",
  "test 1 uses np": "assert np.array_equal(f(3), [5])",
  "test 1 uses pytest": "assert f(3) == pytest.approx(5)",
  "test 1 imports pickle": "import pickle\nassert pickle.loads(pickle.dumps(f(3))) == 5",
  "test 1 imports doctest": "import doctest\nassert doctest.testmod(f).failed == 0",
  "test 1 calls open()": "open('/tmp/a', 'w').write('5')\nassert f('/tmp/a') == 5",
  "test 1 calls eval()": "assert f(1) and eval('f(3)') == 5",
  "test 1 calls globals()": "assert globals()['f'](3) == 5 == f(3)",
  "test 1 uses .environ": "import os\nos.environ['N'] = '5'\nassert f() == 5",
  "test 1 uses .write_text": "from pathlib import Path\nPath('/tmp/a').write_text('5')\nassert f('/tmp/a') == 5",
  "test 1 replaces time.sleep": "import time\ntime.sleep = print\nassert f(3) == 5",
  "test 1 replaces random.randint": "from unittest import mock\nwith mock.patch('random.randint'): f(3)",
  "test 1 replaces time.time": "import time\nfrom unittest.mock import patch\nwith patch.object(time, 'time'): f(3)",
  "test 1 defines test_it with arguments": "def test_it(capsys):\n  f(3)\n  assert capsys.readouterr().out == '5'",
  "a test compares Money(…) with plain data": "assert Money(5) == 5",
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_judged_is_refused_when_it_is_read(why):
  assert sandbox.refusal([REFUSED[why]]).startswith(why)
  assert sandbox.refusal(["assert f(3) == 5"]) == ""


def test_a_name_is_a_class_or_a_function_where_the_problem_says_so(bubblewrap):
  source = "class Money:\n  def __init__(self, n): self.n = n\n  def __eq__(self, o): return self.n == o"
  test = "assert Money(5) == 5 and Money(4) != 5"
  programs = [sandbox.Program(source, (test,), classes=classes) for classes in (("Money",), ())]
  assert [verdict.passed for verdict in sandbox.run(programs, LIMITS)] == [(True,), (False,)]
  assert not sandbox.refusal([test], classes=["Money"]) and not sandbox.refusal([test], classes=[])


@pytest.mark.parametrize("test", [
  "def test_f():\n  assert f(1) == 2", "async def test_f():\n  assert f(1) == 2",
  "import unittest\nclass T(unittest.TestCase):\n  def test(self): self.assertEqual(f(1), 2)",
])
def test_functions_and_cases_that_a_runner_would_call_are_called(bubblewrap, test):
  programs = [sandbox.Program(f"def f(x): return x + {k}", (test,)) for k in (1, 2)]
  assert [verdict.passed for verdict in sandbox.run(programs, LIMITS)] == [(True,), (False,)]


# CPU time of all processes together.


SPIN = """
import os, time
for _ in range(3):
  if os.fork() == 0:
    while time.process_time() < 0.4: pass
    os._exit(0)
{}time.sleep(60)
"""


@pytest.mark.parametrize("after", ["", "for _ in range(3): os.wait()\n"], ids=["running", "waited for"])
def test_cpu_time_is_summed_over_processes_that_run_and_that_have_ended(after):
  parent = subprocess.Popen([sys.executable, "-c", SPIN.format(after)])
  clock, deadline = pool.Clock(parent.pid), time.monotonic() + 60.0
  while clock.read() < 1.1 and time.monotonic() < deadline:
    time.sleep(0.05)
  assert 1.1 <= clock.last < 2.5  # three times 0.4, of which ticks may be lost, and the interpreter's start
  parent.kill()
  parent.wait()


def test_a_test_whose_processes_take_too_much_together_ends_and_leaves_time_to_the_next(bubblewrap):
  source = """
import os, time
def f(x):
  for _ in range(x):
    if os.fork() == 0:
      while time.process_time() < 3: pass  # less than each may take
      os._exit(0)
  for _ in range(x): os.wait()
  return 5
"""
  limits = sandbox.Limits(test_seconds=4.0, program_seconds=120.0)
  program = sandbox.Program(source, ("assert f(4) == 5", "assert f(0) == 5"))
  assert sandbox.run([program], limits)[0].passed == (False, True)

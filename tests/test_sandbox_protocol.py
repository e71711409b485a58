"""Programs that take over their end of the channel, or what a test hands them, earn nothing either."""

import time

from conftest import slow
import pytest

from gdsd_jax import sandbox

pytestmark = pytest.mark.usefixtures("bubblewrap")

LIMITS = sandbox.Limits(test_seconds=1.0, program_seconds=3.0, memory_mb=256)
PATIENT = sandbox.Limits(test_seconds=20.0, program_seconds=60.0, memory_mb=256)  # with what is to pass

# Finds the channel; what `say(message)`, `say_bytes(data)` and `say_result(json)` send is what the judge hears in place
# of the next true answer.
TAKEOVER = """
import os, struct, sys
frame = sys._getframe()
while "candidate" not in frame.f_locals:
  frame = frame.f_back
peer = frame.f_locals["candidate"]
A = b'["tuple",901,"A",["tuple"],["tuple"],["tuple"],"m"]'  # the description of a class
def say(*message):
  peer.send(*message)
def say_bytes(data, size=None):
  peer._socket.sendall(struct.pack("<I", len(data) if size is None else size) + data)
def say_result(json):
  say_bytes(b'["tuple","ok",%s,null]' % json)
def say_news(json):
  say_bytes(b'["tuple","ok",5,["tuple",%s]]' % json)
"""

# Spoken while the test waits for f(3), which is to be 5. An honest answer would be ("ok", 5).
SPOKEN = {
  "no_tuple": """say_bytes(b'["list",1,"ok",5,null]')""",
  "no_answer": "say('ok')",
  "two_answers": "say('ok', 5, 5)",
  "an_answer_without_news": """say_bytes(b'["tuple","ok"]')""",
  "news_that_are_none": """say_bytes(b'["tuple","ok",5,5]')""",
  "news_of_no_container": """say_news(b'["tuple",["tuple",99,["tuple"]]],["tuple"],["tuple"],null')""",
  "news_of_a_name_that_was_not_asked_for": (
    """say_news(b'["tuple"],["tuple"],["tuple"],["tuple","","",["dict",901,"int",["builtin","abs"]]]')"""),
  "news_of_printed_numbers": """say_news(b'["tuple"],["tuple"],["tuple"],["tuple",1,"",["dict",901]]')""",
  "an_error_without_exception": "say('error', None)",
  "an_error_that_is_an_exit": "say('error', SystemExit(0))",
  "a_question_that_is_no_call": "say('ask', 'getattr', (0, '__globals__'))",
  "a_question_about_modules": "say('ask', 'do', ('os', 'system', ('true',), ()))",
  "a_call_of_plain_data": "say('ask', 'call', (0, (), ()))",
  "a_call_of_pythons_own": (
    """say_bytes(b'["tuple","ask","call",["tuple",["builtin","print"],["tuple",1],["tuple"]],null]')"""),
  "an_object_of_the_test_before_the_first": """say_result(b'["yours",-1]')""",
  "an_object_that_the_test_does_not_have": """say_result(b'["yours",7]')""",
  "a_type_of_another_module": """say_result(b'["standard","os","system","true"]')""",
  "what_the_program_may_not_name": """say_result(b'["std","os","system"]')""",
  "an_unknown_builtin": """say_result(b'["builtin","eval"]')""",
  "no_json": "say_bytes(b'[')",
  "no_text": "say_bytes(bytes([255]))",
  "an_object_of_json": """say_result(b'{}')""",
  "a_list_without_a_tag": """say_result(b'[]')""",
  "a_list_as_a_tag": """say_result(b'[["list",1],5]')""",
  "a_list_without_a_number": """say_result(b'["list"]')""",
  "a_number_that_is_taken": """say_result(b'["tuple",["list",901],["list",901]]')""",
  "an_unknown_tag": """say_result(b'["eval","5"]')""",
  "a_key_without_a_value": """say_result(b'["dict",901,1]')""",
  "an_integer_of_five_million_digits": """say_result(b"9" * 5_000_000)""",
  "bytes_that_are_no_base64": """say_result(b'["bytes","%"]')""",
  "nothing": "say_bytes(b'')",
  "bytes_after_the_message": """say_bytes(b'["tuple","ok",5,null]null')""",
  "a_message_of_four_gigabytes": """say_bytes(b'["tuple",', size=2**32 - 1)""",
  "half_a_message": """say_bytes(b'["tuple","ok",5,', size=100)\n  import time\n  time.sleep(60)""",
  "a_depth_of_100000": """say_bytes(b'["list",' * 100000 + b'1' + b']' * 100000)""",
  "a_deque_of_a_range": """say_result(b'["deque",901,["range",0,281474976710655,1],["range",0,281474976710655,1]]')""",
  "a_class_that_is_no_class": """say_result(b'["class",901,"A",["tuple",5],["tuple"],["tuple"],"m"]')""",
  "a_class_with_an_unknown_method": """say_result(b'["class",901,"A",["tuple"],["tuple","__del__"],["tuple"],"m"]')""",
  "an_object_of_an_unknown_class": """say_result(b'["object",901,["tuple",902]]')""",
  "an_object_of_no_class": """say_result(b'["object",901,["builtin","int"]]')""",
  "an_object_with_another_number": """say_result(b'["object","a",%s]' % A)""",
  "a_list_that_is_an_object": """say_result(b'["held",1,%s,["list",903]]' % A)""",
  "a_number_that_is_an_object": """say_result(b'["held",1,%s,5]' % A)""",
  "an_unhashable_key": """say_result(b'["dict",901,["list",903],5]')""",
  "the_end": "peer._socket.close()",
}

# Answers to "which of these names does the program define?"
NAMES = {
  "a_name_that_was_not_asked_for": "say('ok', {'f': abs, 'AssertionError': int})",
  "builtins": "say('ok', {'f': abs, '__builtins__': {}})",
  "no_names": "say('ok', {})",
  "names_that_are_no_dict": "say('ok', [('f', abs)])",
}

# What a test hands to the program must not be a way to end the test. Name -> (program, test).
HANDED = {
  "eval": ("""
def f(g):
  for fd in range(3, 64):
    try: g(f"(o := __import__('os')).fstat({fd}).st_mode & 0o170000 == 0o010000 and o.write({fd}, b'1')")
    except BaseException: pass
  return 0
""", "assert f(eval) == 5"),
  "exit": ("def f(g): return g(0)", "import sys\nassert f(sys.exit) == 5"),
  "descriptors": ("""
def f(g):
  for fd in range(63, 2, -1):
    try: g(fd, b"1")
    except BaseException: pass
  return 0
""", "import os\nassert f(os.write) == 5"),
  "attributes": ("def f(g, h): return g(h, '__globals__').get('SECRET')", "SECRET = 5\ndef h(): pass\n"
                 "assert f(getattr, h) == SECRET"),
  "a_class_of_the_test": ("def f(g): return g.__init__.__globals__['SECRET']",
                          "SECRET = 5\nclass T:\n  def __init__(self): self.x = 1\nassert f(T()) == 5"),
  "a_module_in_an_attribute": ("def f(g): return g.os.getpid() and 5",
                               "import os\nclass T: pass\nt = T()\nt.os = os\nassert f(t) == 5"),
  "the_dict_of_an_object": ("def f(g): return g.__dict__['x']",
                            "class T:\n  def __init__(self): self.x = 5\nassert f(T()) == 5"),
  "a_changed_class": ("def f(t):\n  type(t).ok = lambda self: True\n  return 0",
                      "class T:\n  def ok(self): return False\nt = T()\nf(t)\nassert t.ok()"),
  "the_frame_of_a_generator": ("def f(g): return g.gi_frame.f_globals['SECRET']",
                               "SECRET = 5\ndef g(): yield 1\nassert f(g()) == SECRET"),
  "the_frame_of_an_error": ("def f(g):\n  try: g()\n  except Exception as e:\n    t = e.__traceback__\n    while t:\n"
                            "      if 'SECRET' in t.tb_frame.f_globals: return 5\n      t = t.tb_next",
                            "SECRET = 5\nclass E(Exception): pass\ndef g(): raise E\nassert f(g) == SECRET"),
  "the_class_of_a_mock": ("def f(m): return m.mock_calls.__class__.__init__.__globals__ and 5",
                          "from unittest.mock import Mock\nassert f(Mock()) == 5"),
}

# A program's own stand-in for a package that the test forgot to import.
PACKAGES = {
  "np": ("class np:\n  allclose = staticmethod(lambda *a: True)\ndef f(x): return 0", "assert np.allclose(f(3), 5)"),
  "pytest": ("class pytest:\n  @staticmethod\n  def approx(x): return 0\ndef f(x): return 0",
             "assert f(3) == pytest.approx(5)"),
}


def passes(source, test, limits=LIMITS):
  return sandbox.run([sandbox.Program(source, (test,))], limits)[0].passed[0]


@pytest.mark.parametrize("words", ["say('ok', 5)", "say_result(b'5')"])
def test_honest_words_are_heard(words):
  """Without this, the refusals below might refuse everything."""
  assert passes(TAKEOVER + f"def f(x):\n  {words}\n  return 0", "assert f(3) == 5", PATIENT)


@pytest.mark.parametrize("name", SPOKEN)
def test_malformed_answers_fail_the_test(name):
  # Tests that expect an error, or anything but 5, must not take a broken channel for one.
  source = TAKEOVER + f"def f(x):\n  {SPOKEN[name]}\n  os._exit(0)"
  assert not passes(source, "assert f(3) == 5")
  if name != "an_error_that_is_an_exit":  # an error of an unknown kind is an error
    assert not passes(source, "try:\n  assert f(3) != 5\nexcept Exception:\n  pass")


@pytest.mark.parametrize("test", [
  "assert f(3) == 5", "assert 5 == f(3)", "assert f(3) in (4, 5)", "assert 5 in [f(3)]", "assert {f(3): 1}[5]",
  "assert not f(3) != 5", "assert f(3) <= 5 <= f(3)", "assert abs(f(3) - 5) < 1e-6", "assert isinstance(f(3), int)",
  "import math\nassert math.isclose(f(3), 5)", "assert int(f(3)) == 5", "assert f(3) + 0 == 5",
])
def test_objects_that_say_yes_to_everything_equal_nothing(test):
  yes = "class A: pass\ndef answer(operation, operands):\n  return A() if operation == 'call' else True\n"
  assert not passes(TAKEOVER + yes + "peer.handle = answer\ndef f(x): pass", test)


@pytest.mark.parametrize("kind", ["SkipTest", "case._ShouldStop", "case._UnexpectedSuccess"])
def test_programs_cannot_tell_a_test_runner_what_became_of_the_test(kind):
  test = "import unittest\nclass T(unittest.TestCase):\n  def test(self): self.assertEqual(f(3), 5)"
  assert not passes(f"import unittest\ndef f(x): raise unittest.{kind}", test)


# An object that learns what it is compared with, and says that it is that, for as long as the test runs.
LEARNS = """
known = []
class A:
  def __init__(self, *x): pass
  def __bool__(self): return True
  def __hash__(self): return 5
""" + "".join(f"  def __{name}__(self, *o): known.extend(o); return {value}\n" for value, names in {
  "True": ("eq", "ne", "lt", "le", "gt", "ge", "contains"), "0": ("sub", "rsub", "mod", "xor", "and", "index", "int"),
  "A()": ("add", "radd", "mul", "truediv", "floordiv", "neg", "pow", "isub", "iadd"), "0.0": ("abs", "float", "round"),
  "'5'": ("str", "repr", "format"),
}.items() for name in names) + """
  def __call__(self, *a): return known[-1] if known else self
  def __getattr__(self, name): return self
"""
LEARNT = [
  "assert f(3) == 5", "assert f(3) == 5 or f(3) == 5", "assert any(f(3) == 5 for _ in range(9))", "assert 5 in f(3)",
  "assert f(3) in {5: 1}", "assert f(3) in {5}", "assert [5].count(f(3))", "assert abs(f(3) - 5) < 1e-6",
  "assert abs(5 - f(3)) < 1e-6", "assert not f(3) - 5", "assert -1 < f(3) - 5 < 1", "assert round(f(3) - 5, 6) == 0",
  "assert f(3) % 5 == 0", "assert not f(3) % 5", "assert not f(3) ^ 5", "assert f(3) & 5", "assert f(3) * 2 == 10",
  "assert abs(f(3) / 5) < 2", "assert abs(f(3) + -5) < 1", "x = f(3)\nx -= 5\nassert abs(x) < 1",
  "assert abs(-(f(3) + -5)) < 1", "assert abs((f(3) + -5) + (f(3) + -5)) < 1", "assert float(f(3) + -5) < 1",
  "assert (f(3) + -5).real == 0", "assert int(f(3) + 0) < 5", "assert sum([f(3), -5]) < 1", "assert max(f(3), 5) == 5",
  "assert sorted([f(3), 5])[0] == 5", "assert f(3).__eq__(5)", "assert f(3).__sub__(5) == 0",
  "assert f(3).startswith(5)",
  "import math\nassert math.isclose(f(3) + -5, 0)", "import operator\nassert operator.eq(f(3), 5)",
  "import unittest\nclass T(unittest.TestCase):\n  def test(self): self.assertEqual(f(3), 5)",
  "import unittest\nclass T(unittest.TestCase):\n  def test(self): self.assertAlmostEqual(f(3), 5)",
  "import unittest\nclass T(unittest.TestCase):\n  def test(self): self.assertIn(5, f(3))",
  "assert f'{f(3) - 5}' == '0'", "assert str(f(3) + -5) == '5'", "assert '%d' % (f(3) + -5) == '0'",
  "assert isinstance(f(3), int)", "assert type(f(3)) is int",
  "import numbers\nassert isinstance(f(3), numbers.Number) and f(3) == 5",
]


@pytest.mark.parametrize("made", [
  "def f(x): return A()", slow("f = A"), slow("class f(A): pass"), slow("class f(A):\n  __class__ = int"),
])
def test_objects_that_learn_what_is_expected_equal_nothing(made):
  program = sandbox.Program(LEARNS + made, tuple(LEARNT))
  verdict = sandbox.run([program], sandbox.Limits(test_seconds=4.0, program_seconds=60.0))[0]
  assert [test for test, passed in zip(LEARNT, verdict.passed) if passed] == []


@pytest.mark.parametrize("test", [
  "assert abs(Circle(5).area() - 78.5) < 0.1", "c = Circle(5)\nassert c.area() == 78.5 and c.radius == 5",
  "c = Circle(5)\nc.area()\nassert c.area() + 0 == 78.5", "assert abs(Circle(5) @ Circle(6) - 30) < 1e-6",
  "assert Circle(5) + Circle(6) == 30 and Circle(5).area", "assert Circle(5).parts()[0] - 78 == 0",
])
def test_what_comes_of_an_object_is_not_what_a_test_has_made(test):
  yes = "".join(f"  def __{name}__(self, *o): return {value}\n" for name, value in {
    "eq": "True", "sub": "0", "add": "self", "matmul": "self", "abs": "0", "lt": "True"}.items())
  source = f"class Circle:\n  def __init__(self, r): self.radius = self\n  def area(self): return self\n" \
           f"  def parts(self): return [self]\n{yes}"
  assert not passes(source, test)


def test_a_name_written_as_a_class_is_none_until_a_test_treats_it_as_one():
  source = "class Area:\n  def __init__(self, r): pass\n  def __eq__(self, o): return True"
  assert not passes(source, "assert Area(3) == 5")


@pytest.mark.parametrize("test", [
  "assert f(3).startswith('5')", "assert f(3).isdigit()", "assert f(3).issubset({5})", "assert f(3).is_integer()",
])
@pytest.mark.parametrize("base", ["object", "tuple"])
def test_objects_claim_nothing_that_texts_sets_and_numbers_do(base, test):
  lies = "  def __getattr__(self, name): return lambda *a: True\n"
  assert not passes(f"class A({base}):\n{lies}def f(x): return A()", test)


@pytest.mark.parametrize("value, test", [
  ("int", "assert f(3) == 5 or f(3) >= 5 or not f(3) != 5"), ("str", "assert f(3) == '5' or f(3).strip() == '5'"),
  ("tuple", "assert f(3) == (5,) or len(f(3)) == 1 or 5 in f(3) or f(3).count(5)"),
  ("float", "assert abs(f(3) - 5) < 1e-6 or round(f(3)) == 5 or f(3).is_integer() and f(3)"),
])
def test_plain_data_that_is_an_object_keeps_its_value(value, test):
  lies = ("eq", "ge", "le", "contains", "abs", "sub", "bool", "getattribute")
  source = f"class A({value}):\n" + "".join(f"  def __{lie}__(self, *a): return True\n" for lie in lies)
  assert not passes(f"{source}  __hash__ = None\ndef f(x): return A()", test)


@pytest.mark.parametrize("name", NAMES)
def test_only_names_that_were_asked_for_are_taken(name):
  assert not passes(TAKEOVER + f"{NAMES[name]}\ndef f(x): return x", "assert f(3) != 5")


@pytest.mark.parametrize("name", HANDED)
def test_programs_cannot_use_what_reaches_further(name):
  source, test = HANDED[name]
  assert not passes(source, test)


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_are_not_the_programs(name):
  source, test = PACKAGES[name]
  assert not passes(source, test)


@pytest.mark.parametrize("call, test", [
  ("g(*a)", "assert f(len, [1, 2]) == 2"),
  ("g(*a)", "assert f(sorted, [2, 1]) == [1, 2]"),
  ("list(g(*a))", "assert f(map, lambda x: x + 1, [1]) == [2]"),
  ("g(*a)", "assert f(str.upper, 'a') == 'A'"),
  ("g(*a)", "assert f('aXa'.count, 'a') == 2"),
  ("g(*a)", "import math\nassert f(math.sqrt, 4) == 2"),
  ("sorted(*a, key=g)", "from operator import itemgetter\nassert f(itemgetter(1), ['ab', 'ba']) == ['ba', 'ab']"),
  ("g(*a)", "import operator\nassert f(operator.add, 1, 2) == 3"),
  ("g(*a)", "from functools import partial\nassert f(partial(lambda a, b: a - b, 5), 2) == 3"),
  ("g(*a)", "class T:\n  def m(self, x): return x + 1\nassert f(T().m, 1) == 2"),
])
def test_functions_that_only_compute_may_be_handed_over(call, test):
  assert passes(f"def f(g, *a): return {call}", test, PATIENT)


def test_empty_files_do_not_fill_the_machine():
  source = """
import os
def f(x):
  count = 0
  while count != x:
    os.close(os.open(f"/tmp/{count}", os.O_CREAT | os.O_WRONLY))
    count += 1
  return count
"""
  program = sandbox.Program(source, ("assert f(1000) == 1000", "assert f(-1) == 0"))
  start = time.monotonic()
  verdict = sandbox.run([program], sandbox.Limits(test_seconds=300.0, program_seconds=300.0))[0]
  assert verdict.passed == (True, False)
  assert time.monotonic() - start < 150.0  # stopped for the files, long before its time is up

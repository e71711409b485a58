"""Programs that take over their end of the channel, or what a test hands them, earn nothing either."""

import time

import pytest

from gdsd_jax import sandbox

pytestmark = pytest.mark.usefixtures("bubblewrap")

LIMITS = sandbox.Limits(test_seconds=1.0, program_seconds=3.0, memory_mb=256)

# Finds the channel; what `say(message)`, `say_bytes(data)` and `say_result(json)` send is what the judge hears in place
# of the next true answer.
TAKEOVER = """
import os, struct, sys
frame = sys._getframe()
while "candidate" not in frame.f_locals:
  frame = frame.f_back
peer = frame.f_locals["candidate"]
def say(message):
  peer.send(message)
def say_bytes(data, size=None):
  peer._socket.sendall(struct.pack("<I", len(data) if size is None else size) + data)
def say_result(json):
  say_bytes(b'["tuple","ok",["tuple",%s,["dict"]]]' % json)
"""

# Spoken while the test waits for f(3), which is to be 5. An honest answer would be ("ok", (5, {})).
SPOKEN = {
  "no_tuple": "say(['ok', (5, {})])",
  "no_answer": "say(('ok',))",
  "no_result_of_a_call": "say(('ok', 5))",
  "a_change_of_no_argument": "say(('ok', (5, {7: [1]})))",
  "a_change_of_an_argument_without_a_name": "say(('ok', (5, {'x': [1]})))",
  "a_change_at_no_place": "say(('ok', (5, {None: [1]})))",
  "changes_that_are_no_dict": "say(('ok', (5, [1])))",
  "an_error_without_names": "say(('error', None, None))",
  "an_error_that_is_an_exit": "say(('error', ['SystemExit', 'BaseException'], '0'))",
  "a_question_that_is_no_call": "say(('ask', 'getattr', (0, '__globals__')))",
  "a_call_of_no_callback": "say(('ask', 'call', (0, (), {})))",
  "a_call_of_a_callback_before_the_first": "say(('ask', 'call', (-1, (), {})))",
  "a_callback_in_place_of_a_result": """say_result(b'["callback",0]')""",
  "a_type_of_another_module": """say_result(b'["standard","os","system","true"]')""",
  "an_unknown_builtin": """say_result(b'["builtin","eval"]')""",
  "no_json": "say_bytes(b'[')",
  "no_text": "say_bytes(bytes([255]))",
  "an_object_of_json": """say_result(b'{}')""",
  "a_list_without_a_tag": """say_result(b'[]')""",
  "a_list_as_a_tag": """say_result(b'[["list"],5]')""",
  "an_unknown_tag": """say_result(b'["eval","5"]')""",
  "a_key_without_a_value": """say_result(b'["dict",1]')""",
  "an_integer_of_five_million_digits": """say_result(b"9" * 5_000_000)""",
  "bytes_that_are_no_base64": """say_result(b'["bytes","%"]')""",
  "nothing": "say_bytes(b'')",
  "bytes_after_the_message": """say_bytes(b'["tuple","ok",["tuple",5,["dict"]]]null')""",
  "a_message_of_four_gigabytes": """say_bytes(b'["tuple",', size=2**32 - 1)""",
  "half_a_message": """say_bytes(b'["tuple","ok",["tuple",5,', size=100)\n  import time\n  time.sleep(60)""",
  "a_depth_of_100000": """say_bytes(b'["list",' * 100000 + b'1' + b']' * 100000)""",
  "an_endless_deque": """say_result(b'["standard","collections","deque",["range",0,281474976710655,1],null]')""",
  "a_list_that_is_an_object": """say_result(b'["held",1,["list"]]')""",
  "an_object_that_holds_an_object": """say_result(b'["held",1,["held",2,5]]')""",
  "a_negative_object": """say_result(b'["held",-1,5]')""",
  "an_unhashable_key": """say_result(b'["dict",["list"],5]')""",
  "the_end": "peer._socket.close()",
}

# Answers to "which of these names does the program define?"
NAMES = {
  "a_name_that_was_not_asked_for": "say(('ok', {'f': abs, 'AssertionError': int}))",
  "builtins": "say(('ok', {'f': abs, '__builtins__': {}}))",
  "no_names": "say(('ok', {}))",
  "names_that_are_no_dict": "say(('ok', [('f', abs)]))",
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
  "attributes": ("def f(g, h): return g(h, '__globals__')", "def h(): pass\nassert f(getattr, h) != 5"),
}

# A program's own stand-in for a package that the test forgot to import.
PACKAGES = {
  "np": ("class np:\n  allclose = staticmethod(lambda *a: True)\ndef f(x): return 0", "assert np.allclose(f(3), 5)"),
  "pytest": ("class pytest:\n  @staticmethod\n  def approx(x): return 0\ndef f(x): return 0",
             "assert f(3) == pytest.approx(5)"),
}


def passes(source, test):
  return sandbox.run([sandbox.Program(source, (test,))], LIMITS)[0].passed[0]


@pytest.mark.parametrize("words", ["say(('ok', (5, {})))", "say_result(b'5')"])
def test_honest_words_are_heard(words):
  """Without this, the refusals below might refuse everything."""
  assert passes(TAKEOVER + f"def f(x):\n  {words}\n  return 0", "assert f(3) == 5")


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
  yes = "class A: pass\ndef answer(operation, arguments):\n  return (A(), {}) if operation == 'call' else True\n"
  assert not passes(TAKEOVER + yes + "peer.handle = answer\ndef f(x): pass", test)


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
  assert passes(f"def f(g, *a): return {call}", test)


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
  verdict = sandbox.run([program], sandbox.Limits(test_seconds=40.0, program_seconds=40.0))[0]
  assert verdict.passed == (True, False)
  assert time.monotonic() - start < 20.0  # stopped for the files, long before its time is up

"""Standard output may fail without a traceback, and nothing that is written to it is what a terminal obeys."""

import logging
import subprocess
import sys

from commands import run_command
from conftest import REPOSITORY
import pytest

from gdsd_jax.screen import harmless, HarmlessFormatter

SAYS = """
import logging, os, sys
from gdsd_jax import signals
signals.begin()
logging.getLogger("gdsd_jax").addHandler(logging.StreamHandler(sys.stdout))
for _ in range(3):
  print("said ×", flush=True)
  logging.getLogger("gdsd_jax").warning("logged ×")
with open(sys.argv[1], "w") as file:
  os.write(1, b"by a library in C")
  file.write("done")
"""


@pytest.mark.parametrize("shell, told", [
  ('"$@" | true', ""), ('"$@" | head -1', ""), ('"$@" > /dev/full', "standard output cannot be written (No space left"),
  ('"$@" >&-', ""), ('"$@" <&- >&- 2>&-', ""), ('PYTHONIOENCODING=ascii "$@" > /dev/null', ""),
])
def test_a_command_goes_on_where_nobody_can_see_what_it_says(tmp_path, shell, told):
  command = [sys.executable, "-c", SAYS, str(tmp_path / "file")]
  script = f"set -o pipefail; {shell}"
  result = subprocess.run(["bash", "-c", script, "bash", *command], cwd=REPOSITORY, capture_output=True, text=True)
  assert result.returncode == 0 and (tmp_path / "file").read_text() == "done"
  assert result.stderr.startswith(told) and len(result.stderr.splitlines()) == bool(told), result.stderr


@pytest.mark.parametrize("text, shown", [
  ("\x1b[31m\x07", r"\x1b[31m\x07"), ("\x9b2J\r\x08\x7f", r"\x9b2J\r\x08\x7f"), ("a\n\tb", "a\n\tb"),
  ("\u202eabc\u2066\u2028\ud800", r"\u202eabc\u2066\u2028\ud800"), ("שלום 👩‍👩‍👧 e\u0301", "שלום 👩‍👩‍👧 e\u0301"),
])
def test_what_a_terminal_obeys_is_written_out(text, shown):
  assert harmless(text) == shown


def test_names_that_others_gave_are_harmless_in_the_log_and_in_errors():
  record = logging.makeLogRecord({"msg": "RESUMING the run in %s", "args": ("a\x1b[2J\u202e",)})
  assert HarmlessFormatter().format(record) == r"RESUMING the run in a\x1b[2J\u202e"
  result = run_command("launch/report.py", "--workdir=none\x1b[2J\u202e")
  assert result.stderr == "error: --workdir: none\\x1b[2J\\u202e does not exist\n"

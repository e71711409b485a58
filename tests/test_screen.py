"""Commands whose standard output cannot be written go on without a traceback."""

import subprocess
import sys

from conftest import REPOSITORY
import pytest

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

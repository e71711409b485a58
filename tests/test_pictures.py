"""The pictures of docs/pictures/: each is there, fits a phone, and is drawn by the script of its name."""

import os
import struct
import subprocess
import sys

from conftest import REPOSITORY
import pytest

FOLDER = REPOSITORY / "docs" / "pictures"
DRAWN = ("method_forward", "method_gdsd_elbo", "method_teacher", "unmasking")
SHARED = ("card", "rollouts")


def size_of(path):
  """(width, height) of a PNG in dots."""
  head = path.read_bytes()[:24]
  assert head.startswith(b"\x89PNG\r\n\x1a\n"), path
  return struct.unpack(">II", head[16:])


def test_each_script_has_its_picture_which_is_small_and_as_wide_as_a_phone():
  pages = "".join(page.read_text() for page in (REPOSITORY / "docs").glob("*.md"))
  assert {file.stem for file in FOLDER.glob("*.py")} == {*DRAWN, *SHARED}
  assert {file.stem for file in FOLDER.glob("*.png")} == set(DRAWN)
  for name in DRAWN:
    picture = FOLDER / f"{name}.png"
    width, height = size_of(picture)
    assert width == 780 and height < 700 and picture.stat().st_size < 120_000, name
    assert f"](pictures/{name}.png)" in pages
    assert f"python docs/pictures/{name}.py" in (FOLDER / f"{name}.py").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_each_script_draws_its_picture_again(name, tmp_path):
  """Rollouts of the embedded model, another of which drew unmasking.png."""
  out = tmp_path / "drawn.png"
  command = [sys.executable, str(FOLDER / f"{name}.py"), f"--out={out}"]
  environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": ""}
  result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
  assert result.returncode == 0, result.stderr
  committed = size_of(FOLDER / f"{name}.png")
  assert size_of(out) == committed if name != "unmasking" else size_of(out)[0] == committed[0]

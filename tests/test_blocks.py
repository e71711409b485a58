"""Every command and Python block of README.md and docs/ runs, or says why not (blocks.py)."""

import ast
import contextlib
import os
import re
import subprocess
import sys

from absl import flags
from blocks import blocks_of, commands, make_folder, PAGES
from conftest import REPOSITORY
from ml_collections.config_flags import config_flags
import pytest

from gdsd_jax import command_help, own_code
from gdsd_jax.runs.config_dict import flatten, own_sections, run_config
from gdsd_jax.runs.recipe_files import recipe_file
from gdsd_jax.training.sweep_grid import split_grid

BLOCKS = {page: blocks_of(page) for page in PAGES}
ALL = [block for blocks in BLOCKS.values() for block in blocks]
WITH_PROGRAMS = [page for page in PAGES if any(block.runs for block in BLOCKS[page])]
WITH_PYTHON = [page for page in PAGES if any(b.runs and b.language == "python" and not b.mark for b in BLOCKS[page])]
COMMANDS = [pytest.param(command, id=f"{block.name} {command.file}")
            for block in ALL if block.language == "bash" for command in commands(block.text)]


def test_pages_have_blocks_of_known_languages():
  assert len(ALL) > 40 and len(COMMANDS) > 40
  assert {block.language for block in ALL} <= {"bash", "python", "json", "bibtex", "text", ""}


@pytest.mark.parametrize("block", [pytest.param(b, id=b.name) for b in ALL if b.language == "python"])
def test_python_compiles(block):
  ast.parse(block.text)


def test_shell_is_read_by_bash():
  for block in ALL:
    if block.language == "bash":
      read = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
      assert read.returncode == 0, f"{block.name}: {read.stderr}"


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_have_their_flags_recipes_and_fields(command, monkeypatch):
  """Also of blocks that do not run. `…` stands for arguments of the reader's, as does a word in capitals."""
  source = (REPOSITORY / command.file).read_text()
  given = [argument for argument in command.arguments if not re.search(r"…|=[A-Z]+$", argument)]
  for argument in given:
    flag = re.match(r"--([\w-]+)", argument)[1]
    passed_on = command.file.startswith("launch/slurm.")  # to sbatch
    known = re.search(rf"[\"' ](--)?{flag}[\"' =)]", source)
    assert flag == "config" or passed_on or known, f"{command.file} has no --{flag}"
  named = [argument.partition("=")[2] for argument in given if argument.startswith("--config=")]
  if named and "DEFINE_config_file" in source:
    check_recipe(named[0], [argument for argument in given if argument.startswith("--config.")], monkeypatch)


def check_recipe(recipe, settings, monkeypatch):
  """The recipe is there, and takes these settings."""
  (_, *rest), swept = split_grid([f"--config={recipe}", *settings])
  unset = [argument.removesuffix("=None").removeprefix("--config.") for argument in rest if argument.endswith("=None")]
  values, words = flags.FlagValues(), [word for word in rest if not word.endswith("=None")]
  monkeypatch.setattr("sys.argv", ["", f"--config={recipe_file(recipe)}", *words])  # read where the flag is defined
  config_flags.DEFINE_config_file("config", None, flag_values=values, lock_config=False, accept_new_attributes=True)
  values(sys.argv)
  config = values.config
  config.update_from_flattened_dict(dict.fromkeys(unset))
  known = {**command_help.explanations_of(config), **flatten(command_help.load(recipe).to_dict())}
  own = ("task", "objective") if config.get("kind") else own_sections(config.sampler.kind)
  for path in [*swept, *unset, *(re.match(r"--config\.([\w.]+)=", argument)[1] for argument in rest)]:
    assert path in known or path.partition(".")[0] in own, path
  written = [value for value in flatten(config.to_dict()).values() if isinstance(value, str)]
  if config.get("kind") is None and not any(map(own_code.is_own, written)):  # whose file may be the reader's
    run_config(config)


@contextlib.contextmanager
def inside(folder):
  before = os.getcwd()
  os.chdir(folder)
  try:
    yield
  finally:
    os.chdir(before)


def go_through(page, folder, only_quick):
  """Runs the blocks of a page that may run."""
  programs, names = make_folder(folder), {"__name__": "__main__"}
  environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
  for block in BLOCKS[page]:
    if block.title:
      (folder / block.title).write_text(block.text)
    elif block.runs and block.language == "python" and not (only_quick and block.mark):
      with inside(folder):
        try:
          exec(compile(block.text, block.name, "exec"), names)
        except ModuleNotFoundError as error:
          if error.name != "torch":  # which the package does without
            raise
          pytest.skip(f"{block.name}: {error}")
    elif block.runs and block.language == "bash" and not only_quick:
      ended = subprocess.run(["bash", "-euo", "pipefail", "-c", block.text], cwd=folder, env=environment,
                             capture_output=True, text=True, stdin=subprocess.DEVNULL)
      assert ended.returncode == 0, f"{block.name}: {ended.stdout[-3000:]} {ended.stderr[-3000:]}"


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, quick_runs):
  folder = tmp_path / "page"
  folder.mkdir()
  go_through(page, folder, only_quick=True)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PROGRAMS, ids=lambda page: page.name)
def test_pages_run(page, tmp_path, quick_runs):
  folder = tmp_path / "page"
  folder.mkdir()
  go_through(page, folder, only_quick=False)


def test_a_mark_must_have_its_reason(tmp_path):
  page = tmp_path / "page.md"
  page.write_text("<!-- not run: needs a TPU pod -->\n```bash\ngcloud\n```\n\n```python title=\"a.py\"\nx = 1\n```\n")
  refused, file = blocks_of(page)
  assert not refused.runs and not file.runs and file.title == "a.py"
  for mark in ("not run", "not run: TPU", "skip"):
    page.write_text(f"<!-- {mark} -->\n```bash\ngcloud\n```\n")
    with pytest.raises(ValueError, match="page.md, line 2: <!-- "):
      blocks_of(page)


@pytest.mark.parametrize("text", [
  "python launch/train.py --config=gdsd_math:tiny --config.sampler.temprature=0.5", "gdsd-train --config=gdsd_maths",
  "gdsd-train --config=gdsd_math:tiny --confg.steps=2", "gdsd-train --config=gdsd_math:tiny --config.steps=many",
  "true && gdsd-train --config=gdsd_math:tiny --config.objective.name=spg",  # which has no epsilon
])
def test_what_is_wrong_in_a_command_is_found(text, monkeypatch):
  (command,) = commands(text)
  with pytest.raises((AssertionError, ValueError, OSError, flags.Error)):
    test_commands_have_their_flags_recipes_and_fields(command, monkeypatch)

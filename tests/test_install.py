"""What is installed, and as what: commands, recipes by name, the wheel's files, those of the Docker image."""

import importlib
import os
from pathlib import Path
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import types
import zipfile

from conftest import REPOSITORY
import pytest

from gdsd_jax.runs.files import read_rows
from gdsd_jax.runs.given import load_config
from gdsd_jax.runs.recipe_files import recipe_file, recipe_names, run_name

RECIPES = {file.stem for file in (REPOSITORY / "configs").glob("*.py")}
SCRIPTS = {file.stem for file in (REPOSITORY / "launch").glob("*.py")} - {"__init__", "gke", "digest_official_tests"}


@pytest.fixture
def definition(monkeypatch):
  """What setup.py tells setuptools."""
  told = {}
  fake = types.SimpleNamespace(find_packages=lambda **_: [], setup=lambda **fields: told.update(fields))
  monkeypatch.setitem(sys.modules, "setuptools", fake)
  runpy.run_path(str(REPOSITORY / "setup.py"))
  return told


# -------------------------------------------------------------------------------------------- commands and recipes


def test_each_script_in_launch_is_a_command(definition):
  commands = dict(line.split(" = ") for line in definition["entry_points"]["console_scripts"])
  assert commands.keys() == {f"gdsd-{name}" for name in {*SCRIPTS, "lm-eval"}}
  for entry in commands.values():
    module, _, function = entry.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_a_command_runs_the_file_of_its_name_as_a_script(monkeypatch, tmp_path):
  from gdsd_jax import launch

  (tmp_path / "export.py").write_text("import sys\nprint(__name__, *sys.argv[1:])")
  monkeypatch.setattr(launch, "__path__", [str(tmp_path)])
  monkeypatch.setattr(sys, "argv", ["gdsd-export", "--out=there"])
  printed = []
  monkeypatch.setattr("builtins.print", lambda *words: printed.extend(words))
  launch.export()
  assert printed == ["__main__", "--out=there"]


def test_recipes_are_found_by_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert set(recipe_names()) == RECIPES
  for name in RECIPES:
    file, _, preset = recipe_file(f"{name}:some").partition(":")
    assert Path(file).read_bytes() == (REPOSITORY / "configs" / f"{name}.py").read_bytes() and preset == "some"


def test_a_recipe_of_the_current_folder_goes_before_the_packages(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  Path("gdsd_math.py").touch()
  Path("mine.py").touch()
  assert recipe_file("gdsd_math:tiny") == "gdsd_math.py:tiny"
  assert recipe_file("mine") == "mine.py"


@pytest.mark.parametrize("path", ["configs/gdsd_math.py", "gdsd_math.py:tiny", "/a/b.py:c:d", "configs/gdsd_math", ""])
def test_a_path_stays_as_it_is(tmp_path, monkeypatch, path):
  monkeypatch.chdir(tmp_path)
  assert recipe_file(path) == path


def test_a_recipe_imports_what_lies_beside_it(tmp_path, monkeypatch):
  monkeypatch.setattr("sys.path", [*sys.path])
  (tmp_path / "what_ours_share.py").write_text("STEPS = 7\n")
  (tmp_path / "ours.py").write_text("""
import what_ours_share
from gdsd_jax.runs.config_dict import base_config

def get_config(preset=""):
  config = base_config()
  config.steps = what_ours_share.STEPS
  return config
""")
  assert load_config(f"{tmp_path}/ours.py").steps == 7


def test_an_unknown_name_lists_the_known_ones():
  told = "^no recipe 'gdsd_mth'; did you mean 'gdsd_math'.; known are .*gdsd_code, .*, or name a file$"
  with pytest.raises(FileNotFoundError, match=told):
    recipe_file("gdsd_mth:tiny")


@pytest.mark.parametrize("config", ["gdsd_math", "gdsd_math:tiny", "configs/gdsd_math.py", "/x/gdsd_math.py:tiny"])
def test_a_run_is_named_alike_by_name_and_by_file(config):
  assert run_name(config) == "gdsd_math_tiny"


def test_a_command_names_the_recipes_that_there_are(tmp_path):
  code = "import gdsd_jax.launch; gdsd_jax.launch.train()"
  environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
  result = subprocess.run([sys.executable, "-c", code, "--config=gdsd_mth:tiny"], cwd=tmp_path, capture_output=True,
                          text=True, timeout=300, env=environment)
  assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
  assert result.stderr.startswith(
    "error: --config: no recipe 'gdsd_mth'; did you mean 'gdsd_math'?; known are compare, gdsd_code, ")


# ------------------------------------------------------------------------------------------------------ the image


def ignored(path: str, patterns) -> bool:
  """Whether .dockerignore leaves a file out: the last pattern decides that fits it or a folder that it is in."""
  parts, left_out = Path(path).parts, False
  for pattern in patterns:
    expression = re.escape(pattern.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
    expression = expression.replace(r"\[", "[").replace(r"\]", "]")
    if any(re.fullmatch(expression, "/".join(parts[:count])) for count in range(1, len(parts) + 1)):
      left_out = not pattern.startswith("!")
  return left_out


@pytest.fixture(scope="module")
def patterns():
  lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
  return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("path", [
  ".git", ".git/config", ".venv/bin/python", "runs/gdsd_math_tiny/metrics.jsonl", ".pytest_cache/jax/program",
  "gdsd_jax/__pycache__/checks.cpython-312.pyc", "gdsd_jax/tasks/__pycache__/base.cpython-312.pyc", "launch/a.pyc",
  "configs/__pycache__/sft.cpython-312.pyc", "build/lib/gdsd_jax/checks.py", "gdsd_jax.egg-info/PKG-INFO",
  "tests/conftest.py", "secrets.env",
])
def test_the_image_has_no_history_environment_runs_or_caches(patterns, path):
  assert ignored(path, patterns)


def test_the_image_has_what_it_needs(patterns):
  needed = [file.relative_to(REPOSITORY) for folder in ("gdsd_jax", "launch", "configs")
            for file in (REPOSITORY / folder).rglob("*") if file.is_file() and "__pycache__" not in file.parts]
  assert len(needed) > 100
  assert [str(file) for file in needed if ignored(str(file), patterns)] == []


def test_the_dockerfile_copies_what_is_in_its_context(patterns, definition):
  lines = (REPOSITORY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
  sources = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
  assert "." in sources and {"setup.py", "README.md"} <= set(sources)
  for source in sources:
    assert (REPOSITORY / source).exists() and (source == "." or not ignored(source, patterns))
  installed = next(line for line in lines if "apt-get install" in line)
  assert "bubblewrap" in installed
  extras = re.search(r"^ARG EXTRAS=(.+)$", "\n".join(lines), re.MULTILINE)[1].split(",")
  assert {"cuda", "tpu", *extras} <= definition["extras_require"].keys()


# ------------------------------------------------------------------------------------------------------ the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The wheel of a copy of the repository, which is left as it is."""
  folder = tmp_path_factory.mktemp("wheel")
  (folder / "code" / "runs").mkdir(parents=True)
  for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(REPOSITORY / name, folder / "code")
  for name in ("gdsd_jax", "launch", "configs", "tests"):
    shutil.copytree(REPOSITORY / name, folder / "code" / name, symlinks=True)
  (folder / "code" / "docs").mkdir()
  shutil.copy(REPOSITORY / "docs" / "metrics.md", folder / "code" / "docs")  # a page of a run has its explanations
  (folder / "code" / "runs" / "left.json").touch()
  build = [sys.executable, "-m", "pip", "wheel", str(folder / "code"), "--no-deps", "--quiet", f"--wheel-dir={folder}"]
  subprocess.run(build, check=True, timeout=500)
  (built,) = folder.glob("*.whl")
  return built


@pytest.mark.slow
def test_the_wheel_has_code_recipes_and_assets_alone(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  assert {f"gdsd_jax/configs/{name}.py" for name in RECIPES} <= names
  assert {f"gdsd_jax/launch/{name}.py" for name in SCRIPTS} <= names
  for file in (REPOSITORY / "gdsd_jax").glob("*/assets/**/*"):
    assert not file.is_file() or str(file.relative_to(REPOSITORY)) in names
  assert {name.split("/")[0].partition("-")[0] for name in names} == {"gdsd_jax"}
  assert not [name for name in names if "test" in name.split("/")[1] or "runs/left" in name or "__pycache__" in name]


@pytest.mark.slow
def test_an_installed_wheel_trains_evaluates_and_exports_in_another_folder(wheel, tmp_path):
  subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "new"], check=True)
  install = [sys.executable, "-m", "pip", f"--python={tmp_path / 'new'}", "install", "--no-deps", "--quiet", wheel]
  environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
  subprocess.run(install, check=True, env=environment)
  # What the package needs is where these tests have it; the clone that they run in, if it is installed there, is not.
  (packages,) = (tmp_path / "new").glob("lib/python3.*/site-packages")
  (packages / "others.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
  folder = tmp_path / "elsewhere"
  folder.mkdir()

  def run(command, *arguments):
    done = subprocess.run([tmp_path / "new" / "bin" / command, *arguments], cwd=folder, capture_output=True, text=True,
                          timeout=500, env=environment | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stderr
    return done.stdout

  few = [f"--config.{field}" for field in ("prompts_per_step=1", "objective.num_iterations=1", "eval.num_examples=8")]
  run("gdsd-train", "--config=gdsd_math:tiny", "--config.steps=1", "--config.eval.batch_size=8", *few)
  assert [row["step"] for row in read_rows(folder / "runs" / "gdsd_math_tiny" / "metrics.jsonl")] == [0, 1]
  run("gdsd-evaluate", "--config=gdsd_math", "--workdir=runs/gdsd_math_tiny", "--num_examples=4")
  run("gdsd-export", "--workdir=runs/gdsd_math_tiny", "--out=exported")
  assert (folder / "exported" / "model.safetensors").is_file()
  where = run("python", "-c", "import gdsd_jax; print(gdsd_jax.__file__)").strip()
  assert Path(where).is_relative_to(tmp_path / "new")

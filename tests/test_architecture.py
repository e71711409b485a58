"""The house: each folder tells one story and imports from the floors below its own alone (docs/architecture.md)."""

import ast
import graphlib
from pathlib import Path
import re

from conftest import REPOSITORY
import pytest

# From the top down; folders and files of one floor never import each other.
FLOORS = (
  ("launch",),
  ("gdsd_jax.planning", "gdsd_jax.benchmark", "gdsd_jax.exact", "gdsd_jax.chat"),
  ("gdsd_jax.command",),
  ("gdsd_jax.command_help",),
  ("gdsd_jax.page",),
  ("gdsd_jax.comparison",),
  ("gdsd_jax.training", "gdsd_jax.supervised", "gdsd_jax.evaluation", "configs"),
  ("gdsd_jax.generation", "gdsd_jax.runs"),
  ("gdsd_jax.diffusion", "gdsd_jax.objectives", "gdsd_jax.huggingface"),
  ("gdsd_jax.models", "gdsd_jax.tasks"),
  ("gdsd_jax.parallel", "gdsd_jax.sandbox"),
  ("gdsd_jax.own_code", "gdsd_jax.paths", "gdsd_jax.compiling"),
  ("gdsd_jax.checks", "gdsd_jax.signals"),
  ("gdsd_jax.waiting",),
  ("gdsd_jax.screen",),
)
WITHOUT_JAX = ("gdsd_jax.tasks", "gdsd_jax.sandbox")
_JAX = re.compile(r"(jax|jaxlib|flax|optax|orbax|chex)(\.|$)")


def modules(root: Path = REPOSITORY) -> dict[str, Path]:
  """Every file of the product, by its dotted name; gdsd_jax/__init__.py, the face of the house, is on no floor."""
  files = [file for top in ("gdsd_jax", "launch", "configs") for file in sorted((root / top).rglob("*.py"))]
  named = {".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files}
  return {name: file for name, file in named.items() if name != "gdsd_jax"}


def imports(name: str, source: str, known) -> set[str]:
  """Modules that a file imports, those inside functions and those that `importlib` is given by name included."""
  found = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{name}: relative imports hide where a name comes from"
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in known:
      found.add(node.value)  # loaded by its name when it is asked for
  return {_module_of(dotted, known) for dotted in found} - {name}


def _module_of(dotted: str, known) -> str:
  """`gdsd_jax.models.lora` of `gdsd_jax.models.lora.merge`; other people's modules as they are."""
  parts = dotted.split(".")
  candidates = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
  return next((candidate for candidate in candidates if candidate in known), dotted)


def floor_of(module: str) -> tuple[int, str]:
  """(floor counted from the top, folder) of a module of ours."""
  for floor, folders in enumerate(FLOORS):
    for folder in folders:
      if module == folder or module.startswith(f"{folder}."):
        return floor, folder
  raise AssertionError(f"{module}: is on no floor; say in FLOORS, and in docs/architecture.md, which story it tells")


def violations(name: str, imported: set[str]) -> list[str]:
  """What a file imports and may not."""
  floor, folder = floor_of(name)
  wrong = []
  for module in sorted(imported):
    if module.startswith(("gdsd_jax", "launch", "configs")):
      if module == "gdsd_jax":
        wrong.append(f"{name} imports gdsd_jax itself, the face of the house; name the file")
        continue
      below, other = floor_of(module)
      if other != folder and below <= floor:
        wrong.append(f"{name} imports {module}, which is not below it")
    if folder in WITHOUT_JAX and _JAX.match(module):
      wrong.append(f"{name} imports {module}: {folder} knows no JAX")
  return wrong


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
  files = modules()
  return {name: imports(name, file.read_text(), files) for name, file in files.items()}


def test_every_file_imports_from_the_floors_below_alone(graph):
  assert [line for name, imported in graph.items() for line in violations(name, imported)] == []


def test_no_files_import_each_other_in_a_circle(graph):
  list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the circle


def test_every_folder_of_the_floors_is_there():
  assert {folder for _, folder in map(floor_of, modules())} == {folder for floor in FLOORS for folder in floor}


@pytest.mark.parametrize("name,line", [
  ("gdsd_jax.models.lora", "from gdsd_jax.objectives.scores import Scores"),
  ("gdsd_jax.runs.files", "def read():\n  from gdsd_jax.training import trainer"),
  ("gdsd_jax.diffusion.config", "import gdsd_jax.huggingface.weights"),  # a sibling
  ("gdsd_jax.tasks.base", "import jax.numpy as jnp"),
  ("gdsd_jax.sandbox.pool", "def run():\n  from flax import struct"),
  ("gdsd_jax.generation.rollout", "TRAINER = 'gdsd_jax.training.trainer'"),
  ("gdsd_jax.parallel.mesh", "import gdsd_jax"),
])
def test_an_import_that_goes_up_is_found(name, line):
  files = modules()
  assert violations(name, imports(name, f"{files[name].read_text()}\n{line}\n", files))


def test_a_circle_is_found(graph):
  files = modules()
  back = imports("gdsd_jax.parallel.mesh", "from gdsd_jax.parallel.rows import spread", files)
  with pytest.raises(graphlib.CycleError):
    list(graphlib.TopologicalSorter(graph | {"gdsd_jax.parallel.mesh": back}).static_order())


def test_a_folder_without_a_floor_is_found():
  with pytest.raises(AssertionError, match="on no floor"):
    floor_of("gdsd_jax.utils.helpers")

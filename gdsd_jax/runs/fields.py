"""The fields of a recipe as its dataclasses declare them: their paths, and the comments that explain them."""

import ast
import dataclasses
import functools
import inspect
import io
import textwrap
import tokenize
from typing import NamedTuple

from gdsd_jax.models.lora import LoraConfig
from gdsd_jax.models.quantised import QuantizeConfig
from gdsd_jax.runs.model_config import ModelConfig

_OURS = ("as_given", "own", "options", "made")  # fields of dataclasses that no recipe has
_SECTIONS_OF_MODEL = {"lora": LoraConfig, "quantize": QuantizeConfig}
_MORE = {
  "model.lora.rank": "0: no adapter, all parameters are trained",
  "model.quantize.kind": "None: the weights as they are, in model.dtype",
  "task.name": "which problems, and how they are graded; its own fields beside it: gdsd_jax/tasks and docs/data.md",
}


class Declared(NamedTuple):
  """Where a field of a recipe is declared: a dataclass, and its field."""

  owner: type
  field: dataclasses.Field


def declared(cls) -> dict[str, Declared]:
  """Path -> declaration of every field that a recipe may have, in the order of the dataclasses.

  Of the task, which says itself what it has, there is `task.name` alone.
  """
  found = {}
  for field in dataclasses.fields(cls):
    part = field.metadata.get("fields_of", field.type)
    if cls is ModelConfig and field.name in _SECTIONS_OF_MODEL:
      part = _SECTIONS_OF_MODEL[field.name]
      found |= {f"{field.name}.{path}": place for path, place in declared(part).items()}
    elif cls is ModelConfig and field.name == "lora_path":
      found["lora.path"] = Declared(cls, field)
    elif dataclasses.is_dataclass(part):
      name = field.metadata.get("section", field.name)
      found |= {f"{name}.{path}": place for path, place in declared(part).items()}
    elif field.name not in _OURS:
      found[field.name] = Declared(cls, field)
  return found


def explanations(cls) -> dict[str, str]:
  """Path -> what is said of it beside its declaration, of every field of `declared`."""
  found = {path: comments(owner).get(field.name, "") for path, (owner, field) in declared(cls).items()}
  for path, more in _MORE.items():
    if path in found:
      found[path] = f"{found[path]}; {more}".removeprefix("; ")
  return found


@functools.cache
def comments(cls) -> dict[str, str]:
  """Field -> the comment above it and that at its end, of a dataclass or else of those that it inherits from."""
  found = {}
  for base in reversed([base for base in cls.__mro__ if dataclasses.is_dataclass(base)]):
    source = textwrap.dedent(inspect.getsource(base))
    comments = {
      token.start[0]: (token.string.lstrip("# "), token.line.lstrip().startswith("#"))
      for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type == tokenize.COMMENT
    }
    for node in ast.parse(source).body[0].body:
      if isinstance(node, ast.AnnAssign):
        above, line = [], node.lineno - 1
        while line in comments and comments[line][1]:
          above.insert(0, comments[line][0])
          line -= 1
        beside = [comments[node.end_lineno][0]] if node.end_lineno in comments else []
        found[node.target.id] = " ".join(above + beside) or found.get(node.target.id, "")
  return found

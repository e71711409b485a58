"""The fields of a recipe as its dataclasses declare them: their paths, and the comments that explain them."""

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize

from gdsd_jax.models.lora import LoraConfig
from gdsd_jax.runs.config import ModelConfig, TaskConfig


def explanations(cls) -> dict[str, str]:
  """Path -> what is said of it beside its declaration, of every field of a recipe, in the order of the dataclasses.

  A field of the task, which says itself what it has, is not among them, but `task.name` is.
  """
  found = {}
  for field in dataclasses.fields(cls):
    said = _comments(cls).get(field.name, "")
    part = field.metadata.get("fields_of", field.type)
    if part is TaskConfig:
      found["task.name"] = "the task; its own fields beside it are explained in gdsd_jax/tasks and docs/data.md"
    elif cls is ModelConfig and field.name == "lora":
      found |= {f"lora.{path}": text for path, text in explanations(LoraConfig).items()}
      found["lora.rank"] += "; 0: no adapter, all parameters are trained"
    elif cls is ModelConfig and field.name == "lora_path":
      found["lora.path"] = said
    elif dataclasses.is_dataclass(part):
      name = field.metadata.get("section", field.name)
      found |= {f"{name}.{path}": text for path, text in explanations(part).items()}
    elif field.init and field.name not in ("as_given", "own"):
      found[field.name] = said
  return found


def _comments(cls) -> dict[str, str]:
  """Field -> the comment above it and that at its end, of a dataclass and of those that it inherits from."""
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
        found[node.target.id] = " ".join(above + beside)
  return found

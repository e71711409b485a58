"""Comments beside fields of dataclasses as docstrings of the reference: the text that --help and recipes show, too."""

import ast
import re

import griffe


class Comments(griffe.Extension):
  """Gives each attribute that has no docstring the comment above it and that at its end."""

  def on_class_members(self, *, node, cls, agent, **kwargs) -> None:
    """Called with a class once all that it holds is known."""
    del agent, kwargs
    if not isinstance(node, ast.AST):
      return
    lines = cls.filepath.read_text().splitlines()
    for attribute in cls.attributes.values():
      if attribute.is_alias or attribute.docstring or not attribute.annotation or attribute.lineno is None:
        continue
      said = [*_above(lines, attribute.lineno), *re.findall(r"  # (.*)$", lines[attribute.endlineno - 1])]
      if said:
        attribute.docstring = griffe.Docstring(" ".join(said), parent=attribute)


def _above(lines: list[str], number: int) -> list[str]:
  found = []
  while re.match(r"\s*# ", lines[number - 2 - len(found)]):
    found.append(lines[number - 2 - len(found)].strip().removeprefix("# "))
  return found[::-1]

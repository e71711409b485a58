"""Which lines of code an instruction of optimised HLO comes from, by the stack frames that XLA writes into the text."""

from pathlib import Path
import re

from gdsd_jax.planning.hlo import Instruction

_PACKAGE = Path(__file__).parents[1]


class CodeLines:
  """The stack frames at the head of a module's text; of an instruction, the lines that are the package's or a user's.

  JAX's frames and those of other libraries are left out.
  """

  def __init__(self, text: str):
    tables = {name: dict(re.findall(r"^(\d+) (.+)$", rows, re.M)) for name, rows in re.findall(
      r"^(FileNames|FunctionNames|FileLocations|StackFrames)\n((?:\d+ .+\n)*)", text, re.M)}
    unquoted = lambda name: {number: row.strip('"') for number, row in tables.get(name, {}).items()}
    files, functions = unquoted("FileNames"), unquoted("FunctionNames")
    number = lambda row, field: re.search(rf"\b{field}=(\d+)", row)[1]
    self._locations = {
      key: (files[number(row, "file_name_id")], int(number(row, "line")), functions[number(row, "function_name_id")])
      for key, row in tables.get("FileLocations", {}).items()}
    self._frames = {int(key): (number(row, "file_location_id"), int(number(row, "parent_frame_id")))
                    for key, row in tables.get("StackFrames", {}).items()}

  def of(self, instruction: Instruction) -> tuple[str, ...]:
    """As models/transformer.py:140 mlp, innermost first; empty where XLA noted none."""
    frame, lines = int(instruction.attribute(r"\bstack_frame_id=(\d+)", "0")), []
    while frame in self._frames:
      location, parent = self._frames[frame]
      file, line, function = self._locations[location]
      if (shown := _shown(Path(file))) is not None:
        lines.append(f"{shown}:{line} {function.replace('.<locals>', '')}")
      frame = parent - 1  # as XLA writes it: one more than the parent's number, and of a root 1
    return tuple(lines)


def _shown(file: Path) -> Path | None:
  if file.is_relative_to(_PACKAGE):
    return file.relative_to(_PACKAGE)
  return None if {"site-packages", "dist-packages"} & set(file.parts) else file

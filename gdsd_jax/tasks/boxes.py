r"""What stands in the boxes of a text in LaTeX: `\boxed{…}`, and `\fbox{…}` where there is no other."""

import dataclasses
import re

# No regular expression finds a whole box: where many are never closed, it takes quadratic time.
_TOKENS = {command: re.compile(rf"\\{command}(?P<gap>\s*)(?P<opens>\{{)?|[{{}}]") for command in ("boxed", "fbox")}
# "\boxed 12$" is a box, while "the \boxed form" and "in \boxed." speak of one.
_WORDS = re.compile(r"[A-Za-z]{2,}(?=[\s:.,;!?)]|\Z)|[A-Za-z](?=\s+[A-Za-z]{2})|[.,:;!?)](?=\s|\Z)")


@dataclasses.dataclass
class Box:
  """Where the content of a box lies in its text."""

  start: int
  end: int | None = None  # None: it is never closed
  first_brace: int | None = None  # the first closing brace after the start, whatever that one closes
  has_gap: bool = False  # before the brace, as in "\\boxed {12}"
  is_bare: bool = False  # without braces: it ends at a dollar sign, or with the text


def boxes(text: str, command: str = "boxed") -> list[Box]:
  r"""All boxes of a command, `\boxed` or `\fbox`, by where they start."""
  if f"\\{command}" not in text:
    return []
  found, opened, since_brace = [], [], []
  for token in _TOKENS[command].finditer(text):
    if token[0] == "{":
      opened.append(None)
    elif token[0] == "}":
      for box in since_brace:
        box.first_brace = token.start()
      since_brace.clear()
      if opened and (box := opened.pop()):
        box.end = token.start()
    elif token["opens"]:
      found.append(Box(token.end(), has_gap=token["gap"] != ""))
      opened.append(found[-1])
      since_brace.append(found[-1])
    elif token["gap"] and not _WORDS.match(text, token.end()):
      found.append(Box(token.end(), is_bare=True))
  return found


def boxed(text: str, command: str = "boxed") -> str | None:
  r"""The content of the last box; None where nothing is boxed, or the last box is never closed.

  A bare box such as `\boxed 12$` precedes those with braces, as in the official code.
  """
  found = boxes(text, command)
  last = next((box for box in reversed(found) if box.is_bare), found[-1] if found else None)
  if last is None or last.is_bare:
    return last and text[last.start:].partition("$")[0]
  return None if last.end is None else text[last.start:last.end]


def unboxed(text: str) -> str | None:
  r"""As `boxed`, or else the content of the last `\fbox`, or else, where nothing is boxed, all of the text."""
  for command in _TOKENS:
    if boxes(text, command):
      return boxed(text, command)
  return text

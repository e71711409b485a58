"""How every path, address and hub name that users write is read: one rule for all flags and config fields."""

import os
from pathlib import Path
import re
import urllib.parse

from gdsd_jax.checks import require

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_ONE_SLASH = re.compile(r"(gs|s3|hf|file|https?):/(?!/)")  # what path libraries make of an address
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")


def scheme_of(text: str | os.PathLike) -> str:
  """The scheme of an address such as gs://BUCKET/FOLDER, in small letters; empty for a path on this machine."""
  found = _SCHEME.match(os.fspath(text))
  return found[1].lower() if found else ""


def expanded(value: str | os.PathLike, field: str) -> str:
  """A path or address as it is meant: `~` is a home, file:// is this machine, slashes at the end say nothing.

  Raises ValueError, which names the field, where it is empty, has a variable that nobody has put in, or is an address
  that lost a slash: each would make a folder of that name.
  """
  text = os.fspath(value)
  require(isinstance(text, str) and text.strip() != "" and "\0" not in text, field, f"{text!r} is no path")
  broken = _ONE_SLASH.match(text)
  require(not broken, field, f"{text} lacks a slash; write {broken and broken[1]}://{broken and text[broken.end():]}")
  if scheme_of(text) == "file":
    address = urllib.parse.urlsplit(text)
    text = urllib.parse.unquote(address.path)
    require(address.netloc in ("", "localhost") and text != "", field,
            f"{value} names another machine; a local file is file:///PATH, or its path alone")
  if scheme_of(text):
    return text.rstrip("/") if text.count("/") > 2 and not text.endswith("://") else text
  if text.startswith("~"):
    home = os.path.expanduser(text)
    user = text.split("/")[0][1:]
    said = f"there is no user {user!r}" if user else "there is no home folder; HOME names one"
    require(home != text or os.path.lexists(text), field, f"{text}: {said}")
    text = home
  variable = _VARIABLE.search(text)
  require(variable is None or os.path.lexists(text), field,
          f"{text}: {variable and variable[0]} stands for nothing here; let the shell put its value in")
  return text.rstrip("/") or "/"


def local_path(value: str | os.PathLike, field: str) -> Path:
  """A path on this machine. Raises ValueError for an object store's address, and as `expanded`."""
  text = expanded(value, field)
  require(not scheme_of(text), field, f"{text} must be a local folder")
  return Path(text)

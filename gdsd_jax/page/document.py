"""One self-contained HTML file of data, our CSS and JavaScript, and the chart library.

Nothing of the user's becomes markup or code. Data are JSON in a script element that no browser runs, shown through
textContent alone; and a content security policy forbids every script but those of this file, and every request.
"""

import base64
import functools
import gzip
import hashlib
import html
import importlib.util
import json
import math
from pathlib import Path
from string import Template
from typing import Any

from gdsd_jax.checks import require

_ASSETS = Path(__file__).parent / "assets"
# In the order in which they are read; later ones use earlier ones.
_SCRIPTS = ("dom", "place", "theme", "tokens", "replay", "rollouts", "charts", "tables", "curves", "main")


def page(title: str, data: Any, charts: bool = True) -> str:
  """A page of `data`, which assets/main.js reads.

  Args:
    title: that of the browser's window.
    data: JSON values; numbers that are none become null.
    charts: whether the page draws charts; without, it is smaller and plotly need not be installed.

  Raises ValueError, one line, where plotly is missing.
  """
  ours = "\n".join(_asset(f"{name}.js") for name in _SCRIPTS)
  library, library_hash = _library() if charts else ("", "")
  policy = ("default-src 'none'; base-uri 'none'; form-action 'none'; img-src data: blob:; style-src 'unsafe-inline';"
            f" script-src {_hash(ours)} {library_hash}")
  # A title of broken text, of a folder's name say, must not break the file.
  safe_title = html.escape(title).encode("ascii", "xmlcharrefreplace").decode()
  return Template(_asset("page.html")).substitute(
    title=safe_title, policy=policy, style=_asset("page.css"), data=as_json(data), library=library, script=ours)


def as_json(data: Any) -> str:
  """JSON of plain characters that can stand within an element: no text in it ends that, or begins another."""
  return json.dumps(finite(data), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def finite(data: Any) -> Any:
  """Data with None in place of numbers that are infinite or none, which are no JSON."""
  if isinstance(data, float):
    return data if math.isfinite(data) else None
  if isinstance(data, dict):
    return {str(name): finite(value) for name, value in data.items()}
  if isinstance(data, list | tuple):
    return [finite(value) for value in data]
  return data


def check_library() -> None:
  """Raises ValueError, one line, where the chart library is not installed."""
  require(importlib.util.find_spec("plotly") is not None, "report",
          "the charts are drawn by plotly, which is not installed; pip install 'gdsd_jax[report]'")


@functools.cache
def _library() -> tuple[str, str]:
  """plotly.js, compressed, as text; and its hash, by which the policy lets it run."""
  check_library()
  (folder,) = importlib.util.find_spec("plotly").submodule_search_locations
  code = (Path(folder) / "package_data" / "plotly.min.js").read_bytes()
  return base64.b64encode(gzip.compress(code, mtime=0)).decode(), _hash(code.decode())


@functools.cache
def _asset(name: str) -> str:
  return (_ASSETS / name).read_text()


def _hash(script: str) -> str:
  return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"

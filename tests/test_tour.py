"""The notebook examples/tour.ipynb: as it is kept, and executed again."""

import base64
import re

from conftest import REPOSITORY
import nbformat
import pytest

FILE = REPOSITORY / "examples" / "tour.ipynb"


def read(file=FILE):
  notebook = nbformat.read(file, as_version=4)
  nbformat.validate(notebook)
  return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cells) -> str:
  return "".join(output.text for cell in cells for output in cell.outputs if output.output_type == "stream")


def pictures(cells) -> list[bytes]:
  return [base64.b64decode(output.data["image/png"]) for cell in cells for output in cell.outputs
          if "image/png" in output.get("data", {})]


def check_outputs(cells):
  assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
  assert all(output.output_type != "error" for cell in cells for output in cell.outputs)
  assert len(pictures(cells)) == 2
  found = re.findall(r"^eval/(accuracy|reward): (\S+) before, (\S+) after$", printed(cells), re.MULTILINE)
  assert [name for name, *_ in found] == ["accuracy", "reward"]
  assert all(float(after) > float(before) + 0.1 for _, before, after in found)


def test_the_notebook_was_executed_from_top_to_bottom_and_is_small():
  notebook, cells = read()
  check_outputs(cells)
  assert FILE.stat().st_size < 100_000
  assert not re.search(r"/(tmp|home|root|work)/", FILE.read_text())  # where it was executed is nobody's business
  prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
  for link in re.findall(r"\]\((?!https?:)([^)]+)\)", prose):
    assert (FILE.parent / link).exists(), link


@pytest.mark.slow
def test_the_notebook_runs_again(tmp_path, monkeypatch):
  nbclient = pytest.importorskip("nbclient")
  monkeypatch.setenv("XLA_FLAGS", "")  # compiled as a user's is, faster
  monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
  notebook, cells = read()
  for cell in cells:
    cell.outputs, cell.execution_count = [], None
  nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": tmp_path}}).execute()
  check_outputs(cells)
  assert (tmp_path / "runs" / "tour" / "metrics.jsonl").exists()

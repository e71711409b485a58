"""README.md and docs/ against the code: links, files that they name, flags and fields that they show."""

import importlib
import re
import runpy

from conftest import REPOSITORY
import pytest

from gdsd_jax.objectives.named import settings
from gdsd_jax.runs.config import RunConfig
from gdsd_jax.runs.fields import declared

PAGES = {file.relative_to(REPOSITORY).as_posix(): file.read_text()
         for file in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")),
                      REPOSITORY / "examples" / "README.md"]}
TEXT = "\n".join(PAGES.values()).replace("\\\n", " ")  # a command a line


def anchors(text):
  titles = re.findall(r"^#+ (.*)", text, re.MULTILINE)
  return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere_and_each_page_is_linked():
  linked = set()
  for page, text in PAGES.items():
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]+)#?([^)]*)\)", text):
      file = ((REPOSITORY / page).parent / target).resolve()
      assert file.exists(), f"{page}: {target}"
      assert not anchor or anchor in anchors(file.read_text()), f"{page}: {target}#{anchor}"
      linked.add(file)
  assert not [page for page in PAGES if page != "README.md" and (REPOSITORY / page).resolve() not in linked]


def test_the_readme_is_short():
  assert len(PAGES["README.md"].splitlines()) < 120  # the rest belongs to the site


def test_files_of_ours_that_pages_name_are_there():
  inside = [REPOSITORY / "tests", *(REPOSITORY / "gdsd_jax").iterdir()]
  folders = "|".join(file.name for file in inside if file.is_dir())
  named = re.findall(rf"`(?:gdsd_jax/)?((?:{folders})/\w+\.\w+)`", TEXT)
  assert len(named) > 20
  assert not [name for name in named if not any((REPOSITORY / root / name).exists() for root in (".", "gdsd_jax"))]


COMMANDS = "train evaluate export pretrain compile benchmark compare exact report sample"


@pytest.mark.parametrize("command", COMMANDS.split())
def test_commands_have_the_flags_that_pages_show(command):
  known = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', (REPOSITORY / "launch" / f"{command}.py").read_text())
  said = re.findall(rf"(?:launch/{command}\.py|gdsd-{command}\b)([^|#&`\n]*)", TEXT)
  assert len(said) > 1
  assert set(re.findall(r" --(\w+)", " ".join(said))) <= {*known, "config"}


def test_recipes_have_the_fields_that_pages_show():
  known = {f"objective.{name}" for name in settings()}
  for recipe in ("gdsd_math", "sft", "vrpo"):
    known |= set(fields(importlib.import_module(f"gdsd_jax.configs.{recipe}").get_config("tiny").to_dict()))
  # docs/own.md has fields of users' own, and tasks' are theirs, too.
  text = "\n".join(text for page, text in PAGES.items() if page != "docs/own.md")
  shown = {field for field in re.findall(r"--config\.([a-z_.]+)=", text) if not field.startswith("task.")}
  assert len(shown) > 30
  assert shown <= known


def test_messages_that_are_explained_are_those_of_the_code():
  source = "".join(file.read_text() for file in (REPOSITORY / "gdsd_jax").rglob("*.py"))
  source = re.sub(r"\"\n\s*f?\"", "", source)  # a message in several literals
  page = PAGES["docs/failing.md"].partition("## Nothing is learnt")[0]
  said = [message for message in re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)]
  values = r"…|\bN\b|\b5\b|(?:--config\.)?objective\.psi"  # what a message is filled in with
  parts = [part.strip(" ;:()=") for message in said for part in re.split(values, message)]
  assert len(said) > 10
  assert [part for part in parts if part not in source] == []


def test_every_metric_has_what_is_healthy():
  rows = [line for line in PAGES["docs/metrics.md"].splitlines() if line.startswith("| `")]
  assert len(rows) > 40
  assert [row for row in rows if not re.fullmatch(r"\| `.+` \| .+ \| .+ \| .{4,} \|", row)] == []


def test_every_config_field_has_its_line():
  written = runpy.run_path(str(REPOSITORY / "docs" / "config_fields.py"))
  page = PAGES["docs/config_fields.md"]
  assert page == written["page"](), "python docs/config_fields.py writes it anew"
  rows = re.findall(r"^\| `([\w.]+)` \|(?: .* \|)? .*?\| (.+) \|$", page, re.MULTILINE)
  named = {path for path, said in rows if said.strip()} | set(re.findall(r"`([\w.]+)`", "".join(
    line for line in page.splitlines() if line.startswith("As above: "))))
  for cls in (RunConfig, *(cls for cls, _ in written["OTHERS"].values())):
    assert declared(cls).keys() <= named


def fields(section, prefix=""):
  for name, value in section.items():
    yield prefix + name
    if isinstance(value, dict):
      yield from fields(value, f"{prefix}{name}.")

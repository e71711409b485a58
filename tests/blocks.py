"""The blocks between fences of README.md and docs/, and what is said of them in a comment right above.

No comment: the block runs. `<!-- slow -->`: Python that runs with the commands alone, by pytest -m slow.
`<!-- not run: REASON -->`: what it needs no test has, be it hardware, a network, a data file or days.

The blocks of a page run in order in a folder of the page's own, where this repository's launch/, configs/ and examples/
are. A block with a title is written to a file of that name. Each shell block begins in that folder again, each Python
block goes on with the names of those before it. Commands get the arguments of FEWEST besides.
"""

from pathlib import Path
import re
import shlex
import sys
from typing import NamedTuple

from conftest import REPOSITORY

# For each command that takes long: what has it do as little as shows that it works.
FEWEST = {
  "train": "--config.steps=1 --config.prompts_per_step=1 --config.eval.num_examples=8 --config.eval.batch_size=8",
  "pretrain": "--config.steps=2",
  "evaluate": "--num_examples=8",
  "exact": "--only=objectives --objectives=gdsd --seeds=2 --tuning_seeds=1 --rates=0.003 --steps=2 --pretraining=50"
  " --length=4 --block_length=2",
}
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^(?:<!-- (?P<mark>[^\n]*?) -->\n)?```(?P<language>\w*)(?: title=\"(?P<title>[^\"]*)\")?\n"
                    r"(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"slow|not run: \w.{8,}")


class Block(NamedTuple):
  """A block, where it is, and what is to be done with it."""

  page: Path
  line: int
  language: str
  title: str | None
  mark: str
  text: str

  @property
  def name(self) -> str:
    return f"{self.page.name}:{self.line}"

  @property
  def runs(self) -> bool:
    """Whether it is a part of its page's program, and not only to be looked at."""
    return self.language in ("bash", "python") and not self.title and not self.mark.startswith("not run")


def blocks_of(page: Path) -> list[Block]:
  """All of a page. Raises ValueError where a mark above one is unknown, or lacks its reason."""
  found, text = [], page.read_text()
  for match in _BLOCK.finditer(text):
    mark, line = match["mark"] or "", text.count("\n", 0, match.start("text"))
    if mark and not _MARK.fullmatch(mark):
      raise ValueError(f"{page.name}, line {line}: <!-- {mark} --> says neither slow nor not run: and a reason")
    found.append(Block(page, line, match["language"], match["title"], mark, match["text"]))
  return found


class Command(NamedTuple):
  """One of ours in a shell block: which, its own arguments, and what is behind " -- "."""

  file: str  # such as launch/train.py
  arguments: list[str]


def commands(text: str) -> list[Command]:
  """Those of ours in the text of a shell block, also where another starts them, as launch/slurm.sh does."""
  found = []
  for words in simple_commands(text):
    starts = [i for i, word in enumerate(words) if re.fullmatch(r"launch/\w+\.(py|sh|sbatch)|gdsd-(?!lm)\w+", word)]
    for start, end in zip(starts, [*starts[1:], None]):
      name = words[start]
      file = f"launch/{name.removeprefix('gdsd-')}.py" if name.startswith("gdsd-") else name
      found.append(Command(file, [word for word in words[start + 1:end] if word.startswith("--") and word != "--"]))
  return found


def simple_commands(text: str) -> list[list[str]]:
  """The words of each command of a shell text, without comments; joined by && or | they are several."""
  found = []
  for line in re.sub(r"\\\n", " ", text).splitlines():
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
    lexer.whitespace_split, words = True, []
    for word in lexer:
      if set(word) <= set("&|;"):
        found, words = [*found, words], []
      else:
        words.append(word)
    found.append(words)
  return [words for words in found if words]


def make_folder(folder: Path) -> Path:
  """Fills a page's folder; returns that of the programs which stand before others on its PATH."""
  for name in ("launch", "configs", "pyproject.toml", "setup.py"):
    (folder / name).symlink_to(REPOSITORY / name)
  for file in (REPOSITORY / "examples").rglob("*"):  # copies: commands write beside them
    if file.is_file() and "__pycache__" not in file.parts:
      copied = folder / file.relative_to(REPOSITORY)
      copied.parent.mkdir(parents=True, exist_ok=True)
      copied.write_bytes(file.read_bytes())
  programs = folder.parent / f"{folder.name}_programs"
  programs.mkdir()
  cases = "".join(f'  launch/{name}.py) set -- "$@" {arguments} ;;\n' for name, arguments in FEWEST.items())
  _program(programs / "python", f'case "$1" in\n{cases}esac\nexec {shlex.quote(sys.executable)} "$@"')
  _program(programs / "pip", 'echo "pip $*: what it installs is here"')
  installed = re.search(r"_COMMANDS = \(([^)]*)\)", (REPOSITORY / "setup.py").read_text())[1]
  for command in re.findall(r'"(\w+)"', installed):
    _program(programs / f"gdsd-{command}", f'exec python launch/{command}.py "$@"')
  return programs


def _program(file: Path, text: str) -> None:
  file.write_text(f"#!/bin/sh\n{text}\n")
  file.chmod(0o755)

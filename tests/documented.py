"""The numbers that docs/metrics.md has in its tables."""

import functools
import re

from conftest import REPOSITORY


@functools.cache
def documented() -> dict[str, list[str]]:
  """Name -> which runs tell it: "all", names of objectives, or what has to be set. NAME stands for that of a reward."""
  rows = re.findall(r"^\| (`.+?`) \| (.+?) \| ", (REPOSITORY / "docs" / "metrics.md").read_text(), re.MULTILINE)
  found = [(name, of.split(", ")) for names, of in rows for name in re.findall(r"`(.+?)`", names)]
  assert len(dict(found)) == len(found), "a number is explained twice"
  return dict(found)


def undocumented(names, *own) -> set[str]:
  """Those of a row's names that the tables do not have, and that are none of the run's `own` rewards."""
  known = set(documented()) | {name.replace("NAME", reward) for name in documented() for reward in own}
  return set(names) - known

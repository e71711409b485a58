r"""Numbers as people and models write them: 1200, $1,200.00, 1{,}200, \frac{2}{3}, 3/4, 2 1/2, 10^3, 1e3, 1.2 × 10^3.

GSM8K's official parser takes what `float` reads, or else a run of digits. Here thousands may be separated, and a
fraction or a power is one number. Digits of any script count, there and here. All work is linear in the text.
"""

import collections
import math
import re

_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,|\{,\}|\\[,;: ]|~|,?\\!|[\u2009\u202f\u00a0])\d{3})+(?!\d)")
_POINTS = re.compile(r"(?<![\d.,])\d{1,3}(?:\.\d{3})+,\d{1,2}(?![\d.,])")  # 1.200,00, as half of the world writes it
_SPACED = re.compile(r"[\s$\\-]*\d{1,3}(?: \d{3})+(?:\.\d*)?\s*")  # all of a text, else "3 100" may be two numbers
_SEPARATOR = re.compile(r"\D+")
# Digits are bounded in fractions and powers: unbounded ones would be tried in quadratically many ways.
_PART = r"\d{1,18}(?:\.\d{1,18})?"
_NUMBER = re.compile(
  r"(?P<sign>-?)(?:"
  rf"(?<![\d.])(?P<whole>\d{{1,18}})? ?\\[dt]?frac ?(?:\{{ ?(?P<above>-?{_PART}) ?\}}|(?P<above_digit>\d))"
  rf" ?(?:\{{ ?(?P<below>-?{_PART}) ?\}}|(?P<below_digit>\d))"
  rf"|(?<![\d./])(?:(?P<before>\d{{1,18}}) )?(?P<left>{_PART}) ?/ ?(?P<right>{_PART})(?!\d|\.\d| ?/)"
  rf"|(?<![\d.])(?:(?P<factor>{_PART}) ?(?:\\times|\\cdot|[×·*]) ?)?(?P<base>{_PART}) ?\^"
  r" ?(?:\{ ?(?P<exponent>-?\d{1,3}) ?\}|(?P<exponent_digit>\d))"
  r"|\d+(?:\.\d*)?|(?<![\d.])\.\d+)")
_MINUS = re.compile(r"−|-\\?\$(?=[\d.])")  # the sign of its own, and that before an amount of money
_DOLLAR = re.compile(r"\s*\\?\$?\s*")


def plain(text: str) -> str:
  """The text with 1,200 and 1.200,00 as 1200, and -$5 as -5. Groups must have three digits: 1,5 stays as it is."""
  if _SPACED.fullmatch(text):
    text = text.strip().replace(" ", "")
  text = _POINTS.sub(lambda match: match[0].replace(".", "").replace(",", "."), text)
  return _GROUPS.sub(lambda match: _SEPARATOR.sub("", match[0]), _MINUS.sub("-", text))


def find_number(text: str, last: bool = False) -> str | None:
  """The first number of a text, or its last one, as it is written there without separators; None where it has none."""
  found = _found(text, last)
  return found and found[0]


def read_number(text: str, last: bool = False) -> float | None:
  """All of the text as a number, or else the first or the last number in it; None where it has none.

  It may be infinite or not-a-number, which equals no answer.
  """
  try:
    return float(text)
  except ValueError:
    found = _found(text, last)
    return found and _value(found)


def whole_number(text: str) -> float | None:
  """The finite number that all of the text is, with or without a dollar sign; None where it is none."""
  text = plain(text.strip())
  match = _NUMBER.fullmatch(text, _DOLLAR.match(text).end())
  value = None if match is None else _value(match)
  return value if value is not None and math.isfinite(value) else None


def announced_number(text: str, phrase: re.Pattern) -> float | None:
  """The number right after the first occurrence of a phrase that one follows, and no list: not 4 in "#### 4,5"."""
  text = plain(text)
  for announced in phrase.finditer(text):
    match = _NUMBER.match(text, announced.end())
    if match and not re.match(r",\d", text[match.end():match.end() + 2]):
      return _value(match)
  return None


def _found(text: str, last: bool) -> re.Match | None:
  matches = _NUMBER.finditer(plain(text))
  first = next(matches, None)
  return next(iter(collections.deque(matches, maxlen=1)), first) if last else first


def _value(match: re.Match) -> float:
  part = match.groupdict()
  above = part["above"] or part["above_digit"] or part["left"]
  below = part["below"] or part["below_digit"] or part["right"]
  try:
    if above is not None:
      value = float(part["whole"] or part["before"] or 0) + float(above) / float(below)
    elif part["base"] is not None:
      power = float(part["base"]) ** int(part["exponent"] or part["exponent_digit"])
      value = float(part["factor"] or 1) * power
    else:
      return float(match[0])
  except (ZeroDivisionError, OverflowError):
    return math.nan
  return -value if part["sign"] else value

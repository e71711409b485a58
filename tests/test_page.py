"""The HTML files that show runs and completions: what is in them; tests/test_page_browser.py opens them."""

import base64
import hashlib
import html.parser
import json
import re

from page_rows import completion, HOSTILE, hostile_row, row
import pytest

from gdsd_jax.page.document import as_json
from gdsd_jax.page.replay import replay_page
from gdsd_jax.page.rollouts import group_of, that_fit


class Elements(html.parser.HTMLParser):
  """What Python's own parser of HTML finds in a page: elements, attributes, and the text of each script."""

  def __init__(self, text):
    super().__init__()
    self.found, self.scripts, self.policy, self._within = [], [], "", False
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.found.append((tag, dict(attributes)))
    if tag == "script":
      self.scripts.append([dict(attributes), ""])
    self._within = tag == "script"
    if dict(attributes).get("http-equiv") == "Content-Security-Policy":
      self.policy = dict(attributes)["content"]

  def handle_data(self, data):
    if self._within:
      self.scripts[-1][1] += data

  def handle_endtag(self, tag):
    self._within = False

  @property
  def data(self):
    return json.loads(next(text for attributes, text in self.scripts if attributes.get("id") == "data"))


def test_texts_of_the_users_make_no_element_and_come_back_as_they_were():
  harmless, hostile = (Elements(replay_page(title, rows)) for title, rows in (
    ("fine", [row(1)]), ("".join(HOSTILE.values()), [hostile_row(1)])))
  assert [tag for tag, _ in hostile.found] == [tag for tag, _ in harmless.found]
  (run,) = hostile.data["runs"]
  completions = run["rollouts"][0]["completions"]
  assert [told["text"] for told in completions] == [f"{text}\n{text}" for text in HOSTILE.values()]


def test_only_the_scripts_of_the_file_may_run_and_nothing_may_be_fetched():
  page = Elements(replay_page("x", [row(1)]))
  rules = dict(rule.strip().split(" ", 1) for rule in page.policy.split(";"))
  assert rules["default-src"] == "'none'" and "connect-src" not in rules and "eval" not in page.policy
  (ours,) = [text for attributes, text in page.scripts if "type" not in attributes]
  digest = base64.b64encode(hashlib.sha256(ours.encode()).digest()).decode()
  assert rules["script-src"].split() == [f"'sha256-{digest}'"]
  addresses = [value for _, attributes in page.found for name, value in attributes.items() if name in ("src", "href")]
  assert addresses == ["data:,"]


def test_numbers_that_are_none_are_null():
  assert as_json({"a": [float("nan"), float("inf"), 1.5], "b": "</x>"}) == '{"a":[null,null,1.5],"b":"\\u003c/x>"}'


@pytest.mark.parametrize("broken", [
  None, 3, [], {}, {"step": 1}, {"completions": None}, {"completions": []}, {"completions": [1, "x"]},
])
def test_what_is_no_group_is_none(broken):
  assert group_of(broken) is None


@pytest.mark.parametrize("change", [
  {"tokens": None}, {"tokens": "abc"}, {"tokens": [1, None, {}]}, {"unmasked": [0]}, {"unmasked": [0.5, 1, 2]},
  {"unmasked": [-1, 1, 10**9]}, {"unmasked": None}, {"confidence": ["x", True, None]}, {"logp": {}}, {"rewards": [1]},
  {"reward": "1"}, {"reward": float("inf")}, {"reward": 10**400}, {"length": None}, {"length": -3}, {"text": None},
  {"text": 5}, {"advantage": True}, {"accuracy": float("nan")},
])
def test_a_completion_of_other_types_is_shown_as_far_as_it_goes(change):
  group = group_of({"completions": [{**completion(["a", "b", "c"]), **change}]})
  (told,) = json.loads(as_json(group))["completions"]
  assert all(isinstance(token, str) for token in told["tokens"]) and isinstance(told["text"], str)
  assert told["unmasked"] is None or all(isinstance(step, int) for step in told["unmasked"])
  for name in ("unmasked", "confidence", "logp"):
    assert told[name] is None or len(told[name]) == len(told["tokens"])
  assert isinstance(told["length"], int) and told["length"] >= 0 and isinstance(told["rewards"], dict)
  assert all(told[name] is None or type(told[name]) in (int, float) for name in ("reward", "accuracy", "advantage"))


def test_groups_that_have_room_are_spread_over_the_run():
  groups = [group_of(row(step)) for step in range(100)]
  size = len(json.dumps(groups[50]))
  kept, left_out = that_fit(groups, 10 * size)
  steps = [group["step"] for group in kept]
  assert {0, 99} <= set(steps) and steps == sorted(steps) and left_out == 100 - len(kept) and 8 <= len(kept) <= 11
  assert max(later - earlier for earlier, later in zip(steps, steps[1:])) <= 25
  assert that_fit(groups, 10**9) == (groups, 0)


def test_of_a_group_that_is_too_long_alone_some_completions_stay():
  group = group_of({"completions": [completion(["word "] * 8000) for _ in range(4)]})
  (kept,), left_out = that_fit([group], len(json.dumps(group)) // 2)
  assert 1 <= len(kept["completions"]) < 4 and kept["left_out"] == 4 - len(kept["completions"]) and left_out == 0


def test_rows_without_a_completion_are_refused():
  with pytest.raises(ValueError, match="^rows: none of them has a completion$"):
    replay_page("x", [{"step": 1}])


def test_scripts_cannot_end_their_element_and_name_no_address():
  page = Elements(replay_page("x", [row(1)]))
  (ours,) = [text for attributes, text in page.scripts if "type" not in attributes]
  assert not re.search(r"<!--|</script|https?://|innerHTML|outerHTML|insertAdjacentHTML|\beval\(", ours)

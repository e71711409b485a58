"""The picture of a chat for docs/sample.md: python docs/screenshots/sample.py.

Needs Chromium (apt install chromium), playwright, and a monospaced font. Writes sample.png beside this file: an answer
of the embedded model, and another one half-way.
"""

import io
from pathlib import Path
import re
import shutil

from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.text import Text

from gdsd_jax.chat.answers import Answering, View
from gdsd_jax.chat.config import sample_config
from gdsd_jax.chat.live import LiveView
from gdsd_jax.chat.once import Screen
from gdsd_jax.runs.chosen_model import ChosenModel
from gdsd_jax.runs.given import load_config

QUESTIONS = ("Tom has 3 apples and buys 2 more. How many apples does Tom have?",
             "A box holds 9 coins. Eva takes out 4. How many coins are in the box?")
HALF_WAY = 10  # after so many of the 16 steps
SEEDS = (5, 6)


class Seen(View):
  """Keeps the states of an answer."""

  def __init__(self):
    self.states = []

  def see(self, *state):
    self.states.append(state)

  def __exit__(self, *_):
    pass


def chat() -> str:
  """The screen as SVG."""
  config = sample_config(load_config("gdsd_math:tiny"), {}, ChosenModel())
  answering = Answering(config, ChosenModel())
  console = Console(record=True, width=90, file=io.StringIO(), force_terminal=True, markup=False, highlight=False)
  screen, seen = Screen(console, live=False), Seen()
  ask = lambda question, seed: answering.answer(
    answering.prompt([{"role": "user", "content": question}], config.sampler), config.sampler, seed, seen)
  ask(QUESTIONS[0], 0)  # which compiles
  screen.say(f"> {QUESTIONS[0]}", "")
  screen.show(answering, ask(QUESTIONS[0], SEEDS[0]))
  seen.states.clear()
  ask(QUESTIONS[1], SEEDS[1])
  screen.say(f"> {QUESTIONS[1]}", "")
  console.print(Text("\n").join(LiveView(console, answering, config.sampler).lines(*seen.states[HALF_WAY])))
  return console.export_svg(title="gdsd-sample --config=gdsd_math:tiny")


def main() -> None:
  svg = re.sub(r"@font-face \{.*?\n    \}\n", "", chat(), flags=re.DOTALL)  # no font from a network
  with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_content(f"<body style='margin:0'>{svg}</body>")
    page.locator("svg").screenshot(path=Path(__file__).with_suffix(".png"), omit_background=True)
    browser.close()


if __name__ == "__main__":
  main()

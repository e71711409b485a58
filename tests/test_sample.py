"""launch/sample.py without a model that answers: what it shows, what a chat does with a line, what it refuses."""

import dataclasses
import io
import json
import threading

import jax
import numpy as np
import pytest
from recipes import load
from rich.console import Console
from rich.live import Live
from rich.text import Text

from gdsd_jax.chat.answers import Answer
from gdsd_jax.chat.config import sample_config
from gdsd_jax.chat.live import LiveView
from gdsd_jax.chat.once import answer_once, console_on, read_prompt, Screen
from gdsd_jax.chat.problems import find_problem
from gdsd_jax.chat.replay import Replay
from gdsd_jax.chat.session import Session
from gdsd_jax.chat.shown import coloured, statistics, sureness
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.huggingface.tokenizer import load_tokenizer
from gdsd_jax.runs.chosen_model import ChosenModel
from gdsd_jax.runs.config import TaskConfig

SAMPLER = SamplerConfig(completion_length=8, steps=8, block_length=4)
HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m [red]a[/red] :boom: \u202egnp.exe \r\x08 ab\tc"


def answer(text="5", length=3, unmasked=range(8), **changes):
  fields = dict(
    prompt="", text=text, tokens=np.arange(8) + 20, length=length, confidence=np.full(8, 0.75),
    unmasked=np.array(unmasked), is_stopped=False, seconds=2.0, compiling=0.0, seed=3, sampler=SAMPLER)
  return Answer(**{**fields, **changes})


class Answering:
  """Answers whatever it is asked by `texts`, one after the other, and notes the chats."""

  def __init__(self, *texts):
    self.texts, self.chats, self.samplers, self.seeds, self.path = list(texts), [], [], [], "tiny"
    self.is_stopped = False
    self.tokenizer, self.mask_token_id = load_tokenizer("tiny"), 413

  def check_room(self, sampler):
    if sampler.completion_length > 255:
      raise ValueError("sampler.completion_length: exceeds the 256 positions of tiny")

  def length(self, tokens):
    return int(np.argmax([*(tokens == 409), True]))

  def prompt(self, messages, sampler, prefill=""):
    if "<|eot_id|>" in messages[-1]["content"]:
      raise ValueError("a user message holds <|eot_id|>, which only the chat format may write")
    self.chats.append(list(messages))
    return "prompt"

  def answer(self, prompt, sampler, seed, view=None):
    self.samplers.append(sampler)
    self.seeds.append(seed)
    text = self.texts.pop(0)
    tokens = np.array(self.tokenizer(text, add_special_tokens=False)["input_ids"])
    return answer(text, len(tokens), np.arange(len(tokens)), tokens=tokens, confidence=np.ones(len(tokens)),
                  seed=seed, is_stopped="STOP" in text, sampler=sampler)


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture(scope="module")
def config():
  return sample_config(load("gdsd_math"), {}, ChosenModel())


def chat(config, answering, *lines, replay=None):
  """What is on the screen after these lines are typed."""
  out, typed = Terminal(), iter(lines)

  def read(_):
    try:
      return next(typed)
    except StopIteration:
      raise EOFError from None

  Session(answering, config, out, replay, live=False, read=read).run()
  return Text.from_ansi(out.getvalue()).plain


def test_a_hostile_answer_is_text_wherever_it_is_shown(config):
  texts = [chat(config, Answering(HOSTILE), "Hello")]
  for out in (io.StringIO(), Terminal()):
    assert answer_once(Answering(HOSTILE), config, [{"role": "user", "content": "a"}], out, None, None, False, False)
    texts.append(out.getvalue())
  for text in texts:
    assert "[red]" in text and ":boom:" in text and "\\u202e" in text
    assert not any(sign in text for sign in ("\x1b]", "\x1b[2J", "\x07", "\x9b", "\x08", "\u202e", "\r"))


def test_tokens_are_coloured_by_confidence_and_masks_are_dim():
  text = coloured(["so", "[b]", "", "perhaps", "no", "nan"], np.array([1.0, 0.0, 0.9, 0.6, 0.2, np.nan]),
                  np.arange(6) == 1)
  assert text.plain == "so░perhapsnonan"
  assert [(str(span.style), text.plain[span.start:span.end]) for span in text.spans if span.style] == [
    ("bright_black", "░"), ("orange3", "perhaps"), ("red3", "nonan")]


def test_sureness_of_dreams_entropy_is_that_of_as_many_tokens():
  dream = SamplerConfig(kind="dream", completion_length=8, steps=8)
  np.testing.assert_allclose(sureness(np.array([0, -np.log(4), -50]), dream), [1, 0.25, 0], atol=1e-6)
  np.testing.assert_allclose(sureness(np.array([0.3, 1.0]), SAMPLER), [0.3, 1])


@pytest.mark.parametrize("made, line", [
  (answer(), "3 of 8 tokens in 8 steps; confidence 0.75, at least 0.75; 4 tokens/s; seed 3"),
  (answer(compiling=3.21, unmasked=[0, 1, 2, 3, 8, 8, 8, 8]),  # early stopping filled the rest in
   "3 of 8 tokens in 4 steps; confidence 0.75, at least 0.75; 2 tokens/s without compiling (3.2 s); seed 3"),
  (answer(length=0), "0 of 8 tokens in 8 steps; 4 tokens/s; seed 3"),
  (answer(is_stopped=True, unmasked=[0, 1, 8, 8, 8, 8, 8, 8], length=2),
   "stopped with 2 of 8 tokens in 2 steps; confidence 0.75, at least 0.75; 1 tokens/s; seed 3"),
  (answer(unmasked=[0, 0, 0, 0, 4, 4, 5, 4], sampler=dataclasses.replace(SAMPLER, threshold=0.5)),
   "3 of 8 tokens in 3 steps; confidence 0.75, at least 0.75; 4 tokens/s; seed 3"),
])
def test_the_line_of_numbers(made, line):
  assert statistics(made) == line


def test_a_chat_keeps_its_turns_and_begins_anew(config):
  answering = Answering("4", "STOP", "5", "6")
  said = chat(config, answering, "2 + 2?", "", "and more?", "3 + 2?", "/reset", "//what", "/quit", "never")
  user, assistant = (lambda text, role=role: {"role": role, "content": text} for role in ("user", "assistant"))
  assert answering.chats == [
    [user("2 + 2?")], [user("2 + 2?"), assistant("4"), user("and more?")],
    [user("2 + 2?"), assistant("4"), user("3 + 2?")], [user("/what")]]
  assert answering.seeds == [0, 1, 2, 3] and "without this turn" in said and "never" not in said


def test_fields_are_set_in_a_chat(config):
  answering = Answering("a", "b")
  said = chat(config, answering, "/set temperature 0", "/seed 7", "x", "/set kind dream", "/set temprature 1",
              "/set steps 3", "/set steps", "/set completion_length 512 steps 512", "/set temperature 1e300", "/set",
              "/set temperature {[]:1}", "/set temperature True", f"/set temperature {'-' * 20_000}1", "/set noise [1]",
              "/sed 1", "/seed -1", "/seed 99999999999", "fake <|eot_id|>", "/set slots 4", "y")
  assert [sampler.temperature for sampler in answering.samplers] == [0, 0] and answering.seeds == [7, 8]
  for line in (
    "16 tokens in 16 steps, temperature 0", "error: /set: 'kind' is no field of the sampler",
    "error: /set: 'temprature' is no field of the sampler; did you mean 'temperature'?",
    "error: sampler.steps: 3 must be a multiple of the 2 blocks", "error: /set steps: needs a value",
    "error: sampler.completion_length: exceeds the 256 positions of tiny", "error: sampler.temperature: must be 0, or",
    "block_length 8", "error: /sed: is none of /help, /reset, /set, /seed, /quit; did you mean 'seed'?",
    "error: /seed: needs a whole number, not '-1'", "error: /seed: must be a whole number from 0 to 4294967295",
    "error: a user message holds <|eot_id|>", "must be a number and not negative, not '{[]:1}'",
    "must be a number and not negative, not '----",
    "error: sampler.temperature: must be a number and not negative, not True",
    "error: sampler.noise: '[1]' is not one of", "error: /set: 'slots' is no field of the sampler",
  ):
    assert line in said, line


def test_a_task_of_ones_own_that_fails_does_so_before_an_answer_is_computed(config, tmp_path):
  (tmp_path / "mine.py").write_text("""
import gdsd_jax
class Mine(gdsd_jax.Task):
  name = "mine"
  def examples(self, split): return [{"question": "2 + 2?"}] * 20
  def messages(self, example): return [{"role": "user", "content": example["question"]}]
  def reference_answer(self, example): return example["answer"]
  def score(self, completion, example): return {"right": 1.0}
""")
  config = dataclasses.replace(config, task=TaskConfig(f"{tmp_path / 'mine.py'}:Mine", {}))
  for split in ("test", "train"):
    with pytest.raises(ValueError, match=r"mine\.py, line 7: KeyError: 'answer'$"):
      find_problem(config, split, 3)


def test_an_error_of_the_device_ends_the_answer_and_not_the_chat(config):
  answering = Answering("5")
  failing = iter([jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nand so on")])
  answer_it = answering.answer
  answering.answer = lambda *asked, **named: answer_it(*asked, **named) if (error := next(failing, None)) is None else (
    (_ for _ in ()).throw(error))
  said = chat(config, answering, "a", "b")
  assert "error: RESOURCE_EXHAUSTED: out of memory and so on" in said and len(answering.seeds) == 1


def view_of(answering, width, height, sampler=SAMPLER):
  console = Console(file=io.StringIO(), force_terminal=True, width=width, height=height)
  return LiveView(console, answering, sampler), console


def test_the_live_view_shows_the_last_screenful_that_is_unmasked():
  answering = Answering()
  tokens = np.full(8000, 413)
  tokens[:3000] = answering.tokenizer("a", add_special_tokens=False)["input_ids"][0]
  view, _ = view_of(answering, 40, 10)
  *lines, said = view.lines(3000, tokens, np.ones(8000))
  assert said.plain == "step 3000 of 8" and [line.plain for line in lines] == ["a" * 40] * 8
  assert [line.plain for line in view.lines(0, np.full(8000, 413), np.zeros(8000))][:-1] == ["░" * 40] * 8


def test_the_live_view_ends_at_an_end_of_text():
  answering, tokens = Answering(), np.full(8, 413)
  tokens[4] = 409
  assert view_of(answering, 40, 10)[0].lines(1, tokens, np.ones(8))[0].plain == "░░░░"


def test_the_live_view_draws_beside_the_sampler_and_goes_away():
  view, console = view_of(Answering(), 40, 10)
  drawn = threading.Event()
  draw = view._draw
  view._draw = lambda live, *state: (draw(live, *state), drawn.set())
  with view:
    view.see(2, np.full(8, 413), np.zeros(8))
    assert drawn.wait(30)
  assert not view.is_drawing and "step 2 of 8" in console.file.getvalue()


@pytest.mark.parametrize("stopped", [False, True])
def test_what_a_quick_device_did_is_shown_at_the_end_unless_the_answer_was_stopped(monkeypatch, stopped):
  answering, drawn = Answering(), []
  view, _ = view_of(answering, 40, 10)
  view._draw = lambda live, step, *_: drawn.append(step)
  monkeypatch.setattr("gdsd_jax.chat.live._SECONDS_BETWEEN", 0.01)
  view._states.extend((step, np.full(8, 413), np.zeros(8)) for step in range(40))
  view._over.set()  # before it could draw any
  answering.is_stopped = stopped
  with view:
    pass
  assert drawn == ([] if stopped else sorted(drawn)) and (stopped or drawn[0] == 0 and len(drawn) <= 20)


def test_a_terminal_that_does_not_know_its_width_has_eighty_columns(monkeypatch):
  monkeypatch.setenv("COLUMNS", "0")
  assert console_on(Terminal()).width == 80
  monkeypatch.setenv("COLUMNS", "1")
  assert console_on(Terminal()).width == 1


def test_what_a_narrower_terminal_broke_into_more_lines_is_erased():
  view, console = view_of(Answering(), 60, 10)
  with Live(console=console, auto_refresh=False, redirect_stdout=False) as live:
    state = 1, np.full(96, 413), np.zeros(96)
    view._draw(live, *state)  # lines of 60 and 36 cells, and the number of the step
    console._width, before = 25, len(console.file.getvalue())
    view._draw(live, *state)
  assert console.file.getvalue()[before:].startswith("\x1b[2K\x1b[1A" * 3 + "\r\x1b[2K")


def test_answers_that_cannot_be_watched_come_whole(config, tmp_path):
  (tmp_path / "own.py").write_text("def mine(denoiser, params, prompt, prompt_mask, key, config):\n  pass\n")
  own, out = SamplerConfig(kind=f"{tmp_path}/own.py:mine"), Terminal()
  Screen(console_on(out), live=True).answer(Answering("5"), "prompt", own, 0)
  said = " ".join(out.getvalue().split())
  assert "the answer is shown when it is whole:" in said and "is a sampler of your own" in said


def test_json_tells_the_answer_as_it_is(config):
  out = io.StringIO()
  answer_once(Answering(HOSTILE), config, [{"role": "user", "content": "a"}], out, None, None, True, True)
  told = json.loads(out.getvalue())
  assert told["text"] == HOSTILE and out.getvalue().isascii() and told["seed"] == 0
  assert told["sampler"]["completion_length"] == 16 and told["messages"][0]["content"] == "a"


def test_answers_are_kept_for_a_replay(config, tmp_path):
  file = tmp_path / "answers.html"
  chat(config, Answering("the first", "<script>alert(1)</script>"), "a", "b", replay=Replay(str(file), "Answers"))
  page = file.read_text()
  assert "the first" in page and "<script>alert(1)" not in page and "alert(1)" in page


@pytest.mark.parametrize("prompt, stream, line", [
  ("  ", "", "--prompt: is empty"), (None, "\n", "--prompt: standard input: is empty"),
  ("a\udc80", "", "--prompt: is no text in UTF-8"),
])
def test_a_prompt_that_is_none_is_refused(prompt, stream, line):
  with pytest.raises(ValueError, match=f"^{line}$"):
    read_prompt(prompt, io.StringIO(stream))


def test_standard_input_that_is_no_text_is_refused():
  with pytest.raises(ValueError, match="^--prompt: standard input is no text in UTF-8$"):
    read_prompt(None, io.TextIOWrapper(io.BytesIO(b"a\xff"), "utf-8"))
  assert read_prompt(None, io.StringIO("two\nlines\n")) == "two\nlines"


@pytest.mark.parametrize("path", ["optimizer.clip", "eval.temperature", "sampler.microbatches", "sampler.slots",
                                  "objective.name"])
def test_a_flag_that_does_nothing_is_refused(path):
  with pytest.raises(ValueError, match=f"^--config.{path}: does nothing in a sample"):
    sample_config(load("gdsd_math"), {path: 1}, ChosenModel())


def test_a_sampler_that_no_run_could_train_with_may_answer():
  """At temperature 0 nothing was drawn that an objective could score."""
  recipe = load("gdsd_math")
  recipe.objective.name, recipe.objective.epsilon, recipe.sampler.temperature = "trace_rl", None, 0.0
  assert sample_config(recipe, {"sampler.temperature": 0.0}, ChosenModel()).sampler.temperature == 0


@pytest.mark.parametrize("make, line", [
  (lambda folder: folder, "--html: .* is a folder; name a file in it"),
  (lambda folder: folder / "none" / "a.html", "--html: there is no folder .*none"),
  (lambda folder: folder / "notes.txt", "--html: .*notes.txt must end in .html"),
])
def test_a_file_that_cannot_be_is_refused_at_once(tmp_path, make, line):
  with pytest.raises(ValueError, match=f"^{line}$"):
    Replay(str(make(tmp_path)), "Answers")

"""One prompt answered: in a terminal before one's eyes, elsewhere as text and a line of numbers, or as JSON."""

from collections.abc import Sequence
import dataclasses
import json

from rich.console import Console
from rich.text import Text

from gdsd_jax import signals
from gdsd_jax.chat.answers import Answer, Answering
from gdsd_jax.chat.config import SampleConfig
from gdsd_jax.chat.live import LiveView
from gdsd_jax.chat.problems import Problem
from gdsd_jax.chat.replay import Replay
from gdsd_jax.chat.shown import coloured, DIM, statistics, sureness
from gdsd_jax.checks import require
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.diffusion.watching import unwatchable
from gdsd_jax.generation.tokens_told import token_pieces
from gdsd_jax.screen import harmless
from gdsd_jax.tasks.base import Grade


@dataclasses.dataclass(frozen=True)
class Screen:
  """Where answers are shown: a console, as they come if it is `live`."""

  console: Console
  live: bool

  def answer(self, answering: Answering, prompt: str, sampler: SamplerConfig, seed: int) -> Answer:
    """An answer that is shown when it is whole, or when Ctrl-C ends it."""
    view = None
    if self.live and (why := unwatchable(sampler)):
      self.say(f"the answer is shown when it is whole: {why}")
    elif self.live:
      view = LiveView(self.console, answering, sampler)
    with signals.broken_by(lambda: self._stop(answering, view)):
      answer = answering.answer(prompt, sampler, seed, view)
    self.show(answering, answer)
    return answer

  def show(self, answering: Answering, answer: Answer) -> None:
    """Shows an answer, and the line of numbers."""
    count = len(answer.tokens) if answer.is_stopped else answer.length
    tokens = answer.tokens[:count]
    text = coloured(token_pieces(answering.tokenizer, tokens), sureness(answer.confidence[:count], answer.sampler),
                    tokens == answering.mask_token_id)
    self.console.print(text, soft_wrap=True)
    self.say(statistics(answer))

  def say(self, text: str, style: str = DIM) -> None:
    """Says a line of its own."""
    self.console.print(Text(harmless(text), style), soft_wrap=True)

  def _stop(self, answering: Answering, view: LiveView | None) -> None:
    answering.stop()
    if view is None or not view.is_drawing:
      self.say("the answer ends when its sampler is compiled, or done; Ctrl-C again leaves")


def console_on(stream) -> Console:
  """A console that shows text as it is."""
  console = Console(file=stream, markup=False, emoji=False, highlight=False)
  if console.width < 1:  # some terminals set COLUMNS to 0, who do not know
    console.width = 80
  return console


def read_prompt(flag: str | None, stream) -> str:
  """What --prompt says, else all of a stream but its last line end. Raises ValueError where it is empty, or no text."""
  if flag is not None:
    return checked_prompt("--prompt", flag)
  try:
    return checked_prompt("--prompt: standard input", stream.read().removesuffix("\n"))
  except UnicodeDecodeError:
    raise ValueError("--prompt: standard input is no text in UTF-8") from None


def checked_prompt(field: str, prompt: str) -> str:
  """The prompt. Raises ValueError where it is empty, or no text."""
  require(prompt.strip() != "", field, "is empty")
  require(not any("\ud800" <= letter <= "\udfff" for letter in prompt), field, "is no text in UTF-8")
  return prompt


def answer_once(answering: Answering, config: SampleConfig, messages: Sequence[dict[str, str]], out,
                problem: Problem | None, replay: Replay | None, live: bool, as_json: bool) -> bool:
  """Answers a chat on the stream `out`, and returns whether the answer is whole. Raises ValueError or OSError."""
  prefill = problem.prefill if problem else ""
  prompt, screen = answering.prompt(messages, config.sampler, prefill), None
  if out.isatty() and not as_json:
    screen = Screen(console_on(out), live)
    for message in messages if problem else ():
      screen.say(message["content"], "")
    answer = screen.answer(answering, prompt, config.sampler, config.seed)
  else:
    answer = answering.answer(prompt, config.sampler, config.seed)
  grade = problem.grade(answer, answering) if problem and not answer.is_stopped else None
  reference = problem.reference if problem else None
  if as_json:
    out.write(json.dumps(_told(messages, answer, grade, reference)) + "\n")
  elif screen is None:
    out.write(f"{harmless(answer.text)}\n{statistics(answer)}\n")
  if grade is not None and not as_json:
    line = harmless(_graded(grade, reference))
    screen.say(line) if screen else out.write(line + "\n")
  out.flush()
  if replay is not None:
    replay.add(answering, messages, answer, grade, reference)
  return not answer.is_stopped


def _graded(grade: Grade, reference: str | None) -> str:
  known = {name: value for name, value in grade.rewards.items() if value is not None}
  said = [f"reward {sum(known.values()):g}: " + ", ".join(f"{name} {value:g}" for name, value in known.items())]
  said += [f"{name.replace('_', ' ')} {value:g}" for name in ("accuracy", "accuracy_lenient")
           if (value := getattr(grade, name)) is not None]
  return "; ".join([*said, *([] if reference is None else [f"right is {reference}"])])


def _told(messages, answer: Answer, grade: Grade | None, reference: str | None) -> dict:
  known = answer.confidence[:answer.length]
  told = {
    "messages": list(messages), "text": answer.text, "is_stopped": answer.is_stopped, "length": answer.length,
    "steps": answer.steps, "confidence": float(known.mean()) if len(known) else None,
    "seconds": answer.seconds, "tokens_per_second": answer.tokens_per_second, "compiling_seconds": answer.compiling,
    "seed": answer.seed, "sampler": answer.sampler.settings,
  }
  return told | ({} if grade is None else {"reference": reference, **dataclasses.asdict(grade)})

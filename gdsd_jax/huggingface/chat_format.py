"""Chat templates: the one of a model's own files, or its family's for base models that come without any."""

from collections.abc import Sequence
import contextlib
import json
from pathlib import Path
import re

from gdsd_jax.checks import require

# The formats of the published instruct models, as their model cards state them.
PRESETS = {
  "llada": (
    "{{ '<|startoftext|>' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
  ),
  "dream": (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
  ),
}


def choose_template(folder: Path, tokenizer, family: str) -> str:
  """The chat template in the tokenizer's files, else in the folder's chat_template.json, else that of the family.

  Raises ValueError: there is none, it is one of several without a default, or the vocabulary lacks the family's tokens.
  """
  template = tokenizer.chat_template or _processor_template(folder)
  if isinstance(template, dict):  # named templates
    require("default" in template or len(template) <= 1, "model.path",
            f"{folder} has chat templates {', '.join(sorted(template))}, but none named default")
    template = template.get("default") or next(iter(template.values()), None)
  if template:
    return template
  lacks = f"{folder} has no chat template"
  require(family in PRESETS, "model.path", f"{lacks} (tokenizer_config.json or chat_template.jinja)")
  tokens = dict.fromkeys(re.findall(r"<\|\w+\|>", PRESETS[family]))
  lacking = ", ".join(token for token in tokens if token not in tokenizer.get_vocab())
  require(not lacking, "model.path", f"{lacks}, and its vocabulary lacks {lacking} of {family}'s format")
  return PRESETS[family]


def render(tokenizer, messages: Sequence[dict[str, str]], for_reply: bool, continued: bool = False) -> str:
  """The text that the chat template makes of messages.

  `for_reply` adds what begins the assistant's turn; where it is `continued`, the last turn is left open instead.
  ValueError where the template refuses them, with what to do about it where the system turn alone is the reason.
  """
  options = {"add_generation_prompt": for_reply, "continue_final_message": continued}
  try:
    return tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
  except Exception as error:  # Jinja's, and whatever a template's own expressions raise
    reason = " ".join(str(error).split()) or type(error).__name__
    rest = [message for message in messages if message["role"] != "system"]
    if rest and len(rest) < len(messages):
      with contextlib.suppress(Exception):
        tokenizer.apply_chat_template(rest, tokenize=False, **options)
        reason += ("; without its system turn it is taken: leave that out (task.system_prompt), or put it into the"
                   " first user turn")
    raise ValueError(f"the model's chat template refuses it: {reason}") from error


def end_of_turn(tokenizer) -> str | None:
  """The added token that the chat template writes after an assistant's text; None if it writes none there."""
  reply = "the reply to it"
  conversation = [{"role": "user", "content": "request"}, {"role": "assistant", "content": reply}]
  _, found, rest = render(tokenizer, conversation, for_reply=False).rpartition(reply)
  return next(iter(added_tokens_in(tokenizer, rest)), None) if found else None


def format_tokens(tokenizer) -> set[str]:
  """The added tokens that the chat template itself writes: around turns, and at the beginning."""
  conversation = [{"role": role, "content": "text"} for role in ("user", "assistant", "user")]
  return set(added_tokens_in(tokenizer, render(tokenizer, conversation, for_reply=True)))


def added_tokens_in(tokenizer, text: str) -> list[str]:
  """The added tokens in a text, in its order, special or not: older files do not tell which of them are special."""
  added, encoded = tokenizer.added_tokens_decoder, tokenizer.encode(text, add_special_tokens=False, verbose=False)
  return tokenizer.convert_ids_to_tokens([index for index in encoded if index in added])


def _processor_template(folder: Path) -> str | dict[str, str] | None:
  """The template of chat_template.json, which tokenizers do not read."""
  file = folder / "chat_template.json"
  try:
    return json.loads(file.read_text("utf-8"))["chat_template"] if file.is_file() else None
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"model.path: {file} holds no chat template: {error!r}") from None

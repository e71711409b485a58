"""A tokenizer's files as transformers opens them with nothing asked: mask token, chat template and ends of text in."""

from collections.abc import Callable
import json
import logging
from pathlib import Path
import shutil
import tempfile

from gdsd_jax.huggingface.folder import tokenizer_files
from gdsd_jax.huggingface.tokenizer import load_tokenizer, stated_stops
from gdsd_jax.models.config import DenoiserConfig

_log = logging.getLogger(__name__)


def write_tokenizer(temporary: Callable[[str], Path], config: DenoiserConfig, tokenizer=None, source=None) -> None:
  """Writes the files of a `tokenizer`, or of that of the folder `source`, each where `temporary(name)` says.

  A folder without a tokenizer gives none. One that cannot be loaded here gives its files as they are, which is told:
  no model is lost for its tokenizer.
  """
  if tokenizer is None:
    if not any(file.name.startswith(("tokenizer.", "vocab.")) for file in tokenizer_files(source)):
      return
    try:
      tokenizer = load_tokenizer(source, config)
    except (ValueError, OSError) as error:
      _log.warning("the tokenizer's files are copied as they are: %s", error)
      for file in tokenizer_files(source):
        shutil.copyfile(file, temporary(file.name))
      return
  with tempfile.TemporaryDirectory() as scratch:
    tokenizer.save_pretrained(scratch)
    _open_to_all(Path(scratch) / "tokenizer_config.json")
    for file in sorted(Path(scratch).glob("*.*")):
      shutil.copyfile(file, temporary(file.name))
  _write_generation_config(temporary, config, source)


def _open_to_all(file: Path) -> None:
  """Takes out of tokenizer_config.json what asks for code, and what one release of transformers alone knows."""
  fields = json.loads(file.read_text("utf-8"))
  for name in ("auto_map", "trust_remote_code", "is_local", "local_files_only", "backend"):
    fields.pop(name, None)
  fields["tokenizer_class"] = "PreTrainedTokenizerFast"
  file.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _write_generation_config(temporary, config: DenoiserConfig, source: Path | None) -> None:
  """generation_config.json as it was, with the ends of text that config.json has no place for."""
  file = source and source / "generation_config.json"
  fields = json.loads(file.read_text("utf-8")) if file and file.is_file() else {}
  if source and len(stops := stated_stops(source)) > 1:
    fields["eos_token_id"] = stops
  if fields:
    temporary("generation_config.json").write_text(json.dumps(fields, indent=2) + "\n")

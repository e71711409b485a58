"""What a run is made of: fingerprints that miss no change, versions, the hub's revisions, what a resumed run says."""

import functools
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from gdsd_jax import own_code
from gdsd_jax.huggingface.folder import hub_commit, resolve_path
from gdsd_jax.huggingface.weight_files import weight_files
from gdsd_jax.models.lora import LoraConfig
from gdsd_jax.runs import fingerprints, provenance
from gdsd_jax.runs.model_config import ModelConfig
from gdsd_jax.runs.weights import read_model_config

ROWS = {"training data": [{"question": "1+1", "answer": 2}], "validation data": [{"question": "2+2", "answer": 4}]}


@pytest.fixture
def home(tmp_path, monkeypatch):
  """Nothing is remembered yet."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
  return tmp_path / "home"


@pytest.fixture
def model(tmp_path):
  """A copy of the embedded model, with an adapter's folder that nobody loads."""
  shutil.copytree(resolve_path("tiny"), tmp_path / "model")
  (tmp_path / "adapter").mkdir()
  (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
  return ModelConfig(path=str(tmp_path / "model"), lora=LoraConfig(rank=2), lora_path=str(tmp_path / "adapter"))


@pytest.fixture
def rewards(tmp_path, monkeypatch):
  """Reward functions of the user's own that have been loaded, and a file that they import."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "lengths_of.py").write_text("def words(text):\n  return len(text.split())\n")
  (tmp_path / "my_rewards.py").write_text("from lengths_of import words\ndef short(completions, **_):\n  return []\n")
  own_code.load("my_rewards.py:short", "task.rewards")
  yield tmp_path / "my_rewards.py"
  del sys.modules["lengths_of"]


# --------------------------------------------------------------------------------------------------- fingerprints


def test_files_are_known_by_names_and_contents(tmp_path, home):
  for name, text in (("b", "2"), ("a", "1")):
    (tmp_path / name).write_text(text)
  lines = "\n".join(f"{name} {hashlib.sha256(text).hexdigest()}" for name, text in (("a", b"1"), ("b", b"2")))
  assert fingerprints.of_files([tmp_path / "b", tmp_path / "a"]) == hashlib.sha256(lines.encode()).hexdigest()
  assert not home.exists()


def test_a_large_file_is_read_once_and_a_change_is_never_missed(tmp_path, home, monkeypatch):
  monkeypatch.setattr(fingerprints, "_REMEMBERED_BYTES", 1)
  monkeypatch.setattr(fingerprints, "_SETTLED_SECONDS", -1.0)
  file = tmp_path / "model.safetensors"
  file.write_bytes(b"weights")
  before, read = fingerprints.of_files([file]), []
  digest = hashlib.file_digest
  monkeypatch.setattr(hashlib, "file_digest", lambda *given: read.append(1) or digest(*given))
  assert fingerprints.of_files([file]) == before and not read
  times = file.stat()
  file.write_bytes(b"wEights")
  os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a careful copy leaves it
  assert fingerprints.of_files([file]) != before and read


def test_a_file_that_may_still_change_is_not_remembered(tmp_path, home, monkeypatch):
  monkeypatch.setattr(fingerprints, "_REMEMBERED_BYTES", 1)
  (tmp_path / "weights").write_bytes(b"new")
  fingerprints.of_files([tmp_path / "weights"])
  assert not home.exists()


@pytest.mark.parametrize("other", [
  [{"a": 1, "b": [1, 3]}, {"a": 2}], [{"a": 2}, {"a": 1, "b": [1, 2]}], [{"a": 1, "b": [1, 2]}],
  [{"a": "1", "b": [1, 2]}, {"a": 2}], [{"a": 1, "b": [1, 2]}, {"c": 2}],
])
def test_rows_that_differ_have_other_fingerprints(other):
  assert fingerprints.of_rows(other) != fingerprints.of_rows([{"a": 1, "b": [1, 2]}, {"a": 2}])


def test_rows_of_any_values_have_the_same_fingerprint_each_time():
  make = lambda last: [{"x": np.arange(last), "y": {3, 1}, "z": object(), (1, 2): b"3"}, {"n": np.float32(1.5)}]
  without = lambda last: [{name: value for name, value in make(last)[0].items() if isinstance(name, str)}]
  assert fingerprints.of_rows(make(5)) == fingerprints.of_rows(make(5))
  assert fingerprints.of_rows(without(5000)) == fingerprints.of_rows(without(5000))
  assert fingerprints.of_rows([{"x": np.arange(5000)}]) != fingerprints.of_rows([{"x": np.arange(5000) // 4999}])


# ------------------------------------------------------------------------------------------------ inputs of a run


def test_a_resumed_run_is_told_exactly_what_changed(tmp_path, home, model, rewards):
  run = tmp_path / "run"
  run.mkdir()
  found = provenance.provenance_of(model, ROWS)
  saved = provenance.check_inputs(run, found, False)
  (run / "config.json").write_text(json.dumps({"seed": 0, "provenance": saved}))
  assert provenance.check_inputs(run, provenance.provenance_of(model, ROWS), False) == saved

  def refused(data=ROWS):
    with pytest.raises(ValueError) as caught:
      provenance.check_inputs(run, provenance.provenance_of(model, data), False)
    message = str(caught.value)
    assert message.startswith("--workdir: ") and "\n" not in message and "--allow_changed_inputs" in message
    return message.partition("with other ")[2].partition(";")[0]

  assert refused({**ROWS, "training data": ROWS["validation data"]}) == "training data"
  for changed, name in ((tmp_path / "model" / "model.safetensors", "base weights"),
                        (tmp_path / "model" / "tokenizer.json", "tokenizer"),
                        (tmp_path / "model" / "config.json", "config.json of the model"),
                        (tmp_path / "adapter" / "adapter_config.json", "adapter"),
                        (rewards, "code of my_rewards.py"), (tmp_path / "lengths_of.py", "code of lengths_of.py")):
    content = changed.read_bytes()
    changed.write_bytes(content + b" ")
    assert refused() == name
    changed.write_bytes(content)
  rewards.write_text("")
  now = provenance.provenance_of(model, ROWS)
  assert provenance.check_inputs(run, now, True) == {**now, "earlier": [saved]}


def test_other_versions_are_told_and_not_refused(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger("gdsd_jax"), "propagate", True)
  caplog.set_level("INFO", logger="gdsd_jax")
  old = {"versions": {"jax": "0.9.0", "numpy": "2.0"}, "inputs": {"training data": "1"}, "model_commit": None}
  new = {**old, "versions": {"jax": "0.9.1", "numpy": "2.0", "flax": "0.12"}}
  (tmp_path / "config.json").write_text(json.dumps({"provenance": old}))
  assert provenance.check_inputs(tmp_path, new, False) == {**new, "earlier": [old]}
  assert "other versions: jax 0.9.0 → 0.9.1" in caplog.text and "numpy" not in caplog.text


@pytest.mark.parametrize("saved", [{"seed": 0}, {"provenance": "mine"}, {"provenance": None}])
def test_a_run_from_before_there_was_provenance_goes_on(tmp_path, saved):
  (tmp_path / "config.json").write_text(json.dumps(saved))
  found = {"versions": {}, "inputs": {"training data": "1"}, "model_commit": None}
  assert provenance.check_inputs(tmp_path, found, False) == found


def test_functions_of_a_program_are_known_by_their_source(tmp_path, monkeypatch):
  assert "test_provenance.py" in own_code.sources([short])
  assert "test_provenance.py" in own_code.sources([ModelOfTheUsers()])
  monkeypatch.setattr(short, "__module__", "typed at a prompt")
  assert own_code.sources([short])["short"].startswith("def short(completions")
  assert own_code.sources([functools.partial(short, weight=2)]).keys() == own_code.sources([short]).keys()
  assert not {"len", "Path"} & own_code.sources([len, tmp_path.__class__]).keys()


def short(completions, weight=1, **_):
  return [-weight * len(completion) for completion in completions]


class ModelOfTheUsers:
  pass


def test_the_commit_of_a_checkout_and_whether_it_was_changed(tmp_path):
  assert provenance._commit(tmp_path) is None
  git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
  (tmp_path / "file").write_text("1")
  for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "first"]):
    subprocess.run([*git, *command], check=True)
  head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
  assert provenance._commit(tmp_path) == head
  (tmp_path / "file").write_text("2")
  assert provenance._commit(tmp_path) == head + "+changes"


# ----------------------------------------------------------------------------------------------------- the hub's


def test_a_hub_model_is_loaded_and_recorded_at_its_revision(tmp_path, home, monkeypatch):
  """Its cache links each file to one that is named by its content's hash, which is taken for it."""
  import huggingface_hub

  commit, asked = "0123456789abcdef" * 2 + "01234567", []
  folder, blobs = tmp_path / "models--a--b" / "snapshots" / commit, tmp_path / "models--a--b" / "blobs"
  folder.mkdir(parents=True)
  blobs.mkdir()
  for file in resolve_path("tiny").iterdir():
    blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
    shutil.copyfile(file, blob)
    (folder / file.name).symlink_to(blob)
  monkeypatch.setattr(huggingface_hub, "snapshot_download",
                      lambda name, revision, **_: asked.append((name, revision)) or str(folder))
  model = ModelConfig(path="a/b", revision="v1")
  found = provenance.provenance_of(model, ROWS)
  assert set(asked) == {("a/b", "v1")} and found["model_commit"] == commit == hub_commit(folder)
  assert found["inputs"] == provenance.provenance_of(ModelConfig(path="tiny"), ROWS)["inputs"]
  (tmp_path / "config.json").write_text(json.dumps({"model": {"path": "a/b"}, "provenance": found}))
  assert read_model_config(tmp_path).revision == commit
  (blobs / ("f" * 64)).write_bytes(b"{}")
  for file in weight_files(folder):
    file.unlink()
    file.symlink_to(blobs / ("f" * 64))
  assert provenance.provenance_of(model, ROWS)["inputs"] != found["inputs"]


def test_a_local_folder_has_no_revision(tmp_path):
  for path in ("tiny", str(tmp_path)):
    with pytest.raises(ValueError, match="^model.revision: only models of the hub have one"):
      ModelConfig(path=path, revision="v1").folder  # noqa: B018

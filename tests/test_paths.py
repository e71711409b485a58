"""Paths as users write them: homes, addresses, variables that nobody put in; the same for every flag and field."""

import os
from pathlib import Path

from etils import epath
import pytest

from gdsd_jax.huggingface.folder import resolve_path
from gdsd_jax.models.lora import LoraConfig
from gdsd_jax.paths import expanded, local_path
from gdsd_jax.runs.files import run_folder
from gdsd_jax.runs.model_config import ModelConfig
from gdsd_jax.runs.recipe_files import recipe_file
from gdsd_jax.tasks.sources import open_source


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.mark.parametrize("text, expected", [
  ("~", "{home}"), ("~/", "{home}"), ("~/a b", "{home}/a b"), ("/a/b/", "/a/b"), ("/", "/"), ("a", "a"),
  ("./a/", "./a"), ("../a", "../a"), ("file:///a/b", "/a/b"), ("file:///a%20b/", "/a b"), ("file://localhost/a", "/a"),
  ("gs://bucket/a/", "gs://bucket/a"), ("gs://bucket", "gs://bucket"), ("s3://b/c", "s3://b/c"), ("a/~/b", "a/~/b"),
])
def test_what_a_path_means(home, text, expected):
  assert expanded(text, "x") == expected.format(home=home)


@pytest.mark.parametrize("text, words", [
  ("", "is no path"), ("  ", "is no path"), ("a\0b", "is no path"), ("gs:/bucket/a", "write gs://bucket/a"),
  ("file:/a", "lacks a slash"), ("file://host/a", "names another machine"), ("~nobody-here/a", "no user 'nobody-here'"),
  ("$HOME/a", "$HOME stands for nothing here"), ("/a/${RUN}/b", "${RUN} stands for nothing here"),
])
def test_what_would_make_a_folder_of_that_name_is_refused_in_one_line(text, words):
  with pytest.raises(ValueError) as caught:
    expanded(text, "--workdir")
  message = str(caught.value)
  assert message.startswith("--workdir: ") and words in message and "\n" not in message


@pytest.mark.parametrize("name", ["$HOME", "~nobody-here", "100$"])
def test_a_folder_that_is_really_called_so_is_that_folder(home, name):
  (home / name).mkdir()
  assert expanded(name, "x") == name


def test_a_local_path_is_no_address():
  with pytest.raises(ValueError, match="^--out: gs://b/c must be a local folder$"):
    local_path("gs://b/c", "--out")


@pytest.mark.parametrize("text", ["s3://bucket/run", "hf://a/b", "unknown://a/b"])
def test_a_run_is_here_or_on_gs(text):
  with pytest.raises(ValueError, match=f"--workdir: {text} is neither a local folder nor gs://BUCKET/FOLDER"):
    run_folder(text)


def test_a_runs_folder_may_be_on_gs():
  pytest.importorskip("gcsfs")
  assert run_folder("gs://bucket/run/") == epath.Path("gs://bucket/run")


def test_a_recipe_may_be_in_the_home(home):
  assert recipe_file("~/mine.py:tiny") == f"{home}/mine.py:tiny"


def test_a_path_object_is_a_path():
  assert local_path(Path("a"), "x") == Path("a")


@pytest.mark.parametrize("name, words", [
  ("gs://bucket/model", "in an object store"), ("gs:/bucket/model", "write gs://bucket/model"), ("", "is no path"),
  ("$MODEL", "stands for nothing here"), ("./missing", "neither a folder nor a hub name"),
])
@pytest.mark.parametrize("field", ["model.path", "model.lora.path"])
def test_a_model_or_adapter_that_is_nowhere_is_refused_by_its_field(home, name, words, field):
  with pytest.raises((ValueError, OSError)) as caught:
    resolve_path(name, field=field)
  assert str(caught.value).startswith(f"{field}: ") and words in str(caught.value)
  assert list(home.iterdir()) == []


@pytest.mark.parametrize("name", ["~/model", "file://{home}/model", "{home}/model/", "model", "./model"])
def test_a_model_or_adapter_is_found_however_its_folder_is_named(home, name):
  (home / "model").mkdir()
  assert resolve_path(name.format(home=home)).resolve() == (home / "model").resolve()


@pytest.mark.parametrize("name", ["org/adapter", "org/adapter/", "hf://org/adapter"])
def test_an_adapter_of_the_hub_is_one_by_its_name(home, monkeypatch, name):
  monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(home / name))
  assert ModelConfig(lora=LoraConfig(rank=2), lora_path=name).lora_folder == home / "org/adapter"


def test_a_hub_name_that_is_not_here_offline_is_one_line(monkeypatch):
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
  with pytest.raises(FileNotFoundError) as caught:
    resolve_path("organisation/not-there", field="model.lora.path")
  message = str(caught.value)
  assert message.startswith("model.lora.path: 'organisation/not-there' is no local folder") and "\n" not in message


@pytest.mark.parametrize("source", ["~/rows.jsonl", "~/row*.jsonl", "file://{home}/rows.jsonl", "rows.jsonl"])
def test_rows_are_found_as_models_are(home, source):
  (home / "rows.jsonl").write_text('{"a": 1}\n')
  [row] = open_source(source.format(home=home), ["a"], field="task.train_source")
  assert row == {"a": 1}


def test_a_recipe_in_a_home_that_is_not_there_is_refused(monkeypatch):
  with pytest.raises(ValueError, match="^--config: ~nobody-here/r.py: there is no user 'nobody-here'"):
    recipe_file("~nobody-here/r.py:tiny")
  monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user without a home
  with pytest.raises(ValueError, match="^--config: ~/r.py: there is no home folder; HOME names one"):
    recipe_file("~/r.py")

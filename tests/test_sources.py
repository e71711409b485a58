"""Sources of problems: files, folders, TFDS datasets, the hub, and what bad ones say."""

import dataclasses
import gzip
import importlib.util
import json
import logging
from pathlib import Path
import re
import shutil
import subprocess
import sys

from hypothesis import given, strategies as st
import pytest

from gdsd_jax.tasks import arithmetic, get_task, sources
from gdsd_jax.tasks.row_readers import FILE_KINDS
from gdsd_jax.tasks.sources import examples_of, text_of

FIELD = "task.train_source"


def open_(source, columns=("question",), **options):
  return sources.open_source(str(source), columns, field=FIELD, **options)


def written(path, content):
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


def message(error, source, columns=("question",), **options):
  """What is said about a bad source, without the field and the source in front; it must be one line."""
  with pytest.raises(error) as raised:
    open_(source, columns, **options)
  text = str(raised.value)
  assert "\n" not in text
  assert text.startswith(f"{FIELD}: ")
  return text.removeprefix(f"{FIELD}: ").replace(str(source), "FILE")


ROWS = [
  {"question": "Größe?", "answer": 7}, {"question": "b", "answer": None}, {"question": "", "answer": [1, {"x": 2.5}]},
]


@pytest.mark.parametrize("kind, content", [
  ("jsonl", "\n".join(map(json.dumps, ROWS))),
  ("jsonl.gz", gzip.compress("\r\n\n".join(map(json.dumps, ROWS)).encode(), mtime=0)),
  ("JSONL", "\ufeff" + "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n"),
  ("json", json.dumps(ROWS)), ("json", "\n".join(map(json.dumps, ROWS))),
])
def test_json_values_keep_their_types(tmp_path, kind, content):
  assert open_(written(tmp_path / f"rows.{kind}", content)) == ROWS


def test_csv_values_are_text(tmp_path):
  file = written(tmp_path / "rows.csv", '\ufeffquestion,answer\r\n0012,"1,2"\r\n"two\nlines",é\r\n')
  assert open_(file) == [{"question": "0012", "answer": "1,2"}, {"question": "two\nlines", "answer": "é"}]


def test_home_folder_is_expanded(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  written(tmp_path / "rows.jsonl", '{"question": "a"}')
  assert len(open_("~/rows.jsonl")) == 1


@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text()), min_size=1))
def test_any_rows_survive_a_file(tmp_path_factory, rows):
  file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
  assert open_(written(file, "\n".join(json.dumps(row) for row in rows)), ()) == rows


@given(st.binary(), st.sampled_from(FILE_KINDS))
def test_any_bytes_are_rows_or_one_clear_line(tmp_path_factory, content, kind):
  if kind == ".parquet":
    pytest.importorskip("pyarrow")
  file = written(tmp_path_factory.mktemp("bytes") / f"rows{kind}", content)
  assert message((ValueError, OSError), file, ("no such column",))


def test_a_cell_of_csv_may_be_as_long_as_a_conversation(tmp_path):
  """Python's csv takes 131,072 characters unless it is told otherwise."""
  long = "apples " * 50_000
  source = written(tmp_path / "a.csv", f"question,answer\n{long},2\n")
  assert open_(source) == [{"question": long, "answer": "2"}]


@pytest.mark.parametrize("name, content, expected", [
  ("a.csv", "question,answer,question\na,b,c\n", "FILE, line 1: it has the column 'question' twice"),
  ("a.jsonl", '{"question": 1}\n\n{"question": }', "FILE, line 3: not JSON: Expecting value at column 14"),
  ("a.jsonl", b'{"question": 1}\n{"question": "\xff"}', "FILE, line 2: not JSON: .* can't decode byte 0xff .*"),
  ("a.jsonl", '{"question": "\\ud800"}', "FILE, line 1: not JSON: .* surrogates not allowed"),
  ("a.jsonl", "[" * 100_000, "FILE, line 1: not JSON: maximum recursion depth exceeded.*"),
  ("a.jsonl", '{"question": 1}\n[2]', "FILE, line 2: must be a JSON object with the columns as its keys"),
  ("a.jsonl", '{"question": 1}\n{"id": 2, "q": 3}', "FILE, line 2: no column 'question', it has 'id', 'q'"),
  ("a.jsonl", "\n \n", "FILE: no problems in it"),
  ("a.json", '{"question": 1}', "FILE, the whole file: must be a JSON list of objects"),
  ("a.json", '[{"question": 1}, {}]', "FILE, item 2: no column 'question', it has none"),
  ("a.json", '[{"question": 1},\n {]', "FILE, line 2: not JSON: Expecting property name .* at column 3"),
  ("a.json", "[" * 100_000, "FILE, the whole file: not JSON: maximum recursion depth exceeded.*"),
  ("a.json", "[]", "FILE: no problems in it"),
  ("a.csv", "q,a\n1,2\n", "FILE, line 2: no column 'question', it has 'q', 'a'"),
  ("a.csv", "question,a\n1,2\n1\n", "FILE, line 3: 1 fields, but the header names 2"),
  ("a.csv", "question,a\n1,2,3\n", "FILE, line 2: 3 fields, but the header names 2"),
  ("a.csv", 'question,a\n1,"2\n', "FILE, line 2: not CSV: unexpected end of data"),
  ("a.csv", b"question,a\n1,\xff\n", "FILE, line 2: not UTF-8 text: .*"),
  ("a.csv", "question,a\n", "FILE: no problems in it"),
])
def test_bad_content_is_named_with_its_line(tmp_path, name, content, expected):
  assert re.fullmatch(expected, message(ValueError, written(tmp_path / name, content)))


@pytest.mark.parametrize("name, content, expected", [
  ("a.jsonl", None, "cannot read FILE: No such file or directory"),
  ("a.jsonl.gz", b"plain", r"cannot read FILE: Not a gzipped file .*"),
  ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "cannot read FILE: .*git lfs pull.*"),
  ("a.jsonl.gz", gzip.compress(b"x" * 99, mtime=0)[:20], "cannot read FILE: Compressed file ended .*"),
])
def test_unreadable_file_is_named(tmp_path, name, content, expected):
  file = tmp_path / name
  if content is not None:
    written(file, content)
  assert re.fullmatch(expected, message(OSError, file))


def test_path_that_no_file_can_have_is_named():
  assert message(OSError, "a\0.jsonl") == "cannot read FILE: embedded null byte"


def test_folder_is_no_file(tmp_path):
  (tmp_path / "folder.jsonl").mkdir()
  assert message(OSError, tmp_path / "folder.jsonl") == "cannot read FILE: Is a directory"


@pytest.mark.parametrize(
  "source", ["", "rows.txt", "rows.jsonl.zip", "huggingface:gsm8k", "../rows", "a b", "#train"]
)
def test_unknown_kind_of_source_lists_the_known_ones(source):
  pytest.importorskip("tensorflow_datasets")
  with pytest.raises(ValueError) as raised:
    open_(source)
  assert str(raised.value).startswith(f"{FIELD}: {source!r} is neither a file ending in .jsonl, .json, .csv, ")
  assert "NAME[/CONFIG][:VERSION][#SPLIT]" in str(raised.value)


@pytest.mark.parametrize("kind, content", [
  ("json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0)),
  ("csv.gz", gzip.compress("question,answer\nGröße?,7\n".encode(), mtime=0)),
])
def test_files_of_any_kind_may_be_compressed(tmp_path, kind, content):
  assert open_(written(tmp_path / f"rows.{kind}", content))[0]["question"] == "Größe?"


def test_parquet_values_keep_their_types(tmp_path):
  pyarrow = pytest.importorskip("pyarrow")
  parquet = pytest.importorskip("pyarrow.parquet")
  rows = [{"question": "é", "nums": [1, 2], "info": {"x": 0.5}}, {"question": "b", "nums": [], "info": None}]
  parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
  assert open_(tmp_path / "rows.parquet") == rows
  assert open_(tmp_path / "rows.parquet")[1].place == f"{tmp_path}/rows.parquet, row 2"


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_a_folder_that_datasets_saved_to_disk_is_its_rows(tmp_path, kind):
  pyarrow = pytest.importorskip("pyarrow")
  rows = [{"question": "é", "nums": [1, 2]}, {"question": "b", "nums": None}]
  table = pyarrow.Table.from_pylist(rows)
  with getattr(pyarrow.ipc, f"new_{kind}")(str(tmp_path / "data-00000-of-00001.arrow"), table.schema) as writer:
    writer.write_table(table)
  for name in ("dataset_info.json", "state.json", "cache-1a2b3c4d5e6f7a8b.arrow"):
    written(tmp_path / name, "{}")
  assert open_(tmp_path) == rows == open_(f"{tmp_path}#train")
  written(tmp_path / "data-00000-of-00001.arrow", "x")
  assert "the whole file: not Arrow" in message(ValueError, tmp_path)


def test_parquet_without_pyarrow_says_how_to_get_it(tmp_path, monkeypatch):
  find_spec = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find_spec(name))
  said = message(OSError, written(tmp_path / "rows.parquet", "x"))
  assert said == "FILE needs pyarrow, which is not installed; pip install 'gdsd_jax[hub]'"


# Names of columns, and bad rows.


@dataclasses.dataclass(frozen=True)
class Questions(sources.SourcedTask):
  required = ("question",)

  def read_row(self, row):
    return {"question": text_of(row, "question"), **{name: row[name] for name in row if name != "question"}}


@pytest.mark.parametrize(
  "columns", ["question=problem, answer=solution", {"question": "problem", "answer": "solution"}]
)
def test_columns_are_renamed_to_what_the_task_asks_for(tmp_path, columns):
  file = written(tmp_path / "rows.jsonl", '{"problem": "a", "solution": 1, "question": "other", "id": 2}')
  row = {"question": "a", "answer": 1, "id": 2}
  assert Questions(train_source=str(file), columns=columns).examples("train") == [row]


def test_columns_may_change_places(tmp_path):
  file = written(tmp_path / "rows.jsonl", '{"question": "a", "answer": "b"}')
  row = {"question": "b", "answer": "a"}
  assert Questions(train_source=str(file), columns="question=answer,answer=question").examples("train") == [row]


def test_columns_of_a_tfds_dataset_are_renamed(data_dir):
  assert open_("shelf/main#test", ("text",), data_dir=data_dir, names="text=question")[0]["text"] == "Größe 0?"
  said = message(ValueError, "shelf/main#test", ("text",), data_dir=data_dir, names="text=title")
  assert said == "FILE: no column 'title', it has 'known', 'nested', 'number', 'question', 'ratio', 'words'"


@pytest.mark.parametrize("columns, expected", [
  ("question", "task.columns: 'question' must be NAME=COLUMN,"),
  ("question=", "task.columns: 'question=' must be NAME=COLUMN,"),
  ("question=title", "FILE, line 1: no column 'title', it has 'problem'"),
  ("answer=solution", "FILE, line 1: no column 'question', it has 'problem'"),
])
def test_columns_that_are_not_there_are_named(tmp_path, columns, expected):
  file = written(tmp_path / "rows.jsonl", '{"problem": "a"}')
  with pytest.raises(ValueError) as raised:
    Questions(train_source=str(file), columns=columns).examples("train")
  assert expected in str(raised.value).replace(str(file), "FILE")


def test_columns_of_generated_problems_are_refused():
  with pytest.raises(ValueError, match=r"^task\.columns: generated problems have none"):
    get_task("countdown", columns="numbers=nums")


BAD = '{"question": "a"}\nnot json\n[1]\n{"question": 5}\n{"q": "b"}\n{"question": "c"}'


def test_bad_rows_are_skipped_and_counted_when_asked(tmp_path, caplog):
  file = written(tmp_path / "rows.jsonl", BAD)
  with caplog.at_level("INFO", "gdsd_jax"):
    examples = Questions(train_source=str(file), bad_rows="skip").examples("train")
  assert [example["question"] for example in examples] == ["a", "c"]
  assert [record.getMessage() for record in caplog.records] == [
    f"{FIELD}: 4 of 6 rows are bad and skipped, the first: {file}, line 2: not JSON: Expecting value at column 1"]


def test_nothing_is_said_where_no_row_is_bad(tmp_path, caplog):
  with caplog.at_level("INFO", "gdsd_jax"):
    Questions(train_source=str(written(tmp_path / "a.jsonl", '{"question": "a"}')), bad_rows="skip").examples("train")
  assert not caplog.records


@pytest.mark.parametrize("content, expected", [
  ("not json\n[1]", "task.train_source: all 2 rows are bad, the first: FILE, line 1: not JSON: .*"),
  ('{"question": 1}\n[1]', "task.train_source: all 2 rows are bad, the first: FILE, line 2: must be a JSON object .*"),
])
def test_a_source_of_bad_rows_alone_is_refused(tmp_path, content, expected):
  file = written(tmp_path / "rows.jsonl", content)
  with pytest.raises(ValueError) as raised:
    Questions(train_source=str(file), bad_rows="skip").examples("train")
  assert re.fullmatch(expected, str(raised.value).replace(str(file), "FILE"))


def test_another_treatment_of_bad_rows_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"^task\.bad_rows: 'drop' is not one of refuse, skip$"):
    Questions(train_source="rows.jsonl", bad_rows="drop").examples("train")


def test_a_task_without_a_source_says_so():
  with pytest.raises(ValueError, match=r"^task\.test_source: name a file, a folder or a dataset of problems$"):
    Questions().examples("test")


def test_rows_know_their_place(tmp_path):
  file = written(tmp_path / "rows.jsonl", '\n{"question": 1}')
  assert open_(file)[0].place == f"{file}, line 2"


def test_bad_value_is_named_with_its_line(tmp_path):
  file = written(tmp_path / "rows.jsonl", '{"question": "a"}\n{"question": 5}')
  with pytest.raises(ValueError, match=rf"^{FIELD}: {file}, line 2: column 'question' must be text, it is 5$"):
    examples_of(open_(file), lambda row: {"q": text_of(row, "question")}, field=FIELD)


# TFDS


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  """Holds the dataset `shelf`, written by a builder that is then forgotten: it is known by its files alone."""
  tfds = pytest.importorskip("tensorflow_datasets")
  import numpy as np

  with tfds.core.registered.skip_registration():

    class Shelf(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version("1.2.0")
      BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="main")]
      url_infos = None

      def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
          "question": tfds.features.Text(), "number": np.int64, "ratio": np.float64, "known": np.bool_,
          "words": tfds.features.Sequence(tfds.features.Text()),
          "nested": {"numbers": tfds.features.Sequence(np.int32)},
        }))

      def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(3), "test": self._generate_examples(1)}

      def _generate_examples(self, count):
        for i in range(count):
          yield i, {
            "question": f"Größe {i}?", "number": i, "ratio": 0.5, "known": True, "words": ["a", "ü"],
            "nested": {"numbers": [i, 2]},
          }

  folder = str(tmp_path_factory.mktemp("tfds"))
  Shelf(config="main", data_dir=folder, file_format="array_record").download_and_prepare()
  return folder


def test_tfds_records_are_plain_python_values(data_dir):
  row = open_("shelf/main#test", data_dir=data_dir)[0]
  assert row == {
    "question": "Größe 0?", "number": 0, "ratio": 0.5, "known": True, "words": ["a", "ü"],
    "nested": {"numbers": [0, 2]},
  }
  assert [type(row[name]) for name in ("number", "ratio", "known")] == [int, float, bool]


def test_tfds_rows_have_random_access(data_dir):
  rows = open_("shelf/main:1.2.0#train", data_dir=data_dir)
  assert rows == open_("shelf/main:1.*.*#train", data_dir=data_dir)
  assert {row["question"] for row in rows} == {"Größe 0?", "Größe 1?", "Größe 2?"}
  assert rows[-1] == rows[2] != rows[0]
  with pytest.raises(IndexError):
    rows[3]


def test_tfds_rows_know_their_place(data_dir):
  assert open_("shelf/main#train", data_dir=data_dir)[1].place == "shelf/main#train, row 2"


def test_tfds_split_may_be_a_slice(data_dir):
  assert len(open_("shelf/main#train[:2]", data_dir=data_dir)) == 2


@pytest.mark.parametrize("source, expected", [
  ("shelf/main", "FILE: say which split after #: train, test"),
  ("shelf/main#dev", r"FILE: Unknown split 'dev'. Should be one of \['train', 'test'\]."),
  ("shelf/main:9.9.9#train", "FILE: Dataset shelf not found."),
  ("shelfs#train", "FILE: Dataset shelfs not found."),
])
def test_bad_tfds_name_is_named(data_dir, source, expected):
  assert re.fullmatch(expected, message(ValueError, source, data_dir=data_dir))


def test_missing_column_of_a_tfds_dataset_is_named(data_dir):
  said = message(ValueError, "shelf/main#test", ("answer",), data_dir=data_dir)
  assert said == "FILE: no column 'answer', it has 'known', 'nested', 'number', 'question', 'ratio', 'words'"


# The builder of the arithmetic problems, as an example of one.


@pytest.fixture
def few_problems():
  """To make and write all of them takes seconds."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(arithmetic.SPLIT_SIZES, "train", 500)
    yield


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.usefixtures("few_problems")
def test_the_dataset_of_a_builder_is_prepared_when_first_used_and_keeps_the_order(tmp_path, split):
  pytest.importorskip("tensorflow_datasets")
  rows = open_(f"arithmetic#{split}", data_dir=str(tmp_path))
  assert list(rows) == get_task("arithmetic").examples(split)


def test_preparing_prints_nothing(few_problems, tmp_path, capfd):
  pytest.importorskip("tensorflow_datasets")
  open_("arithmetic#test", data_dir=str(tmp_path))
  captured = capfd.readouterr()
  assert captured.out + captured.err == ""


def test_preparing_survives_another_process_that_is_faster(few_problems, tmp_path, monkeypatch):
  tfds_source = pytest.importorskip("gdsd_jax.tasks.tfds_source")
  generate = tfds_source.Arithmetic._split_generators

  def overtaken(builder, dl_manager):
    monkeypatch.undo()
    open_("arithmetic#train", data_dir=str(tmp_path))  # The other process: starts later, finishes first.
    return generate(builder, dl_manager)

  monkeypatch.setattr(tfds_source.Arithmetic, "_split_generators", overtaken)
  assert len(open_("arithmetic#test", data_dir=str(tmp_path))) == 400


def test_preparing_reads_what_another_process_wrote_since_the_first_look(few_problems, tmp_path, monkeypatch):
  tfds_source = pytest.importorskip("gdsd_jax.tasks.tfds_source")
  prepare = tfds_source.prepare

  def late(builder):
    monkeypatch.undo()
    open_("arithmetic#train", data_dir=str(tmp_path))
    prepare(builder)

  monkeypatch.setattr(tfds_source, "prepare", late)
  assert len(open_("arithmetic#test", data_dir=str(tmp_path))) == 400


def test_two_processes_may_prepare_at_once(tmp_path):
  pytest.importorskip("tensorflow_datasets")
  program = """
import sys
from gdsd_jax.tasks import sources
print(len(sources.open_source("arithmetic#test", ("question",), field="task.train_source", data_dir=sys.argv[1])))
"""
  command = [sys.executable, "-c", program, str(tmp_path)]
  processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
  assert [process.communicate()[0] for process in processes] == ["400\n", "400\n"]


def test_reading_a_tfds_dataset_imports_neither_jax_nor_tensorflow(data_dir):
  program = """
import sys
from gdsd_jax.tasks import sources
sources.open_source("shelf/main#test", ("question",), field="task.train_source", data_dir=sys.argv[1])[0]
print(sorted({"jax", "flax", "tensorflow"} & set(sys.modules)))
"""
  result = subprocess.run([sys.executable, "-c", program, data_dir], capture_output=True, text=True, check=True)
  assert result.stdout == "[]\n"


def test_data_dir_that_cannot_be_written_is_named(tmp_path):
  pytest.importorskip("tensorflow_datasets")
  file = written(tmp_path / "file", "")
  assert message(OSError, "arithmetic#test", data_dir=str(file)) == f"FILE, kept in '{file}': Not a directory"


# The hub


@pytest.fixture
def no_network(monkeypatch):
  """Every name is unknown to the resolver. That of the machine may be there or not."""
  import socket

  def fail(*args, **kwargs):
    raise socket.gaierror(-2, "Name or service not known")

  monkeypatch.setattr(socket, "getaddrinfo", fail)


@pytest.mark.parametrize("source", ["huggingface:openai/gsm8k/main#train", "gsm8k#train", "mnist#train"])
def test_without_network_a_local_file_is_asked_for(tmp_path, no_network, source):
  pytest.importorskip("tensorflow_datasets")
  pytest.importorskip("datasets")
  assert re.fullmatch(r"FILE: no network to \S+ \(.*\).*; give a local file \(.jsonl, .json, .csv, .parq.*\)",
                      message(OSError, source, data_dir=str(tmp_path)))


def test_hub_without_its_package_says_how_to_get_it(tmp_path, monkeypatch):
  hub_source = pytest.importorskip("gdsd_jax.tasks.hub_source")
  find_spec = importlib.util.find_spec
  monkeypatch.setattr(
    hub_source.importlib.util, "find_spec", lambda name: None if name == "datasets" else find_spec(name))
  said = message(ValueError, "huggingface:a/b#train", data_dir=str(tmp_path))
  assert "pip install 'gdsd_jax[hub]'" in said


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
  """A cache of the library `datasets`, empty, and no network; (library, folder)."""
  datasets = pytest.importorskip("datasets")
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
  return datasets, tmp_path / "cache"


def cached(datasets, folder, name, rows):
  """Writes a dataset to the cache as `load_dataset` does, which wants the hub for it."""

  class Fetched(datasets.GeneratorBasedBuilder):
    BUILDER_CONFIGS = [datasets.BuilderConfig(name=name, version="0.0.0")]

    def _info(self):
      return datasets.DatasetInfo()

    def _split_generators(self, manager):
      return [datasets.SplitGenerator(split, gen_kwargs={"rows": rows}) for split in ("train", "test")]

    def _generate_examples(self, rows):
      return enumerate(rows)

  Fetched(cache_dir=folder, dataset_name="Sums-2to3", repo_id="Some-One/Sums-2to3", config_name=name,
          hash="abc").download_and_prepare()


def test_hub_dataset_in_the_cache_of_datasets_needs_no_network(tmp_path, hub_cache, no_network):
  cached(*hub_cache, "main", [{"question": "é", "nums": [1, 2]}] * 4)
  options = {"data_dir": str(tmp_path / "none")}
  rows = open_("huggingface:Some-One/Sums-2to3/main#train[:50%]", **options)
  assert rows == [{"question": "é", "nums": [1, 2]}] * 2
  assert rows[1].place == "huggingface:Some-One/Sums-2to3/main#train[:50%], row 2"
  assert len(open_("huggingface:Some-One/Sums-2to3#test", **options)) == 4  # the only configuration need not be named
  said = message(ValueError, "huggingface:Some-One/Sums-2to3", **options)
  assert said == "FILE: say which split after #: train, test"


def test_the_cached_configuration_is_told_where_none_is_named(tmp_path, hub_cache, no_network, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger("gdsd_jax"), "propagate", True)
  cached(*hub_cache, "more", [{"question": "a"}])
  for config, told in (("", True), ("/more", False)):
    caplog.clear()
    with caplog.at_level(logging.INFO, "gdsd_jax"):
      open_(f"huggingface:Some-One/Sums-2to3{config}#train", data_dir=str(tmp_path / "none"))
    assert ("its configuration more, which alone was fetched before; huggingface:Some-One/Sums-2to3/CONFIG names"
            in caplog.text) == told


def test_several_cached_configurations_are_named(tmp_path, hub_cache, no_network):
  for name in ("main", "more"):
    cached(*hub_cache, name, [{"question": "a"}])
  said = message(OSError, "huggingface:Some-One/Sums-2to3#train", data_dir=str(tmp_path / "none"))
  assert "There are multiple 'Some-One/Sums-2to3' configurations in the cache: " in said and "no network to" in said


def test_offline_nothing_is_fetched(tmp_path, hub_cache, monkeypatch):
  monkeypatch.setattr(hub_cache[0].config, "HF_HUB_OFFLINE", True)
  said = message(OSError, "huggingface:Some-One/Sums-2to3#train", data_dir=str(tmp_path / "none"))
  assert said.startswith("FILE: HF_HUB_OFFLINE forbids to fetch it, and: Couldn't find cache for Some-One/Sums-2to3;")


def test_hub_dataset_is_fetched_once_into_data_dir(tmp_path, hub_cache, monkeypatch):
  hub_source = pytest.importorskip("gdsd_jax.tasks.hub_source")
  # A folder stands in for the hub: the library reads a name that is a local folder from there.
  monkeypatch.chdir(tmp_path)
  (tmp_path / "Some-One" / "Sums-2to3").mkdir(parents=True)
  written(tmp_path / "Some-One" / "Sums-2to3" / "train.jsonl", '{"question": "é", "nums": [1, 2]}\n' * 3)
  monkeypatch.setattr(hub_source, "check_network", lambda url: None)
  for _ in range(2):
    rows = open_("huggingface:Some-One/Sums-2to3#train", data_dir=str(tmp_path / "kept"))
    assert rows[2] == {"question": "é", "nums": [1, 2]}
  assert list((tmp_path / "kept").rglob("*.arrow")) and not (tmp_path / "cache").exists()


def test_hub_dataset_that_tfds_has_prepared_is_read_from_there(data_dir, tmp_path, no_network):
  shutil.copytree(Path(data_dir) / "shelf", tmp_path / "some_one__shelf")
  for file in tmp_path.rglob("*"):
    if file.is_file():
      file.rename(file.with_name(file.name.replace("shelf", "some_one__shelf")))
  for file in tmp_path.rglob("dataset_info.json"):
    file.write_text(file.read_text().replace('"shelf"', '"some_one__shelf"'))
  assert len(open_("huggingface:Some-One/shelf/main#train", data_dir=str(tmp_path))) == 3


@pytest.mark.parametrize("source, error", [
  ("openai/gsm8k", "FILE: Dataset openai not found."),
  ("openai/gsm8k/main#train", "is neither a file"),
  ("HuggingFaceH4/MATH-500#test", "FILE: Dataset hugging_face_h4 not found."),
])
def test_a_hub_name_without_its_prefix_is_told_it(tmp_path, source, error):
  pytest.importorskip("tensorflow_datasets")
  said = message(ValueError, source, data_dir=str(tmp_path))
  assert error in said and said.endswith(". On the hub it would be huggingface:FILE")

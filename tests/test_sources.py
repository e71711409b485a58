"""Sources of problems: local files, TFDS datasets, the hub through TFDS, and what bad ones say."""

import gzip
import json
import re
import subprocess
import sys
import types

from hypothesis import given, settings, strategies as st
import pytest

from gdsd_jax.tasks import arithmetic, get_task, sources
from gdsd_jax.tasks.sources import examples_of, FILE_KINDS, text_of

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
  ("json", json.dumps(ROWS)),
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


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text()), min_size=1))
def test_any_rows_survive_a_file(tmp_path_factory, rows):
  file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
  assert open_(written(file, "\n".join(json.dumps(row) for row in rows)), ()) == rows


@settings(deadline=None)
@given(st.binary(), st.sampled_from(FILE_KINDS))
def test_any_bytes_are_rows_or_one_clear_line(tmp_path_factory, content, kind):
  file = written(tmp_path_factory.mktemp("bytes") / f"rows{kind}", content)
  assert message((ValueError, OSError), file, ("no such column",))


@pytest.mark.parametrize("name, content, expected", [
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
  "source", ["", "/data/rows.parquet", "rows.jsonl.zip", "huggingface:gsm8k", "../rows", "a b", "#train"]
)
def test_unknown_kind_of_source_lists_the_known_ones(source):
  pytest.importorskip("tensorflow_datasets")
  with pytest.raises(ValueError) as raised:
    open_(source)
  assert str(raised.value).startswith(f"{FIELD}: {source!r} is neither a file ending in .jsonl, .jsonl.gz, ")
  assert "NAME[/CONFIG][:VERSION][#SPLIT]" in str(raised.value)


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
  assert re.fullmatch(r"FILE: no network to \S+ \(.*\); give a local file \(.jsonl, .jsonl.gz, .json, .csv\)",
                      message(OSError, source, data_dir=str(tmp_path)))


def test_hub_without_its_package_says_how_to_get_it(tmp_path, monkeypatch):
  tfds_source = pytest.importorskip("gdsd_jax.tasks.tfds_source")
  monkeypatch.setattr(tfds_source.importlib.util, "find_spec", lambda name: None)
  said = message(ValueError, "huggingface:a/b#train", data_dir=str(tmp_path))
  assert "pip install 'gdsd_jax[hub]'" in said


def test_hub_dataset_is_prepared_once_and_read_without_network_then(tmp_path, monkeypatch):
  tfds_source = pytest.importorskip("gdsd_jax.tasks.tfds_source")
  datasets = pytest.importorskip("datasets")
  import huggingface_hub

  # A folder stands in for the hub: the package datasets reads a name that is a local folder from there.
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
  (tmp_path / "Some-One" / "Sums-2to3").mkdir(parents=True)
  written(tmp_path / "Some-One" / "Sums-2to3" / "train.jsonl", '{"question": "é", "nums": [1, 2]}\n' * 3)
  monkeypatch.setattr(tfds_source, "_check_network", lambda url: None)
  monkeypatch.setattr(huggingface_hub, "dataset_info",
                      lambda *args, **kwargs: types.SimpleNamespace(gated=False, card_data=None, tags=[]))
  options = {"data_dir": str(tmp_path / "tfds")}
  assert open_("huggingface:Some-One/Sums-2to3#train", **options)[2] == {"question": "é", "nums": [1, 2]}

  monkeypatch.delattr(huggingface_hub, "dataset_info")
  monkeypatch.setattr(datasets, "load_dataset_builder", None)
  assert len(open_("huggingface:Some-One/Sums-2to3", **options)) == 3

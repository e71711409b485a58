"""Which files a path, folder, pattern or address names, and which of their rows a split has."""

import functools
import gzip
import http.server
import importlib.util
import json
import re
import threading

from hypothesis import given, strategies as st
import pytest
from test_sources import message, open_, written

from gdsd_jax.tasks import row_files
from gdsd_jax.tasks.splits import parse_split


@pytest.fixture
def folder(tmp_path):
  """Two files of the split train and one of test, one that says no split, and others that hold no rows."""
  for name, count in (("train-00001.jsonl", 2), ("train-00000.jsonl", 1), ("test.csv", 3), ("more.json", 1)):
    rows = [{"question": f"{name} {i}"} for i in range(count)]
    lines = [row["question"] for row in rows] if name.endswith("csv") else map(json.dumps, rows)
    header = ["question"] if name.endswith("csv") else []
    written(tmp_path / name, json.dumps(rows) if name.endswith("json") else "\n".join([*header, *lines]))
  written(tmp_path / "README.md", "text")
  written(tmp_path / ".hidden.jsonl", "no rows")
  (tmp_path / "sub").mkdir()
  return tmp_path


@pytest.mark.parametrize("source, expected", [
  ("{}#train", ["train-00000.jsonl 0", "train-00001.jsonl 0", "train-00001.jsonl 1"]),
  ("{}#test", ["test.csv 0", "test.csv 1", "test.csv 2"]),
  ("{}/#train[1:]", ["train-00001.jsonl 0", "train-00001.jsonl 1"]),
  ("{}/*.jsonl", ["train-00000.jsonl 0", "train-00001.jsonl 0", "train-00001.jsonl 1"]),
  ("{}/tr*[1].jsonl", ["train-00001.jsonl 0", "train-00001.jsonl 1"]),
  ("{}/m*", ["more.json 0"]),
  ("{}/*#test[-1:]", ["test.csv 2"]),
  ("{}/test.csv#train[:1]", ["test.csv 0"]),
  ("{}/test.csv#test[:1]", ["test.csv 0"]),
])
def test_folders_and_patterns_are_their_files_in_order(folder, source, expected):
  assert [row["question"] for row in open_(source.format(folder))] == expected


def test_a_folder_whose_files_say_no_split_is_the_split_train(tmp_path):
  written(tmp_path / "b.jsonl", '{"question": "b"}')
  written(tmp_path / "a.jsonl", '{"question": "a"}')
  assert [row["question"] for row in open_(f"{tmp_path}#train")] == ["a", "b"] == [
    row["question"] for row in open_(tmp_path)]


def test_a_folder_whose_rows_are_in_its_folders_names_these(tmp_path):
  for name in ("main", "socratic", "prepared"):
    (tmp_path / name).mkdir()
    written(tmp_path / name / ("features.json" if name == "prepared" else "train.jsonl"), '{"question": "a"}')
  assert message(ValueError, f"{tmp_path}#train").endswith(
    "it holds no rows itself, but its folders main, socratic do; name one of them")


def test_a_split_of_a_longer_name_is_that_alone(tmp_path):
  for name in ("train_sft-00000-of-00002", "train_sft-00001-of-00002", "train_gen-00000-of-00001", "test_sft"):
    written(tmp_path / f"{name}.jsonl", json.dumps({"question": name}))
  read = lambda split: [row["question"] for row in open_(f"{tmp_path}#{split}")]
  assert read("train_sft") == ["train_sft-00000-of-00002", "train_sft-00001-of-00002"]
  assert read("train_gen[:1]") == ["train_gen-00000-of-00001"] and read("test_sft") == read("test") == ["test_sft"]
  assert len(read("train")) == 3
  assert "no split 'train_dpo', there is test, train" in message(ValueError, f"{tmp_path}#train_dpo")


def test_rows_of_a_pattern_know_their_file(folder):
  assert open_(f"{folder}/*.jsonl")[2].place == f"{folder}/train-00001.jsonl, line 2"


@pytest.mark.parametrize("source, error, expected", [
  ("", ValueError, ": say which split after #: test, train"),
  ("#validation", ValueError, ": no split 'validation', there is test, train"),
  ("/test.csv#validation", ValueError, ": no split 'validation', there is test"),
  ("/*.parquet", OSError, ": there is no file that ends in .jsonl, "),
])
def test_what_is_not_in_a_folder_is_named(folder, source, error, expected):
  assert message(error, f"{folder}{source}").startswith("FILE" + expected)


def test_a_folder_without_files_of_rows_may_have_the_name_of_a_dataset(folder, monkeypatch):
  monkeypatch.chdir(folder)
  assert row_files.open_files("sub#train") is None
  assert "nor a folder of such files, nor a TFDS name" in message(ValueError, f"{folder}/sub")


def test_a_name_with_signs_of_patterns_and_splits_may_be_a_file(tmp_path):
  assert len(open_(written(tmp_path / "a#[b]*.jsonl", '{"question": 1}'))) == 1
  assert len(open_(f"{tmp_path}/a#[b]*.jsonl#train")) == 1


SLICES = [
  ("train[:90%]", range(9)), ("[90%:]", range(9, 10)), ("train", range(10)), ("[-3:]", range(7, 10)), ("[2:4]", (2, 3)),
  ("[:-8]", (0, 1)), ("[10%:-80%]", (1,)), ("train[8:100%]", (8, 9)), ("[:]", range(10)), ("TRAIN[9:10]", (9,)),
]


@pytest.mark.parametrize("split, expected", SLICES)
def test_a_file_is_sliced_as_a_list_is(tmp_path, split, expected):
  file = written(tmp_path / "rows.jsonl", "".join(f'{{"question": {i}}}\n' for i in range(10)))
  assert [row["question"] for row in open_(f"{file}#{split}")] == list(expected)


@pytest.mark.parametrize("split", ["train[:90%]", "train[90%:]", "train[:33%]", "train[2:5]", "train[-7:-2]"])
@pytest.mark.parametrize("count", [7, 10, 15])
def test_slices_are_those_of_datasets(tmp_path, split, count):
  datasets = pytest.importorskip("datasets")
  file = written(tmp_path / "rows.jsonl", "".join(f'{{"question": {i}}}\n' for i in range(count)))
  theirs = datasets.arrow_reader.ReadInstruction.from_spec(split).to_absolute({"train": count})[0]
  assert [row["question"] for row in open_(f"{file}#{split}")] == list(range(count))[theirs.from_:theirs.to]


@given(st.integers(1, 300), st.integers(0, 100))
def test_two_slices_that_meet_share_no_row(count, share):
  rows = list(range(count))
  parts = [(f"[:{share}%]", f"[{share}%:]"), (f"[:{share - 100}%]", f"[{share - 100}%:]")] if share < 100 else []
  for first, second in parts:
    found = []
    for text in (first, second):
      try:
        found += parse_split(text, "s").of(rows)
      except ValueError:  # that slice is empty
        pass
    assert found == rows


@pytest.mark.parametrize("split, expected", [
  ("train[:90]%", "FILE: 'train[:90]%' is no split; it is written as #train, #train[:90%] or #[100:-50]"),
  ("train[90%]", "FILE: 'train[90%]' is no split; it is written as #train, #train[:90%] or #[100:-50]"),
  ("[:0.5]", "FILE: '[:0.5]' is no split; it is written as #train, #train[:90%] or #[100:-50]"),
  ("[3:3]", "FILE: none of its 4 rows lies in the slice"),
  ("[:11%]", "FILE: none of its 4 rows lies in the slice"),
  ("[:5]", "FILE: 5 is beyond its 4 rows"),
  ("[-101%:]", "FILE: -101% is beyond its 4 rows"),
  ("dev", "FILE: no split 'validation', there is train"),
])
def test_a_split_that_is_none_is_named(tmp_path, split, expected):
  file = written(tmp_path / "rows.jsonl", '{"question": 1}\n' * 4)
  assert message(ValueError, f"{file}#{split}") == expected


def test_a_bad_row_outside_the_slice_does_not_matter(tmp_path):
  assert len(open_(str(written(tmp_path / "rows.jsonl", '{"question": 1}\nnot json')) + "#[:1]")) == 1


@pytest.fixture
def memory():
  """An object store of fsspec: its paths begin with memory://bucket."""
  import fsspec

  store = fsspec.filesystem("memory")
  for name in ("train", "test"):
    store.pipe(f"/bucket/{name}.jsonl.gz", gzip.compress(f'{{"question": "{name}"}}'.encode(), mtime=0))
  yield "memory://bucket"
  store.store.clear()


def test_object_stores_are_read_as_folders_are(memory):
  for source in (f"{memory}/train.jsonl.gz", f"{memory}/tr*", f"{memory}#train[:1]"):
    rows = open_(source)
    assert rows == [{"question": "train"}] and rows[0].place == "memory:///bucket/train.jsonl.gz, line 1".replace(
      "///", "//" if source.endswith(".gz") else "///")


@pytest.mark.parametrize("source, expected", [
  ("/none.jsonl", "cannot read FILE: no such file"), ("/none", "FILE: there is no file that ends in .jsonl, .*"),
])
def test_what_is_not_in_an_object_store_is_named(memory, source, expected):
  assert re.fullmatch(expected, message(OSError, memory + source))


@pytest.mark.slow
def test_a_bucket_of_s3_is_read_as_a_folder_is(monkeypatch):
  boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
  pytest.importorskip("s3fs")
  server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
  server.start()
  try:
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1"),
                        ("ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))):
      monkeypatch.setenv(f"AWS_{name}", value)
    store = boto3.client("s3")
    store.create_bucket(Bucket="bucket")
    for name, body in (("train-0.jsonl", b'{"question": 1}'), ("test.csv", b"question\n2"), ("", b"")):
      store.put_object(Bucket="bucket", Key=f"rows/{name}", Body=body)
    assert open_("s3://bucket/rows/train-0.jsonl") == open_("s3://bucket/rows#train") == [{"question": 1}]
    assert open_("s3://bucket/rows/*#test")[0].place == "s3://bucket/rows/test.csv, line 2"
    assert message(OSError, "s3://bucket/none.jsonl") == "cannot read FILE: no such file"
    assert message(OSError, "s3://bucket/none").startswith("FILE: there is no file that ends in ")
  finally:
    server.stop()


@pytest.mark.parametrize("source, package, extra", [
  ("s3://bucket/rows.jsonl", "s3fs", "s3"), ("gs://bucket/rows.jsonl", "gcsfs", "gcs"),
  ("https://example.com/rows.jsonl", "aiohttp", "hub"),
])
def test_an_address_whose_package_lacks_says_how_to_get_it(monkeypatch, source, package, extra):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else True)
  said = message(OSError, source)
  assert said.endswith(f":// needs {package}, which is not installed; pip install 'gdsd_jax[{extra}]'")


def test_without_a_network_a_bucket_is_not_waited_for(monkeypatch):
  if importlib.util.find_spec("gcsfs") is None:  # to import it takes seconds
    pytest.skip("gcsfs is not installed")
  monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://localhost:1")
  said = message(OSError, "gs://bucket/rows.jsonl")
  assert said.startswith("cannot read FILE: no network to localhost:1 (")


def test_an_unknown_scheme_is_named():
  assert message(OSError, "ftps3://bucket/rows.jsonl") == "cannot read FILE: Protocol not known: ftps3"


def test_a_file_on_the_web_is_read_with_its_query(tmp_path):
  pytest.importorskip("aiohttp")
  written(tmp_path / "rows.jsonl", '{"question": 1}\n{"question": 2}')
  serve = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
  serve.log_message = lambda *_: None
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    assert [row["question"] for row in open_(f"{address}/rows.jsonl?download=true#[1:]")] == [2]
    assert message(OSError, f"{address}/none.jsonl").startswith("cannot read FILE: ")
    server.shutdown()

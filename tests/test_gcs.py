"""A run on gs://, against an emulator of Google Cloud Storage: the same rows as in a local folder, and it resumes."""

import json
import os
from pathlib import Path
import socket
import subprocess
import sys

from etils import epath
import jax
import jax.numpy as jnp
from page_rows import write_run
import pytest

from gdsd_jax.page.report import write_report
from gdsd_jax.runs import files
from gdsd_jax.runs.checkpoints import Checkpoints
from gdsd_jax.runs.earlier import set_aside
from gdsd_jax.runs.files import check_workdir, JsonLines, local_folder, read_rows, write_whole
from gdsd_jax.runs.log_config import LogConfig
from gdsd_jax.runs.rollouts_file import FILE, RolloutsFile
from gdsd_jax.runs.state import TrainState

REPOSITORY = Path(__file__).parent.parent
SMALL = {
  "group_size": 4, "prompts_per_step": 2, "sampler.completion_length": 8, "sampler.block_length": 4, "sampler.steps": 4,
  "objective.num_iterations": 1, "objective.num_mc": 1, "eval.every": 100, "eval.num_examples": 8,
  "eval.batch_size": 8, "checkpoint.every": 1,
  "log.keep_every": 1,
}


def train(workdir, steps, **environment):
  overrides = [f"--config.{name}={value}" for name, value in {**SMALL, "steps": steps}.items()]
  result = subprocess.run(
    [sys.executable, "launch/train.py", "--config=configs/gdsd_math.py", f"--workdir={workdir}", *overrides],
    cwd=REPOSITORY, env={**os.environ, "JAX_PLATFORMS": "cpu", **environment}, capture_output=True, text=True,
    timeout=1500,
  )
  assert result.returncode == 0, result.stderr[-2000:]
  return result.stdout


def tell_generations(monkeypatch):
  """The emulator's downloads lack a header of Google's, the object's generation. TensorStore takes it for 0 then, and
  refuses to look whether a value that it has read is still the newest ("Malformed StorageGeneration").
  """
  objects = pytest.importorskip("gcp_storage_emulator.handlers.objects")
  download = objects.download

  def with_generation(request, response, storage, *rest, **others):
    download(request, response, storage, *rest, **others)
    if response.status < 300:
      found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
      response["x-goog-generation"] = found["generation"]

  monkeypatch.setattr(objects, "download", with_generation)


def served():
  """An emulator, and the environment by which programs find it."""
  emulator = pytest.importorskip("gcp_storage_emulator.server")
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  server = emulator.create_server("localhost", port, in_memory=True, default_bucket="bucket")
  address = f"http://localhost:{port}"
  return server, {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address,
                  "GOOGLE_CLOUD_PROJECT": "project", "GRPC_VERBOSITY": "NONE",
                  # The emulator does not tell what kind of bucket it has, for which gcsfs would wait a minute.
                  "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}


@pytest.fixture
def bucket(monkeypatch):
  """The bucket gs://bucket of an emulator, by which this process reads and writes gs://."""
  server, environment = served()
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  pytest.importorskip("gcsfs")  # which reads them
  server.start()
  try:
    yield
  finally:
    server.stop()


@pytest.mark.slow
def test_kept_rollouts_on_gs_are_the_local_ones_and_are_set_aside(tmp_path, bucket):
  config, remote = LogConfig(keep_every=1, keep_megabytes=0.004), epath.Path("gs://bucket/run")
  for folder, parts in ((tmp_path, [(-1, 30)]), (remote, [(-1, 17), (12, 30)])):
    for start, end in parts:
      file = RolloutsFile(folder, start, config)
      for step in filter(file.keeps, range(max(start, 0) + 1, end + 1)):
        file.write([{"step": step, "group": group, "text": "x" * (100 + step * 7 % 50)} for group in range(2)])
  written = (remote / FILE).read_bytes()
  assert written == (tmp_path / FILE).read_bytes() and 2000 < len(written) <= 4000
  aside = set_aside(remote)
  assert (aside / FILE).read_bytes() == written and not (remote / FILE).exists()


@pytest.mark.slow
def test_a_run_on_gs_has_its_page_there(tmp_path, bucket):
  for file in write_run(tmp_path, steps=2).iterdir():
    (epath.Path("gs://bucket/run") / file.name).write_bytes(file.read_bytes())
  for out in (None, "gs://bucket/pages/run.html"):
    write_report(["gs://bucket/run"], out, watch=False)
    assert epath.Path(out or "gs://bucket/run/report.html").stat().length > 100_000


@pytest.mark.slow
def test_copied_checkpoints_that_an_older_orbax_wrote_are_used_not_deleted(tmp_path, bucket, monkeypatch):
  tell_generations(monkeypatch)
  states = [
    TrainState(step=jnp.int32(step), params={"weight": jnp.full(3, step)}, frozen={}, opt_state=(), reference=None,
               key=jax.random.key(step))
    for step in (1, 2, 3)
  ]
  local, remote = Checkpoints(tmp_path, 3), epath.Path("gs://bucket/run/checkpoints")
  for state in states:
    local.save(state, {}, None)
  local.close()
  ended = tmp_path / "3" / "_CHECKPOINT_METADATA"  # not this one: it was copied while it was written
  ended.write_text(json.dumps({**json.loads(ended.read_text()), "commit_timestamp_nsecs": None}))
  for file in tmp_path.rglob("*"):
    if file.is_file() and file.name != "commit_success.txt":  # which an older Orbax writes in stores alone
      (remote / file.relative_to(tmp_path)).write_bytes(file.read_bytes())
  checkpoints = Checkpoints(remote, 3)
  restored, _ = checkpoints.restore(states[0], check=lambda run: None)
  checkpoints.close()
  assert int(restored.step) == 2 and restored.params["weight"].tolist() == [2, 2, 2]
  assert checkpoints.has(1) and not checkpoints.has(3)


@pytest.mark.slow
def test_a_run_on_gs_is_the_local_one_and_resumes(tmp_path, monkeypatch):
  tell_generations(monkeypatch)
  gcsfs = pytest.importorskip("gcsfs")
  server, environment = served()
  server.start()
  try:
    train("gs://bucket/run", 2, **environment)
    assert "RESUMING the run in gs://bucket/run from step 2" in train("gs://bucket/run", 3, **environment)
    store = gcsfs.GCSFileSystem(endpoint_url=environment["STORAGE_EMULATOR_HOST"], token="anon")
    for name in ("metrics.jsonl", "rollouts.jsonl"):
      store.get(f"bucket/run/{name}", str(tmp_path / name))
    for name in ("config.json", "reward.png", "checkpoints/3/commit_success.txt"):
      assert store.exists(f"bucket/run/{name}")
    assert store.glob("bucket/run/tensorboard/*")
    page = [sys.executable, "launch/report.py", "--workdir=gs://bucket/run"]
    subprocess.run(page, cwd=REPOSITORY, env={**os.environ, "JAX_PLATFORMS": "cpu", **environment}, check=True)
    assert store.size("bucket/run/report.html") > 100_000
  finally:
    server.stop()
  train(tmp_path / "local", 3)
  remote, local = (read_rows(path / "metrics.jsonl") for path in (tmp_path, tmp_path / "local"))
  assert [row["step"] for row in remote] == [0, 1, 2, 3]
  for row, expected in zip(remote, local):
    for name in ("reward", "loss", "grad_norm"):
      assert row.get(name) == expected.get(name)
  assert (tmp_path / "rollouts.jsonl").read_bytes() == (tmp_path / "local" / "rollouts.jsonl").read_bytes()


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
  write_whole(tmp_path / "file", "first")

  def killed(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(os, "replace", killed)
  with pytest.raises(KeyboardInterrupt):
    write_whole(tmp_path / "file", "second")
  assert (tmp_path / "file").read_text() == "first"


def test_lines_are_on_the_disk_once_appended(tmp_path):
  file = JsonLines(tmp_path / "lines")
  file.append([{"step": 1}, {"step": 2}])
  file.append([{"step": 3}])
  assert (tmp_path / "lines").read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_lines_in_an_object_store_are_written_whole_again(tmp_path, monkeypatch):
  monkeypatch.setattr(files, "is_remote", lambda path: True)  # as far as this file is concerned
  for step in (1, 2):
    JsonLines(tmp_path / "lines").append([{"step": step}])
  assert (tmp_path / "lines").read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("content", ['{"step": 1}\nno JSON\n', '{"step": 1}\n\n{"step": 2}\n', '{"step": 1}\n{"st\n'])
def test_a_damaged_line_is_named_by_file_and_line(tmp_path, content):
  (tmp_path / "lines").write_text(content)
  with pytest.raises(ValueError, match=f"{tmp_path / 'lines'}, line 2: not JSON"):
    read_rows(tmp_path / "lines")


def test_another_object_store_is_refused_as_workdir():
  with pytest.raises(ValueError, match="--workdir: s3://bucket/run is neither a local folder nor gs://BUCKET/FOLDER"):
    check_workdir("s3://bucket/run")


def test_gs_without_gcsfs_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  with pytest.raises(ValueError, match=r"pip install 'gdsd_jax\[gcs\]'"):
    check_workdir("gs://bucket/run")


def test_an_object_store_is_refused_where_a_local_folder_is_needed():
  with pytest.raises(ValueError, match="--out: gs://bucket/out must be a local folder"):
    local_folder("--out", "gs://bucket/out")

"""The lock of a folder: refused while its owner lives, taken over when it is dead, here and elsewhere."""

import json
import os
import re
import signal
import time

from commands import FORKING
import pytest

from gdsd_jax.runs import lock as locks
from gdsd_jax.runs.lock import check_free, Lock, locked


def own(folder, is_locked):
  with locked(folder):
    is_locked.set()
    time.sleep(600)


@pytest.fixture
def owner(tmp_path):
  """Another process that has the lock."""
  is_locked = FORKING.Event()
  process = FORKING.Process(target=own, args=(tmp_path, is_locked))
  process.start()
  assert is_locked.wait(60)
  yield process
  process.kill()
  process.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  """Seconds become hundredths."""
  for name, seconds in (("BEAT_SECONDS", 0.05), ("TIMEOUT_SECONDS", 0.5), ("_DYING_SECONDS", 0.2),
                        ("_STORE_SECONDS", 0.1)):
    monkeypatch.setattr(locks, name, seconds)


def test_a_folder_in_use_is_refused_in_one_line_that_says_by_whom(tmp_path, owner):
  for use in (check_free, lambda folder: locked(folder).__enter__()):
    with pytest.raises(BlockingIOError) as caught:
      use(tmp_path)
    line = str(caught.value)
    assert re.fullmatch(rf"--workdir: {tmp_path} is in use by another command \(process {owner.pid} on \S+, since "
                        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\); wait for it or stop it, or choose another folder", line)


def test_the_lock_of_a_killed_process_is_taken_at_once(tmp_path, owner, monkeypatch):
  monkeypatch.setattr(locks, "_DYING_SECONDS", 60.0)  # a busy machine takes its time to end it
  os.kill(owner.pid, signal.SIGKILL)
  with locked(tmp_path):
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_a_lock_that_was_given_back_leaves_nothing(tmp_path):
  with locked(tmp_path):
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]
  assert list(tmp_path.iterdir()) == []
  check_free(tmp_path)


def test_an_inner_lock_of_the_same_process_does_nothing(tmp_path):
  with locked(tmp_path / "run") as outer, locked(tmp_path / "run") as inner:
    assert inner is outer
  assert list((tmp_path / "run").iterdir()) == []


def test_a_number_that_another_process_has_by_now_is_no_owner(tmp_path, owner):
  os.kill(owner.pid, signal.SIGSTOP)
  file = tmp_path / ".lock"
  file.write_text(json.dumps(json.loads(file.read_text()) | {"started": "1"}))
  with locked(tmp_path):
    pass


def elsewhere(folder, **fields):
  """The lock of a process on another machine."""
  said = {"host": "far", "pid": 1, "started": "5", "machine": "another", "since": "then", "token": "theirs"}
  (folder / ".lock").write_text(json.dumps(said | {"beat": time.time()} | fields))


def test_an_owner_elsewhere_is_dead_when_its_heartbeat_stops(tmp_path):
  elsewhere(tmp_path)
  check_free(tmp_path)  # nothing is known yet
  started = time.monotonic()
  with locked(tmp_path):
    assert time.monotonic() - started >= locks.TIMEOUT_SECONDS


def test_an_owner_elsewhere_is_alive_while_its_heartbeat_goes_on(tmp_path, monkeypatch):
  elsewhere(tmp_path)
  beats = iter(range(1000))
  monkeypatch.setattr(locks.time, "sleep", lambda seconds: elsewhere(tmp_path, beat=time.time() + next(beats)))
  with pytest.raises(BlockingIOError, match="process 1 on far, since then"):
    locked(tmp_path).__enter__()


def test_a_heartbeat_of_long_ago_is_not_watched(tmp_path, monkeypatch):
  elsewhere(tmp_path, beat=time.time() - 1.1 * locks._LONG_AGO)
  monkeypatch.setattr(locks.time, "sleep", lambda seconds: pytest.fail("waited"))
  with locked(tmp_path):
    pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1', '{"token": "a", "beat": "now"}'])
def test_what_a_kill_has_left_of_a_lock_is_none(tmp_path, content):
  (tmp_path / ".lock").write_text(content)
  with locked(tmp_path):
    pass


def test_a_heartbeat_goes_on_and_a_lock_that_was_lost_is_told(tmp_path):
  with locked(tmp_path) as lock:
    first = json.loads((tmp_path / ".lock").read_text())["beat"]
    while json.loads((tmp_path / ".lock").read_text() or "{}").get("beat", first) == first:
      time.sleep(0.01)
    lock.check()
    elsewhere(tmp_path)
    while lock._lost is None:
      time.sleep(0.01)
    with pytest.raises(BlockingIOError, match="process 1 on far"):
      lock.check()
  assert json.loads((tmp_path / ".lock").read_text())["host"] == "far"


def test_in_an_object_store_the_last_of_two_that_begin_together_has_it(tmp_path, monkeypatch):
  monkeypatch.setattr(locks, "is_remote", lambda path: True)
  monkeypatch.setattr(locks.time, "sleep", lambda seconds: elsewhere(tmp_path))  # written by the other, meanwhile
  assert not Lock(tmp_path, "--workdir")._try()
  monkeypatch.undo()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match=f"^--workdir: cannot write to {tmp_path}/file/run: "):
    locked(tmp_path / "file" / "run").__enter__()

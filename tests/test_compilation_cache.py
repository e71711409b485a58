"""The cache of compiled programs: where it is, that programs come from it, and that it is never in the way."""

import os
from pathlib import Path
import time

import jax
from jax.experimental.compilation_cache import compilation_cache
import pytest

from gdsd_jax.runs import compilation_cache as ours

NAMES = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def home(tmp_path, monkeypatch):
  """A home of its own, and JAX's settings as a user's process has them; those of the tests come back."""
  before = {name: getattr(jax.config, name) for name in NAMES}
  for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setattr(ours, "_MIN_SECONDS", 0.0)
  jax.config.update("jax_compilation_cache_dir", None)
  compilation_cache.reset_cache()
  yield tmp_path
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def compile_one(number):
  """Compiles a program that no other test has."""
  return jax.jit(lambda x: x * number + 1)(1.0)


def test_a_program_is_compiled_once_and_found_again(home):
  found = []
  ours.use_compilation_cache()
  compile_one(1234.5)
  entries = list(home.glob("gdsd_jax/compiled/*/*-cache"))
  assert entries and jax.config.jax_compilation_cache_max_size == 2 * 2**30
  jax.clear_caches()
  compilation_cache.reset_cache()
  listener = lambda event, **_: found.append(event)
  jax.monitoring.register_event_listener(listener)
  try:
    compile_one(1234.5)
  finally:
    jax.monitoring.unregister_event_listener(listener)
  assert "/jax/compilation_cache/cache_hits" in found
  assert list(home.glob("gdsd_jax/compiled/*/*-cache")) == entries


@pytest.mark.parametrize("value", ["", "/elsewhere"])
def test_a_folder_that_the_user_names_is_left_alone(home, monkeypatch, value):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", value)
  ours.use_compilation_cache()
  assert jax.config.jax_compilation_cache_dir is None and not list(home.iterdir())


def test_it_can_be_turned_off(home):
  jax.config.update("jax_enable_compilation_cache", False)
  try:
    ours.use_compilation_cache()
  finally:
    jax.config.update("jax_enable_compilation_cache", True)
  assert jax.config.jax_compilation_cache_dir is None and not list(home.iterdir())


@pytest.mark.parametrize("cache", ["/proc/no/such", ""])
def test_a_folder_that_cannot_be_written_is_no_error(home, monkeypatch, cache):
  monkeypatch.setenv("XDG_CACHE_HOME", cache)
  monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user without a home
  ours.use_compilation_cache()
  assert jax.config.jax_compilation_cache_dir is None
  compile_one(2345.5)


def test_what_a_killed_process_left_half_written_is_removed(home):
  ours.use_compilation_cache()
  folder = Path(jax.config.jax_compilation_cache_dir)
  for name in ("old-cache", "new-cache", "whole-cache", "whole-atime"):
    (folder / name).write_bytes(b"half")
  long_ago = time.time() - 3600
  for name in ("old-cache", "whole-cache"):
    os.utime(folder / name, (long_ago, long_ago))
  ours.use_compilation_cache()
  assert {file.name for file in folder.iterdir()} == {"new-cache", "whole-cache", "whole-atime"}

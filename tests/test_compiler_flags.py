"""XLA's flags for GPUs: there only where one is, and before the user's own."""

import os

import pytest

from gdsd_jax.runs import compiler_flags


@pytest.mark.parametrize("given, found", [
  (None, f"{compiler_flags.GPU_FLAGS} "),
  ("--xla_dump_to=here", f"{compiler_flags.GPU_FLAGS} --xla_dump_to=here"),
])
def test_they_come_before_the_users_own(monkeypatch, tmp_path, given, found):
  monkeypatch.setattr(compiler_flags, "_DRIVER", tmp_path)
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  if given:
    monkeypatch.setenv("XLA_FLAGS", given)
  compiler_flags.use_compiler_flags()
  assert os.environ["XLA_FLAGS"] == found


def test_without_a_gpu_nothing_is_set(monkeypatch, tmp_path):
  monkeypatch.setattr(compiler_flags, "_DRIVER", tmp_path / "none")
  monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=here")
  compiler_flags.use_compiler_flags()
  assert os.environ["XLA_FLAGS"] == "--xla_dump_to=here"


@pytest.mark.parametrize("given", [{}, {"XLA_CLIENT_MEM_FRACTION": "0.5"}, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}])
def test_a_gpus_memory_is_told_of_and_taken_where_the_user_says_nothing_else(monkeypatch, tmp_path, given):
  monkeypatch.setattr(compiler_flags, "_DRIVER", tmp_path)
  names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
  for name in names:
    monkeypatch.delenv(name, raising=False)
  for name, value in given.items():
    monkeypatch.setenv(name, value)
  hint = "; JAX takes three quarters of a GPU unless XLA_PYTHON_CLIENT_MEM_FRACTION=0.95, say, gives it more"
  assert compiler_flags.memory_left() == ("" if given else hint)
  compiler_flags.take_most_memory()
  assert {name: os.environ[name] for name in names if name in os.environ} == (given or {names[1]: "0.95"})
  monkeypatch.delenv(names[1], raising=False)
  monkeypatch.setattr(compiler_flags, "_DRIVER", tmp_path / "none")
  assert compiler_flags.memory_left() == ""

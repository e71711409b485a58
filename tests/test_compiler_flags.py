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

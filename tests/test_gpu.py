"""What runs on a GPU, where there is one: checks in a process of their own, since the other tests are the CPU's."""

import os
from pathlib import Path
import subprocess
import sys

import check_gpu
from conftest import REPOSITORY, slow
import pytest


def run(names, **environment):
  environment = {name: value for name, value in {**os.environ, **environment}.items() if name != "XLA_FLAGS"}
  return subprocess.run([sys.executable, "tests/check_gpu.py", *names], cwd=REPOSITORY, capture_output=True, text=True,
                        env={**environment, "PYTHONPATH": str(REPOSITORY)}, timeout=600)


@pytest.mark.skipif(not Path("/dev/nvidia0").exists(), reason="needs an NVIDIA GPU, and JAX with CUDA")
@pytest.mark.parametrize("name", check_gpu.CHECKS)
def test_it_computes_what_the_cpu_does(name):
  finished = run([name], JAX_PLATFORMS="")
  if "(cpu)" in finished.stdout:
    pytest.skip("JAX is installed without CUDA")
  assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize("name", ["scores", *map(slow, sorted({*check_gpu.CHECKS} - {"scores"}))])
def test_the_checks_hold_on_a_cpu(name):
  finished = run([name], JAX_PLATFORMS="cpu")
  assert finished.returncode == 0 and "(cpu)" in finished.stdout, finished.stdout + finished.stderr

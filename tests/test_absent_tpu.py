"""A machine without a TPU is not searched for one, and one that may have a TPU always is."""

import os
import re
import subprocess
import sys

from conftest import REPOSITORY
import pytest

from gdsd_jax.parallel import absent_tpu


def machine(root, vendor, kind):
  device = root / "sys/bus/pci/devices/0000:00:04.0"
  device.mkdir(parents=True)
  (device / "vendor").write_text(f"{vendor}\n")
  (device / "class").write_text(f"{kind}\n")
  return f"{root}/"


@pytest.mark.parametrize("vendor, kind, may", [
  ("0x1ae0", "0x120000", True), ("0x1ae0", "0xff0000", True),  # TPUs of any generation
  ("0x1ae0", "0x020000", False), ("0x1ae0", "0x010802", False),  # network card and disk of the same cloud
  ("0x10de", "0x030200", False),
])
def test_a_tpu_is_known_by_its_maker_and_kind(tmp_path, vendor, kind, may):
  assert absent_tpu.may_have_tpu(machine(tmp_path, vendor, kind)) is may


@pytest.mark.parametrize("file", ["dev/accel0", "dev/vfio/0"])
def test_a_tpu_is_known_by_the_files_of_its_driver(tmp_path, file):
  (tmp_path / file).parent.mkdir(parents=True)
  (tmp_path / file).touch()
  assert absent_tpu.may_have_tpu(f"{tmp_path}/")


@pytest.mark.parametrize("environment, there, platforms", [
  ({}, False, "cpu"), ({}, True, None), ({"TPU_NAME": "local"}, False, None), ({"JAX_PLATFORMS": "tpu"}, False, None),
])
def test_only_what_is_not_there_is_hidden(monkeypatch, environment, there, platforms):
  chosen = []
  for name in absent_tpu._SAID:
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  config = type("Config", (), {"jax_platforms": None, "update": lambda self, name, value: chosen.append(value)})()
  monkeypatch.setattr(absent_tpu.jax, "config", config)
  monkeypatch.setattr(absent_tpu.importlib.util, "find_spec", lambda name: name)
  monkeypatch.setattr(absent_tpu, "may_have_tpu", lambda: there)
  monkeypatch.setattr(absent_tpu, "_may_have_another_device", lambda: False)
  absent_tpu.hide_absent_tpu()
  assert chosen == ([] if platforms is None else [platforms])


@pytest.mark.slow
def test_with_libtpu_a_cpu_run_says_nothing_of_tpus():
  pytest.importorskip("libtpu")
  if absent_tpu.may_have_tpu():
    pytest.skip("there may be a TPU")
  environment = {name: value for name, value in os.environ.items() if name not in absent_tpu._SAID}
  program = "import gdsd_jax; gdsd_jax.load_pretrained; import jax; print(jax.devices()[0].platform)"
  command = [sys.executable, "-c", program]
  result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
  assert (result.stdout, result.stderr) == ("cpu\n", "")


@pytest.mark.parametrize("platforms, line", [
  ("foo", "Unable to initialize backend 'foo': .*"), ("cuda", "(JAX finds no such device here|.*cuda.*)"),
])
def test_devices_that_are_not_there_are_told_in_one_line(monkeypatch, platforms, line):
  monkeypatch.setenv("JAX_PLATFORMS", platforms)
  script = "from gdsd_jax import command; import jax; command.run(lambda: print(jax.devices()), alone=True)"
  result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY)
  assert result.returncode == 1, result.stdout
  assert re.fullmatch(f"error: JAX_PLATFORMS={platforms}: {line}\n", result.stderr), result.stderr

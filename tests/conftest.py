"""Tests run on the CPU, with eight virtual devices so that shardings are real.

Most of their time is XLA's. They compile without its costly passes, and what takes long to compile is kept on the disk
for the next test, process and run.
"""

import contextlib
import dataclasses
import functools
import importlib.util
from multiprocessing import forkserver
import os
from pathlib import Path
import resource

REPOSITORY = Path(__file__).parent.parent
_FAST_COMPILATION = (
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
  " --xla_cpu_use_fusion_emitters=false --xla_cpu_enable_concurrency_optimized_scheduler=false"
  " --xla_cpu_parallel_codegen_split_count=1"  # tests run side by side: a program in many parts only takes longer
)
# In the environment, before JAX is imported, so that commands which tests start have them, too.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FAST_COMPILATION}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import hypothesis  # noqa: E402
import jax  # noqa: E402  (JAX is configured before anything uses it)
import pytest  # noqa: E402

hypothesis.settings.register_profile(
  "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("any machine")  # however busy it is

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

from gdsd_jax import sandbox  # noqa: E402
from gdsd_jax.models.config import DenoiserConfig  # noqa: E402
from gdsd_jax.models.denoiser import Denoiser  # noqa: E402
from gdsd_jax.parallel.mesh import make_mesh, param_shardings  # noqa: E402
from gdsd_jax.tasks.arithmetic import ArithmeticTask  # noqa: E402

LONGEST = (
  "train", "fast_dllm", "lora_run", "evaluate", "goldens", "step", "overlap", "lora", "benchmark", "token_scores",
  "meshes", "finetuning", "launchers", "checkpoints", "sandbox", "math_tasks", "sandbox_hostile", "scores", "dream",
  "prediction",
)


def pytest_collection_modifyitems(items):
  """The longest files first, so that none of them is what one process does at the end, while the other has nothing."""
  names = [f"test_{name}.py" for name in LONGEST]
  items.sort(key=lambda item: names.index(item.path.name) if item.path.name in names else len(names))


def pytest_sessionfinish():
  """The process that commands.py forks from ends with the tests, so that its seconds count as theirs."""
  forkserver._forkserver._stop()


slow = functools.partial(pytest.param, marks=pytest.mark.slow)  # a case of a test that the quick suite leaves out


def load_recipe(name):
  """The module of configs/NAME.py."""
  file = REPOSITORY / "configs" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(file.stem, file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def without_times(rows):
  """Metrics rows without what differs from run to run."""
  return [{k: v for k, v in row.items() if not k.startswith("seconds/") and k != "tokens_per_second"} for row in rows]


@contextlib.contextmanager
def files_of_at_most(nbytes):
  """A full disk, as far as a file of more than `nbytes` is concerned."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_functions():
  """Drops compiled functions before they are too many: they are mapped memory, and of all modules together the system
  refuses it (65,530 mappings a process, vm.max_map_count), by which XLA crashes.
  """
  yield
  maps = Path("/proc/self/maps")
  if not maps.is_file() or len(maps.read_bytes().splitlines()) > 20_000:
    jax.clear_caches()


@contextlib.contextmanager
def only_devices(count: int):
  """JAX shows so few of the devices: what has nothing to do with meshes compiles and runs faster without."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, "devices", lambda *_: jax.local_devices()[:count])
    yield


def all_devices():
  """All of them again, in a module that has only a few."""
  return only_devices(8)


@contextlib.contextmanager
def few_problems():
  """The arithmetic task has so few that a run starts at once: all prompts are read before it begins."""
  examples = ArithmeticTask.examples
  few = functools.cache(lambda task, split: examples(task, split)[:500])  # they take as long to make as a short run
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(ArithmeticTask, "examples", lambda task, split: few(task, split))
    yield


@pytest.fixture(scope="module")
def quick_runs():
  """Runs of a module that tests neither meshes nor tasks, nor what is drawn."""
  with only_devices(1), few_problems(), pytest.MonkeyPatch.context() as patch:
    patch.setattr("gdsd_jax.runs.metrics.plot_reward", lambda rows, path: None)
    yield


@pytest.fixture(scope="session")
def bubblewrap():
  """Tests that run programs in the sandbox skip where it cannot."""
  try:
    sandbox.check_available()
  except RuntimeError as error:
    pytest.skip(str(error))


@pytest.fixture(scope="session")
def goldens() -> Path:
  """Folder of reference outputs from the PyTorch implementations; tests that need it skip where it is missing."""
  path = Path(os.environ.get("GDSD_GOLDENS", REPOSITORY.parent / "shared" / "goldens"))
  if not path.is_dir():
    pytest.skip(f"reference outputs are not at {path} (set GDSD_GOLDENS)")
  return path


@pytest.fixture(scope="session")
def tiny_config() -> DenoiserConfig:
  return DenoiserConfig(
    vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_size=48,
    rope_theta=10000.0, norm_epsilon=1e-5, max_positions=128, mask_token_id=60, eos_token_id=61, pad_token_id=61,
  )


@pytest.fixture(scope="session")
def tiny_denoiser(tiny_config) -> Denoiser:
  return Denoiser(tiny_config)


@pytest.fixture(scope="session")
def tiny_params(tiny_denoiser):
  return jax.jit(tiny_denoiser.init)(jax.random.key(0))


def over_mesh(sizes, denoiser: Denoiser, params) -> tuple[Denoiser, dict]:
  """A model laid over a mesh whose axes have these sizes, see `make_mesh`."""
  mesh = make_mesh(*sizes)
  denoiser = dataclasses.replace(denoiser, mesh=mesh)
  return denoiser, jax.device_put(params, param_shardings(mesh, denoiser))

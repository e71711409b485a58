"""Tasks: problems to solve, prompts, answers and rewards. Host code, free of JAX."""

import dataclasses
import importlib

from gdsd_jax.checks import require
from gdsd_jax.tasks.base import Task

# Task name -> module and class, imported only when asked for: a task may need packages that others do not.
_TASKS = {
  "arithmetic": ("gdsd_jax.tasks.arithmetic", "ArithmeticTask"),
  "code": ("gdsd_jax.tasks.code", "CodeTask"),
  "countdown": ("gdsd_jax.tasks.countdown", "CountdownTask"),
  "gsm8k": ("gdsd_jax.tasks.gsm8k", "Gsm8kTask"),
  "gsm8k_xml": ("gdsd_jax.tasks.gsm8k", "Gsm8kXmlTask"),
  "math": ("gdsd_jax.tasks.math_problems", "MathTask"),
  "math_xml": ("gdsd_jax.tasks.math_problems", "MathXmlTask"),
  "sudoku": ("gdsd_jax.tasks.sudoku", "SudokuTask"),
}


def get_task(name: str, **options) -> Task:
  """The task of that name, e.g. `get_task("arithmetic", data_dir="/data")`; options are fields of its dataclass.

  ValueError on an unknown name or option.
  """
  require(name in _TASKS, f"task.name={name!r}", f"unknown task, known are {', '.join(sorted(_TASKS))}")
  module, class_name = _TASKS[name]
  task_class = getattr(importlib.import_module(module), class_name)
  known = [field.name for field in dataclasses.fields(task_class)]
  for option in options:
    require(option in known, f"task.{option}", f"unknown option of task {name!r}, known are {', '.join(known)}")
  return task_class(**options)

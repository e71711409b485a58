"""A reward function in a process of its own: `python -m gdsd_jax.tasks.reward_worker REFERENCE SECONDS`."""

import asyncio
import inspect
import sys

from gdsd_jax import own_code
from gdsd_jax.tasks.workers import serve


def _prepare():
  function = own_code.load(sys.argv[1], "task.rewards")

  def call(arguments):
    try:
      values = function(**arguments)
      [value] = asyncio.run(_finished(values)) if inspect.isawaitable(values) else values
      return {"value": None if value is None else float(value)}
    except own_code.RAISED as error:  # the user's own, told in the process that asked
      return {"error": own_code.described(error, function)}

  return call


async def _finished(awaitable):
  return await awaitable


if __name__ == "__main__":
  serve(_prepare, float(sys.argv[2]))

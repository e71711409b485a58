"""Runs untrusted programs in bubblewrap and tells which of their tests pass.

Two sandboxes for each program: the candidate's holds the program, the judge's holds the tests. The judge binds the
names under test to stand-ins that ask the candidate over a socket and take back nothing but plain data
(`inside/wire.py`); of a script it asks what it prints. The verdict comes from the judge's own pipe, which the program
never sees, like the tests and what they expect.
"""

from gdsd_jax.sandbox.bubblewrap import Limits
from gdsd_jax.sandbox.pool import check_available, MAX_TEXT, Program, run, ScriptTest, Verdict

__all__ = ["Limits", "MAX_TEXT", "Program", "ScriptTest", "Verdict", "check_available", "run"]

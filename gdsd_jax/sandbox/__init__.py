"""Runs untrusted programs in bubblewrap and tells which of their tests pass.

Two sandboxes for each program: the candidate's holds the program, the judge's holds the tests. The judge binds the
names under test to stand-ins that ask the candidate over a socket (`inside/standins.py`); what comes back is plain data
or another stand-in (`inside/wire.py`, `inside/objects.py`). What a test takes the program's word for is in one place
(`inside/policy.py`). Of a script the judge asks what it prints. The verdict comes from the judge's own pipe, which the
program never sees, like the tests and what they expect. docs/code.md says what works, and what is refused.
"""

from gdsd_jax.sandbox.bubblewrap import Limits
from gdsd_jax.sandbox.pool import check_available, MAX_TEXT, Program, run, ScriptTest, Verdict
from gdsd_jax.sandbox.refusals import refusal

__all__ = ["Limits", "MAX_TEXT", "Program", "ScriptTest", "Verdict", "check_available", "refusal", "run"]

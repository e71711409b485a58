r"""Prompts of the published experiments, as data: those of training by name, and those of the official evaluation.

"gdsd" is GDSD's release (GaryBall/GDSD), "espo" is ESPO's (ML-GSAI/ESPO), whose prompts are longer. Evaluation has
prompts of its own, one for both: GSM8K and MATH500 are asked otherwise than in training, Sudoku by other words. A
stray quotation mark and a space before a line's end are theirs. `{…}` in curly brackets are fields of an example.
"""

from gdsd_jax.checks import require

NAMES = ("gdsd", "espo")

TAGS_INSTRUCTION = """
Respond in the following format:
<reasoning>
...
</reasoning>
<answer>
...
</answer>
"""

_EXPRESSION = (
  f"{TAGS_INSTRUCTION}\nUsing only the numbers {{numbers}}, create an arithmetic expression that evaluates to exactly "
  "{target}. "
)
COUNTDOWN_EVALUATION = (
  f"{_EXPRESSION}You must use all numbers from the list, and each number must be used exactly once. You may use the "
  "operations +, -, *, and / as needed. After reasoning, provide only your final expression inside <answer></answer> "
  "tags without including an equals sign or the target number. For example, if the numbers are [2, 3, 4] and the "
  "target is 5, a valid answer is: <answer>\n2*4-3\n</answer>"
)
COUNTDOWN = {
  "gdsd": f"{_EXPRESSION}Use every number exactly once. Use +, -, *, and / as needed. Put only the final expression "
          "inside <answer></answer> tags.",
  "espo": COUNTDOWN_EVALUATION,  # which evaluation took over
}

_SUDOKU_RULES = """\
- Fill empty cells with digits 1-4.
- Each row must contain digits 1-4 exactly once.
- Each column must contain digits 1-4 exactly once.
- Each 2x2 box must contain digits 1-4 exactly once.
"""
_SUDOKU_FORMAT = """
Respond in this exact format:
<reasoning>
Your step-by-step solving process
</reasoning>
<answer>
[16-character solution string with no spaces or separators]
</answer>
"""
_SUDOKU_WITH_EXAMPLE = f"""
Please solve the following 4x4 Sudoku puzzle. The puzzle is provided as a 16-character string reading left-to-right, \
top-to-bottom, where '0' represents empty cells.

**Rules:**
{_SUDOKU_RULES}
**Example:**
Puzzle: 0401002010030310
This puzzle grid looks like this:
0 4 | 0 1
0 0 | 2 0
----+----
1 0 | 0 3
0 3 | 1 0

Solution: 2431312412434312
The solved grid looks like this:
2 4 | 3 1
3 1 | 2 4
----+----
1 2 | 4 3
4 3 | 1 2

**Important:** Your solution must be a COMPLETE 16-character string with only the digits 1-4, representing your final \
solved grid.
{_SUDOKU_FORMAT}"""
SUDOKU_EVALUATION = f"{_SUDOKU_WITH_EXAMPLE}\n\nSolve the following Sudoku puzzle: {{puzzle}}\n"
SUDOKU = {
  "gdsd": f"""
Please solve the following 4x4 Sudoku puzzle. The puzzle is provided as a 16-character
string reading left-to-right, top-to-bottom, where '0' represents empty cells.

Rules:
{_SUDOKU_RULES}{_SUDOKU_FORMAT}

Now solve this Sudoku puzzle: {{puzzle}}
""",
  "espo": f"{_SUDOKU_WITH_EXAMPLE}\n\nNow, solve the following Sudoku puzzle: {{puzzle}}\n",
}

CODE_SYSTEM = {
  "gdsd": "You are a helpful assistant. When you output code, it must be in a single fenced code block using triple "
          "backticks and the language specifier. The code block must be the last part of your response.",
  "espo": "You are a helpful assistant. When you output code, it must be in a single fenced code block using triple "
          "backticks (```) and the language specifier (e.g., ```python). The code block must appear as the last part "
          "of your response and end with a newline after the closing backticks (```). Do not include any text after "
          "the code block. Do not include extra code blocks or explanations outside the final code block.",
}

_EXPERT = "You are a math expert. You will be given a question to solve. Solve it step by step. Wrap the final answer" \
          " in a \\boxed{}."
_BOXED_FORMAT = """
Respond in the following format:
<reasoning>
Your reasoning here
</reasoning>
<answer>
\\boxed{...}
</answer>"""
# The question follows these.
GSM8K_EVALUATION = f"{_EXPERT} {_BOXED_FORMAT}\n\n"
MATH_EVALUATION = f'{_EXPERT}{_BOXED_FORMAT}" \n\n\n'


def check_name(prompt: str | None, names: tuple[str, ...] = NAMES) -> None:
  """Raises ValueError unless there is a training prompt of that name; None is a task's own default."""
  require(prompt in (None, *names), f"task.prompt={prompt!r}", f"unknown, known are {', '.join(names)}")

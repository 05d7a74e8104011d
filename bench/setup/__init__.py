"""Setting up .venv: what the machine can run, what is installed, installing. Standard library only.

The modules must still parse on Python 3.6, so that an old Python is refused by a sentence and not by a syntax
error: no `from __future__ import annotations`, and annotations of newer types are quoted.
"""


class SetupError(Exception):
    """One sentence: what is in the way, and what to do. Exit code 1, or 2 for a bad request."""

    def __init__(self, sentence: str, exit_code: int = 1, lines: "tuple[str, ...]" = ()) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code
        self.lines = lines  # what a tool printed about it

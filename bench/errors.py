"""Errors a person reads: one sentence that names the field, the value and the fix."""

from __future__ import annotations


class BenchError(Exception):
    """A run or a tool failed for a reason outside the request. Process exit code 1."""

    exit_code = 1


class BadRequest(BenchError):
    """The request itself cannot be carried out as written. Process exit code 2, nothing was started."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """What an error says, or else its type, without the pages that libraries add."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""Filters of rows, in benchstat's spirit: `model:qwen2.5-7b AND max_num_seqs:>=64 -quantization:(awq OR gptq)`.

    expression := term { [AND] term } | expression OR expression | ( expression )
    term       := ['-' | NOT] key:value | key:(value OR value) | *
    value      := word | "quoted words" | /regular expression/ | <number | <=number | >number | >=number

AND binds stronger than OR and may be left out. Null is the word `none`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from analysis.compare.model import CompareError

if TYPE_CHECKING:
    import numpy as np

Lookup = Callable[[str, Callable[[str], bool]], "np.ndarray"]
"""(key, does this text match?) -> one truth value per row."""

_TOKEN = re.compile(
    r"""\s*(?:(?P<paren>[()])|(?P<not>-(?=[\w(*]))|(?P<word>AND\b|OR\b|NOT\b|\*)
                        |(?P<key>[\w.]+):(?P<value>"[^"]*"|/(?:[^/\\]|\\.)*/|\((?:[^()]*)\)|[^\s()]+))""",
    re.X,
)
_VALUE = re.compile(r'"[^"]*"|/(?:[^/\\]|\\.)*/|[^\s()]+')
_COMPARED = re.compile(r"(<=|>=|<|>)(.+)")


class Filter:
    """A parsed filter. `keys` are the columns it asks about."""

    def __init__(self, text: str, known: Collection[str]) -> None:
        """Raises CompareError for what cannot be read or names no column."""
        self.text = text
        self.keys: list[str] = []
        self._known = known
        self._tokens = self._split(text)
        self._tree = self._either()
        if self._tokens:
            raise self._error("a closing parenthesis has no opening one")

    def rows(self, lookup: Lookup, count: int) -> np.ndarray:
        """One truth value for each of `count` rows."""
        return self._evaluate(self._tree, lookup, count)

    def _error(self, why: str) -> CompareError:
        return CompareError(f"--filter {self.text!r}: {why}; write key:value, as in 'model:tiny-llama -max_num_seqs:4'")

    def _split(self, text: str) -> list[re.Match[str]]:
        tokens, at = [], 0
        while text[at:].strip():
            token = _TOKEN.match(text, at)
            if token is None:
                raise self._error(f"cannot read {text[at:].strip()!r}")
            tokens.append(token)
            at = token.end()
        if not tokens:
            raise self._error("it is empty")
        return tokens

    def _next_is(self, word: str) -> bool:
        return bool(self._tokens) and word in (self._tokens[0]["word"], self._tokens[0]["paren"])

    def _either(self) -> tuple:
        terms = [self._all()]
        while self._next_is("OR"):
            self._tokens.pop(0)
            terms.append(self._all())
        return ("or", terms)

    def _all(self) -> tuple:
        terms = [self._term()]
        while self._tokens and not self._next_is("OR") and not self._next_is(")"):
            if self._next_is("AND"):
                self._tokens.pop(0)
            terms.append(self._term())
        return ("and", terms)

    def _term(self) -> tuple:
        if not self._tokens:
            raise self._error("it ends where a key:value is due")
        token = self._tokens.pop(0)
        if token["not"] or token["word"] == "NOT":
            return ("not", [self._term()])
        if token["word"] == "*":
            return ("and", [])
        if token["paren"] == "(":
            inner = self._either()
            if not self._next_is(")"):
                raise self._error("a parenthesis is not closed")
            self._tokens.pop(0)
            return inner
        if token["key"] is None:
            raise self._error(f"a key:value is due before {token[0].strip()!r}")
        return self._match(token["key"], token["value"])

    def _match(self, key: str, value: str) -> tuple:
        if key not in self._known:
            near = difflib.get_close_matches(key, list(self._known), n=1, cutoff=0.5)
            raise self._error(f"no column {key!r}" + (f", did you mean {near[0]}?" if near else ""))
        self.keys.append(key)
        words = _VALUE.findall(value[1:-1]) if value.startswith("(") else [value]
        words = [word for word in words if word not in ("OR", "AND")]
        if not words:
            raise self._error(f"{key} is given no value")
        tests = [self._test(word) for word in words]
        return ("key", key, lambda text: any(test(text) for test in tests))

    def _test(self, word: str) -> Callable[[str], bool]:
        if word[0] == word[-1] == '"' and len(word) > 1:
            return word[1:-1].__eq__
        if word[0] == word[-1] == "/" and len(word) > 1:
            try:
                pattern = re.compile(word[1:-1])
            except re.error as wrong:
                raise self._error(f"{word} is no regular expression ({wrong})") from None
            return lambda text: pattern.search(text) is not None
        if compared := _COMPARED.fullmatch(word):
            sign, limit = compared[1], _number(compared[2])
            if limit is None:
                raise self._error(f"{compared[2]!r} after {sign} is no number")
            return lambda text: _holds(_number(text), sign, limit)
        number = _number(word)
        # 0.9 is 0.90, and True is true: what a row holds is compared as what it means.
        return lambda text: text.lower() == word.lower() or (number is not None and _number(text) == number)

    def _evaluate(self, node: tuple, lookup: Lookup, count: int) -> np.ndarray:
        import numpy as np

        if node[0] == "key":
            return lookup(node[1], node[2])
        parts = [self._evaluate(part, lookup, count) for part in node[1]]
        if node[0] == "not":
            return ~parts[0]
        start = np.full(count, node[0] == "and")
        for part in parts:
            start = start & part if node[0] == "and" else start | part
        return start


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _holds(value: float | None, sign: str, limit: float) -> bool:
    if value is None:
        return False
    return {"<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit}[sign]

"""Which engine a request goes to. Pure: a request as seen by rules in, engine names out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.router.config import RouterConfig, RuleConfig


@dataclass(frozen=True)
class Asked:
    """What rules see of a request. `text` is the prompt, or the last message of a user; empty for token ids."""

    task: str | None
    model: str | None
    text: str

    @classmethod
    def of(cls, body: Mapping[str, Any], task: str | None, words: str = "") -> Asked:
        """From a completions, chat, responses or embeddings body. `words` stand for a prompt of token ids."""
        model = body.get("model")
        return cls(task, model if isinstance(model, str) else None, f"{words} {_text(body)}".strip())


Rule = Callable[[Asked], Sequence[str]]
"""Engines in the order of preference; empty where the rule has no answer. More than one only where they may stand in
for each other."""


class Rules:
    """The rules of a router, in order. `load` says how many requests an engine has under way."""

    def __init__(self, config: RouterConfig, load: Callable[[str], int]) -> None:
        self._rules = [_MADE[rule.kind](rule, config, load) for rule in config.rules]
        self._default = config.default

    def candidates(self, asked: Asked) -> Sequence[str]:
        """Engines to try, in order; empty where no rule answers and there is no default."""
        for rule in self._rules:
            if names := rule(asked):
                return names
        return (self._default,) if self._default else ()


def _task(rule: RuleConfig, config: RouterConfig, load: Callable[[str], int]) -> Rule:
    return lambda asked: (rule.engines[asked.task],) if asked.task is not None and asked.task in rule.engines else ()


def _keyword(rule: RuleConfig, config: RouterConfig, load: Callable[[str], int]) -> Rule:
    # Whole words: "code" must not find "decode" in a question about radio.
    patterns = [
        (name, re.compile("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in words), re.IGNORECASE))
        for name, words in rule.keywords.items()
    ]
    return lambda asked: next(((name,) for name, pattern in patterns if pattern.search(asked.text)), ())


def _model(rule: RuleConfig, config: RouterConfig, load: Callable[[str], int]) -> Rule:
    def chosen(asked: Asked) -> Sequence[str]:
        named = [one.name for one in config.backends if asked.model == one.name]
        replicas = [one.name for one in config.backends if one.model and asked.model == one.model]
        return named or sorted(replicas, key=load)

    return chosen


def _weighted(rule: RuleConfig, config: RouterConfig, load: Callable[[str], int]) -> Rule:
    """Smooth weighted round robin: the engine that is furthest behind its share is next. Deterministic, and exact over
    every whole round, which drawing at random is not."""
    total = sum(rule.weights.values())
    owed = dict.fromkeys(rule.weights, 0.0)

    def next_one(asked: Asked) -> Sequence[str]:
        for name, weight in rule.weights.items():
            owed[name] += weight
        first = max(owed, key=lambda name: owed[name])
        owed[first] -= total
        return (first,)

    return next_one


def _least_loaded(rule: RuleConfig, config: RouterConfig, load: Callable[[str], int]) -> Rule:
    return lambda asked: sorted(rule.among, key=load)


_MADE: dict[str, Callable[[RuleConfig, RouterConfig, Callable[[str], int]], Rule]] = {
    "task": _task, "keyword": _keyword, "model": _model, "weighted": _weighted, "least_loaded": _least_loaded,
}  # fmt: skip


def _text(body: Mapping[str, Any]) -> str:
    messages = body.get("messages", body.get("input"))  # the responses API gives its messages as input
    if isinstance(messages, list) and any(isinstance(one, dict) for one in messages):
        said = [one for one in messages if isinstance(one, dict) and one.get("role") == "user"]
        return _flat(said[-1].get("content")) if said else ""
    return _flat(body.get("prompt", body.get("input")))


def _flat(content: Any) -> str:
    """A string, or the text parts of a list; token ids have no text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [one.get("text") if isinstance(one, dict) else one for one in content]
        return "\n".join(part for part in parts if isinstance(part, str))
    return ""

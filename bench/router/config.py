"""The engines behind a router and the rules between them. Every field is checked here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from bench.config.checks import one_of, positive, require
from bench.errors import BadRequest
from bench.load.wire import Target

RULES = ("task", "keyword", "model", "weighted", "least_loaded")


@dataclass(frozen=True)
class BackendConfig:
    """One engine: `url` as http://HOST:PORT, `model` the name it serves under (null: left as the client wrote it)."""

    name: str
    url: str
    model: str | None = None
    max_in_flight: int = 256
    """Requests it is given at once; more wait here."""
    max_queued: int = 1024
    """Requests that may wait; one more is refused with 429."""

    def __post_init__(self) -> None:
        require(bool(self.name), "router.backends.name", self.name, "give each engine a name")
        prefix = f"router.backends[{self.name}]"
        Target.parse(self.url)
        positive(f"{prefix}.max_in_flight", self.max_in_flight)
        require(self.max_queued >= 0, f"{prefix}.max_queued", self.max_queued, "must be 0 or more")


@dataclass(frozen=True)
class RuleConfig:
    """One rule; the first that has an answer decides.

    task: `engines` maps a task tag to an engine; the tag is the header X-Task or the path, /task/TAG/v1/...
    keyword: `keywords` maps an engine to words; the first engine one of whose words stands in the prompt.
    model: the engine whose name, or served model, is the request's model.
    weighted: `weights` maps engines to shares; requests are dealt in those proportions, in a fixed order.
    least_loaded: of `among`, the engine with the fewest requests under way: for replicas of one model.
    """

    kind: str
    engines: Mapping[str, str] = field(default_factory=dict)
    keywords: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    among: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        one_of("router.rules.kind", self.kind, RULES)
        needed = {"task": "engines", "keyword": "keywords", "weighted": "weights", "least_loaded": "among"}
        for kind, name in needed.items():
            given = bool(getattr(self, name))
            require(given == (kind == self.kind), f"router.rules[{self.kind}].{name}", getattr(self, name),
                    f"a rule of kind {self.kind} {'needs' if kind == self.kind else 'has no'} {name}")  # fmt: skip
        for name, weight in self.weights.items():
            require(weight >= 0, f"router.rules[weighted].weights[{name}]", weight, "must be 0 or more")
        if self.kind == "weighted":
            require(sum(self.weights.values()) > 0, "router.rules[weighted].weights", dict(self.weights),
                    "at least one must be above 0")  # fmt: skip

    def named(self) -> set[str]:
        """Engines this rule may answer with; empty for `model`, which may name any."""
        return {*self.engines.values(), *self.keywords, *self.weights, *self.among}


@dataclass(frozen=True)
class RouterConfig:
    """The whole. `default` takes what no rule answers; null: such a request is refused with 404."""

    backends: tuple[BackendConfig, ...]
    rules: tuple[RuleConfig, ...] = ()
    default: str | None = None
    queue_timeout_s: float = 60.0
    """Longest wait for a slot; past it 503."""
    silence_timeout_s: float | None = 600.0
    """Longest silence of an engine before or within an answer; past it the engine counts as hung. null: no limit."""
    retry_down_s: float = 1.0
    """How often an engine that could not be reached is asked for /health again."""

    def __post_init__(self) -> None:
        require(bool(self.backends), "router.backends", "[]", "name at least one engine")
        names = [one.name for one in self.backends]
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, "router.backends", ", ".join(twice), "give each engine a name of its own")
        for rule in self.rules:
            unknown = sorted(rule.named() - set(names))
            require(not unknown, f"router.rules[{rule.kind}]", ", ".join(unknown), f"engines are {', '.join(names)}")
        if self.default is not None:
            one_of("router.default", self.default, tuple(names))
        positive("router.queue_timeout_s", self.queue_timeout_s)
        positive("router.retry_down_s", self.retry_down_s)
        if self.silence_timeout_s is not None:
            positive("router.silence_timeout_s", self.silence_timeout_s)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> RouterConfig:
        """From plain data, as YAML or a configuration node holds it. Raises BadRequest."""
        content = _known(cls, values, "router")
        rules = []
        for one in content.pop("rules", None) or ():
            rule = _known(RuleConfig, one, "router.rules")
            if rule.get("keywords"):
                rule["keywords"] = {name: tuple(map(str, words)) for name, words in rule["keywords"].items()}
            rule["among"] = tuple(rule.get("among") or ())
            rules.append(_made(RuleConfig, rule, "router.rules"))
        backends = tuple(_made(BackendConfig, _known(BackendConfig, one, "router.backends"), "router.backends")
                         for one in content.pop("backends", None) or ())  # fmt: skip
        return _made(cls, {**content, "backends": backends, "rules": tuple(rules)}, "router")

    @classmethod
    def read(cls, path: Path) -> RouterConfig:
        """From a YAML file. Raises BadRequest."""
        import yaml

        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise BadRequest(f"router={path}: cannot be read ({error.strerror}); name a YAML file") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            said = str(error).splitlines()[0]
            raise BadRequest(f"router={path}: is not YAML ({said}); correct the file") from error
        if not isinstance(content, Mapping):
            raise BadRequest(f"router={path}: holds {type(content).__name__}; write keys and values, `backends` first")
        return cls.of(content)


Kind = TypeVar("Kind")


def _known(kind: type, values: Any, where: str) -> dict[str, Any]:
    names = [one.name for one in fields(kind)]
    if not isinstance(values, Mapping):
        raise BadRequest(f"{where}={values!r}: write keys and values; keys are {', '.join(names)}")
    if unknown := sorted(set(map(str, values)) - set(names)):
        raise BadRequest(f"{where}.{unknown[0]}: no such setting; there are {', '.join(names)}")
    return dict(values)


def _made(kind: type[Kind], values: Mapping[str, Any], where: str) -> Kind:
    try:
        return kind(**values)
    except TypeError as error:  # a missing field, or a value of another kind
        raise BadRequest(f"{where}: {str(error).removeprefix(f'{kind.__name__}.__init__() ')}") from error

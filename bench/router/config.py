"""The engines behind a router and the rules between them. Every field is checked here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from bench.config.checks import one_of, require
from bench.errors import BadRequest
from bench.load.wire import Target
from bench.router.checked import mapping, number, sequence, text

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
        text("router.backends.name", self.name)
        prefix = f"router.backends[{self.name}]"
        require(isinstance(self.url, str), f"{prefix}.url", repr(self.url), "give it as http://HOST:PORT")
        try:
            Target.parse(self.url)
        except BadRequest as error:  # it names the field of another place
            why = str(error).partition("; ")[2].rstrip(".")
            raise BadRequest(f"{prefix}.url={self.url!r}: {why}") from None
        text(f"{prefix}.model", self.model, optional=True)
        number(f"{prefix}.max_in_flight", self.max_in_flight, least=0, above=True, whole=True)
        number(f"{prefix}.max_queued", self.max_queued, least=0, whole=True)


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
            number(f"router.rules[weighted].weights[{name}]", weight, least=0)
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
        number("router.queue_timeout_s", self.queue_timeout_s, least=0, above=True)
        number("router.retry_down_s", self.retry_down_s, least=0, above=True)
        if self.silence_timeout_s is not None:
            number("router.silence_timeout_s", self.silence_timeout_s, least=0, above=True)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> RouterConfig:
        """From plain data, as YAML or a configuration node holds it. Raises BadRequest."""
        content = _known(cls, values, "router")
        rules, backends = (content.pop(name, None) for name in ("rules", "backends"))
        rules = sequence("router.rules", rules if rules is not None else [], "[{kind: model}]")
        backends = sequence("router.backends", backends if backends is not None else [],
                            '[{name: a, url: "http://127.0.0.1:8000"}]')  # fmt: skip
        made = {
            "rules": tuple(_rule(one) for one in rules),
            "backends": tuple(_made(BackendConfig, _known(BackendConfig, one, "router.backends"), "router.backends")
                              for one in backends),
        }  # fmt: skip
        return _made(cls, content | made, "router")

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


def _rule(values: Any) -> RuleConfig:
    """One rule. Its parts are checked before they are taken apart: text can be iterated like a list of words."""
    rule = _known(RuleConfig, values, "router.rules")
    where = f"router.rules[{rule.get('kind')}]"
    examples = {"engines": "{code: coder}", "keywords": "{coder: [python, SQL]}", "weights": "{coder: 3, general: 1}"}
    for name, example in examples.items():
        given = rule.get(name)
        rule[name] = mapping(f"{where}.{name}", given, example) if given is not None else {}
    for tag, engine in rule["engines"].items():
        text(f"{where}.engines[{tag}]", engine)
    rule["keywords"] = {name: _words(f"{where}.keywords[{name}]", words) for name, words in rule["keywords"].items()}
    among = rule.get("among")
    rule["among"] = tuple(sequence(f"{where}.among", among, "[general, replica]") if among is not None else ())
    for engine in rule["among"]:
        text(f"{where}.among", engine)
    return _made(RuleConfig, rule, "router.rules")


def _words(field: str, given: Any) -> tuple[str, ...]:
    words = sequence(field, given, "[python, SQL]")
    require(bool(words), field, "[]", "give it a word, or leave the engine out: no word would stand in every prompt")
    for word in words:
        if not isinstance(word, int) or isinstance(word, bool):  # a bare 404 is as good as a quoted one
            text(field, word)
    return tuple(map(str, words))


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

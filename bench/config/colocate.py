"""Several engines on one device at once (`conf/colocate`): who they are, in which order they start, who drives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from bench.config.checks import one_of, positive, require
from bench.config.engine import EngineConfig
from bench.config.model import ModelConfig, QuantizationConfig
from bench.config.workload import WorkloadPoint


@dataclass
class MemberConfig:
    """One engine of a group, composed from the same nodes as an engine alone."""

    model: ModelConfig = field(default_factory=ModelConfig)
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)


@dataclass
class StreamConfig:
    """One kind of traffic through the router: what rules see of it, and its load."""

    task: str | None = None
    """Task tag of its requests, for rules of kind task."""
    words: str | None = None
    """What a keyword rule reads in its requests; their prompts are token ids, in which no word stands."""
    model: str | None = None
    """Model its requests name, for rules of kind model; null: the name of an engine is not asked for."""
    load: WorkloadPoint = MISSING  # no default object, whose filled-in settings would count as given


@dataclass
class RouterNode:
    """The router between streams and engines; `rules` as in `bench.router.config.RuleConfig`."""

    rules: list[Any] = field(default_factory=list)
    default: str | None = None
    max_in_flight: int = 256
    """Requests an engine is given at once; more wait in the router."""
    max_queued: int = 1024
    queue_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        positive("colocate.router.max_in_flight", self.max_in_flight)
        require(self.max_queued >= 0, "colocate.router.max_queued", self.max_queued, "must be 0 or more")
        positive("colocate.router.queue_timeout_s", self.queue_timeout_s)


@dataclass
class ColocateConfig:
    """A group of engines on one device. `name: none` is no group: the configuration is of one engine."""

    name: str = "none"
    about: str = ""
    engines: dict[str, MemberConfig] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    """Order of start; each waits until the one before it answers."""
    streams: dict[str, StreamConfig] = field(default_factory=dict)
    router: RouterNode = field(default_factory=RouterNode)
    repeats: int = 1
    """How often each stream is driven alone and all of them together, in turns, on the same engines."""
    direct: bool = True
    """Drive each stream past the router too: the difference is the router's own cost."""

    def __post_init__(self) -> None:
        positive("colocate.repeats", self.repeats)
        if not self.active:
            return
        require(len(self.engines) >= 2, "colocate.engines", ", ".join(self.engines) or "{}", "name two or more")
        for name in (*self.engines, *self.streams):
            plain = bool(name) and all(c.isalnum() or c in "_-" for c in name)
            require(plain, "colocate", repr(name), "name engines and streams in letters, digits, '_' and '-' alone")
        order = list(self.order) or list(self.engines)
        for name in order:
            one_of("colocate.order", name, tuple(self.engines))
        missing = [name for name in self.engines if name not in order]
        require(len(set(order)) == len(order) and not missing, "colocate.order", self.order,
                f"name each engine once: {', '.join(self.engines)}")  # fmt: skip
        self.order = order
        ports = [member.engine.port for member in self.engines.values() if member.engine.port is not None]
        require(len(set(ports)) == len(ports), "colocate.engines.*.engine.port", ports, "give each engine its own port")
        for name, stream in self.streams.items():
            stream.load.name = name  # one name for a stream and its rows
            require(stream.load.knee is None, f"colocate.streams.{name}.load.knee", "{...}",
                    "a search would change the load that the others are measured under; leave it out")  # fmt: skip
            for what in ("task", "words"):
                text = getattr(stream, what)
                require(text is None or bool(text.strip()), f"colocate.streams.{name}.{what}", repr(text),
                        "write something, or null")  # fmt: skip

    @property
    def active(self) -> bool:
        """Whether this asks for a group at all."""
        return self.name != "none"

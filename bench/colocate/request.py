"""A group of engines as requests for each of them, and where the router's rules send each stream."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from bench.config import BenchConfig, ColocateConfig, StreamConfig, WorkloadConfig
from bench.config.checks import require
from bench.errors import BadRequest
from bench.identity import content_hash, point_content
from bench.request import Colocation, Request, one_engine
from bench.router.config import RouterConfig
from bench.router.rules import Asked, Rules

_ROUNDS = 64
"""Requests tried to see which engines a rule that deals out would use."""


def group_request(cfg: BenchConfig, kind: str) -> Request:
    """The request for the whole group. Raises `BadRequest` for a member, stream or rule that cannot be."""
    config = router_config(cfg.colocate, dict.fromkeys(cfg.colocate.engines, "http://127.0.0.1:1"))
    for name, stream in cfg.colocate.streams.items():
        found = destinations(config, stream)
        require(bool(found), f"colocate.streams.{name}", f"task={stream.task}, model={stream.model}",
                "no rule of colocate.router.rules answers it; add one, or colocate.router.default")  # fmt: skip
    require(cfg.on_oom == "record", "on_oom", cfg.on_oom, "a group's shares are the point; use on_oom=record")
    parts = [_member(cfg, kind, name) for name in cfg.colocate.order]
    content = _content(cfg, parts)
    first = parts[0]
    return Request(cfg, first.source, kind, first.launcher, content_hash(content))


def members(request: Request) -> list[Request]:
    """A request for each engine, in the order of start. Its identity names all that runs beside it."""
    group = request.cfg.colocate
    found = []
    for position, name in enumerate(group.order):
        one = _member(request.cfg, request.device_kind, name)
        place = Colocation(group.name, name, position, len(group.order))
        point_id = content_hash({"group": request.point_id, "member": name})
        found.append(dataclasses.replace(one, point_id=point_id, colocation=place))
    return found


def _member(cfg: BenchConfig, kind: str, name: str) -> Request:
    group = cfg.colocate
    engine = group.engines[name]
    config = router_config(group, dict.fromkeys(group.engines, "http://127.0.0.1:1"))
    loads = [stream.load for stream in group.streams.values() if name in destinations(config, stream)]
    own = dataclasses.replace(
        cfg, model=engine.model, quantization=engine.quantization, engine=engine.engine,
        workload=WorkloadConfig(group.name, copy.deepcopy(loads)),
    )  # fmt: skip
    try:
        return one_engine(own, kind)
    except BadRequest as error:
        raise BadRequest(f"colocate.engines.{name}: {error}") from None


def _content(cfg: BenchConfig, parts: list[Request]) -> dict[str, Any]:
    group = cfg.colocate
    return {
        "engines": {
            name: point_content(one.cfg, one.source.config, one.device_kind, one.launcher)
            for name, one in zip(group.order, parts, strict=True)
        },
        "order": list(group.order),
        "streams": {
            name: {"task": one.task, "words": one.words, "model": one.model, "load": one.load.content()}
            for name, one in group.streams.items()
        },
        "router": dataclasses.asdict(group.router),
        "repeats": group.repeats,
        "direct": group.direct,
    }


def router_config(group: ColocateConfig, urls: dict[str, str]) -> RouterConfig:
    """The router of a group whose engines listen at `urls`. Raises `BadRequest`."""
    node = group.router
    backends = [
        {"name": name, "url": urls[name], "model": group.engines[name].model.name,
         "max_in_flight": node.max_in_flight, "max_queued": node.max_queued}
        for name in group.engines
    ]  # fmt: skip
    content = {"backends": backends, "rules": list(node.rules), "default": node.default,
               "queue_timeout_s": node.queue_timeout_s}  # fmt: skip
    try:
        return RouterConfig.of(content)
    except BadRequest as error:
        raise BadRequest(f"colocate.{error}") from None


def destinations(config: RouterConfig, stream: StreamConfig) -> list[str]:
    """Engines that the rules send a stream to, the one that gets most first; empty where no rule answers."""
    sent: dict[str, int] = {}
    rules = Rules(config, lambda name: sent.get(name, 0))
    for _ in range(_ROUNDS):
        names = rules.candidates(Asked(stream.task, stream.model, stream.words or ""))
        if not names:
            return []
        sent[names[0]] = sent.get(names[0], 0) + 1
    return sorted(sent, key=lambda name: -sent[name])

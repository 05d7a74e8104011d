"""One request for an engine start: its configuration, validated, with everything `auto` resolved."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from analysis.arithmetic import ArithmeticRefusal, MalformedConfig, weight_bytes
from bench import checkpoint
from bench.checkpoint import ModelSource
from bench.config import BenchConfig, check_request
from bench.environment import default_cpu_threads, device_kind
from bench.errors import BadRequest, first_line
from bench.identity import point_id


@dataclass(frozen=True)
class Colocation:
    """The place of an engine in a group that runs at once. `position` counts from 0 in the order of start."""

    group: str
    member: str
    position: int
    members: int


@dataclass(frozen=True)
class Request:
    """A validated request. `device_kind` is cuda or cpu, `launcher` warm or spawn."""

    cfg: BenchConfig
    source: ModelSource
    device_kind: str
    launcher: str
    point_id: str
    colocation: Colocation | None = None
    """For one engine of a group: which."""

    @property
    def key(self) -> tuple[str, str, int]:
        """Set, point and restart: what must not be measured twice."""
        return (self.cfg.set, self.point_id, self.cfg.repeat)

    def restart(self, repeat: int) -> Request:
        """The same request as restart number `repeat`."""
        return dataclasses.replace(self, cfg=dataclasses.replace(self.cfg, repeat=repeat))

    @property
    def label(self) -> str:
        """A short name for people: what tells this point from its neighbours."""
        engine = self.cfg.engine
        if self.cfg.colocate.active:
            group = self.cfg.colocate
            parts = [group.name, *(f"{name}={one.model.name}:{one.quantization.name}" for name, one in
                                   group.engines.items())]  # fmt: skip
            return " ".join([*parts, f"#{self.cfg.repeat + 1}"] if self.cfg.repeats > 1 else parts)
        parts = [self.cfg.model.name, self.cfg.quantization.name]
        if engine.max_num_batched_tokens:
            parts.append(f"T={engine.max_num_batched_tokens}")
        if engine.max_num_seqs:
            parts.append(f"S={engine.max_num_seqs}")
        parts.append(engine.kv_pool_mode)
        if self.cfg.repeats > 1:
            parts.append(f"#{self.cfg.repeat + 1}")
        return " ".join(parts)


def load_request(composed: DictConfig) -> Request:
    """Validate a composed configuration. Raises `BadRequest` with one sentence; nothing is started."""
    try:
        cfg = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        # The nodes' own refusals arrive wrapped.
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, BadRequest):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        raise BadRequest(first_line(error)) from error
    assert isinstance(cfg, BenchConfig)
    _refuse_added_keys(cfg, "")
    kind = device_kind(cfg.device)
    cfg.device.kind = kind
    if kind == "cpu":
        cfg.device.cpu_threads = default_cpu_threads(cfg.device)
    _check_scratch(cfg.paths.scratch)
    if cfg.colocate.active:
        from bench.colocate.request import group_request

        return group_request(cfg, kind)
    return one_engine(cfg, kind)


def one_engine(cfg: BenchConfig, kind: str) -> Request:
    """The request for one engine, whose device is resolved. Raises `BadRequest`."""
    source = checkpoint.resolve(cfg)
    _check_shape(cfg.model.name, source.config)
    check_request(cfg, checkpoint.text_config(source.config))
    launcher = cfg.launcher if cfg.launcher != "auto" else ("warm" if kind == "cpu" else "spawn")
    return Request(cfg, source, kind, launcher, point_id(cfg, source.config, kind, launcher))


def _check_scratch(configured: str | None) -> None:
    """Refuse a folder under which no socket of an engine could have a name: each point would fail for it."""
    folder = os.path.abspath(configured or tempfile.gettempdir())
    # "/vcal-" and 8 characters, "/" and a UUID of 36: 51 of the 107 bytes that a socket's path may have.
    if len(os.fsencode(folder)) > 107 - 51:
        raise BadRequest(
            f"paths.scratch={folder}: too long for the engine's sockets; name a folder of at most 56 bytes, as in "
            "paths.scratch=/tmp"
        )


def _refuse_added_keys(node: Any, prefix: str) -> None:
    """`+engine.max_num_seq=4` adds a key that nothing reads; a typing mistake must not measure something else."""
    known = {field.name for field in dataclasses.fields(node)}
    for name, value in vars(node).items():
        if name not in known:
            raise BadRequest(f"{prefix}{name}: no such setting; `python -m bench --help` lists them all")
        if dataclasses.is_dataclass(value):
            _refuse_added_keys(value, f"{prefix}{name}.")


def _check_shape(name: str, config: dict[str, Any]) -> None:
    """Refuse a config.json that the arithmetic cannot read; one that it does not know is vLLM's to judge."""
    try:
        weight_bytes(config)
    except MalformedConfig as error:
        raise BadRequest(f"model={name}: {error}") from error
    except ArithmeticRefusal:
        pass

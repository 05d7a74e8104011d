"""What makes two engine starts the same point: everything that is measured, nothing of where it is stored."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from bench.config import BenchConfig

# Settings that decide how long to wait or where to listen, not what is measured.
_ENGINE_IGNORED = frozenset({"port", "startup_timeout_s", "stop_timeout_s"})


def content_hash(content: Any, length: int = 16) -> str:
    """Hex digest of JSON content, independent of key order."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def point_content(cfg: BenchConfig, model_config: dict[str, Any], device_kind: str, launcher: str) -> dict[str, Any]:
    """The measured content of a request, after `auto` settings were resolved."""
    engine = {k: v for k, v in dataclasses.asdict(cfg.engine).items() if k not in _ENGINE_IGNORED}
    points = [point.content() for point in cfg.workload.points]
    return {
        "model": {
            "source": cfg.model.source,
            "config": model_config,
            # Two checkpoints of one shape are two points; two names for one dummy shape are one.
            "checkpoint": None if cfg.model.source == "config" else (cfg.model.path or cfg.model.hub_id),
            "revision": cfg.model.revision,
        },
        "dtype": cfg.quantization.dtype,
        "engine_quantization": cfg.quantization.engine_quantization,
        "engine": engine,
        "workloads": points,
        "device": {"kind": device_kind, "count": len(cfg.device.indices), "cpu_threads": cfg.device.cpu_threads},
        "launcher": launcher,
    }


def point_id(cfg: BenchConfig, model_config: dict[str, Any], device_kind: str, launcher: str) -> str:
    """Identity of a point; equal for equal content, whatever the set, the repeat or the environment."""
    return content_hash(point_content(cfg, model_config, device_kind, launcher))

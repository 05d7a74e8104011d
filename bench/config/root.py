"""The whole request for one engine start, and the checks that need more than one node to answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench.config.checks import one_of, positive, require
from bench.config.colocate import ColocateConfig
from bench.config.device import DeviceConfig, TelemetryConfig
from bench.config.engine import EngineConfig
from bench.config.model import ModelConfig, QuantizationConfig
from bench.config.workload import WorkloadConfig
from bench.errors import BadRequest
from bench.load.plan import check_prompts

LAUNCHERS = ("auto", "warm", "spawn")
RERUNS = ("transient", "failed", "all")
ON_OOM = ("record", "mitigate")


@dataclass
class SweepConfig:
    """A named sweep (`conf/sweep`); its grid stands in `hydra.sweeper.params` of the same file."""

    name: str = "single"
    about: str = ""


@dataclass
class PathsConfig:
    """Where things lie."""

    results: str = "results"
    """Folder of all result sets; a relative one lies in the checkout."""
    scratch: str | None = None
    """Model directories, sockets, compile caches of the running engine; null: a folder of the system's own."""


@dataclass
class BenchConfig:
    """One engine start and the workloads on it."""

    set: str = "adhoc"
    """Name of the result set, a folder under `paths.results`."""
    repeats: int = 1
    """Restarts of every point, interleaved over the grid."""
    repeat: int = 0
    """Which of the restarts this is; the sweep sets it."""
    launcher: str = "auto"
    """`spawn`, `warm`, or `auto`: warm on CPU, spawn on GPU."""
    rerun: str = "transient"
    """Which recorded points a second sweep starts again: those that failed for a passing reason (`transient`),
    every `failed` one, or `all`."""
    prune: bool = True
    """Record points that cannot fit as pruned instead of starting them."""
    on_oom: str = "record"
    """What follows a start that failed for memory, or was pruned for it: nothing (`record`), or a walk down the ladder
    of changes predicted to work, the least harmful first, each an engine start of its own, until one works
    (`mitigate`)."""
    max_rungs: int = 4
    """Most rungs of one such walk."""
    dry_run: bool = False
    """List the points in the order they would run, start nothing."""
    engine_log: bool = True
    """Keep each engine's log beside the results."""
    model: ModelConfig = field(default_factory=ModelConfig)
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    colocate: ColocateConfig = field(default_factory=ColocateConfig)
    """Several engines at once instead of the one above, whose model, quantization, engine and workload then say
    nothing."""
    device: DeviceConfig = field(default_factory=DeviceConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        positive("repeats", self.repeats)
        one_of("launcher", self.launcher, LAUNCHERS)
        one_of("rerun", self.rerun, RERUNS)
        one_of("on_oom", self.on_oom, ON_OOM)
        positive("max_rungs", self.max_rungs)
        require(
            self.on_oom == "record" or not self.colocate.active, "on_oom", self.on_oom,
            "answers a single engine that does not fit; for several at once ask `python -m analysis plan`",
        )  # fmt: skip
        plain = self.set and all(c.isalnum() or c in "._-" for c in self.set) and not self.set.startswith(".")
        require(bool(plain), "set", self.set, "name a result set in letters, digits, '.', '_' and '-' alone")


def derived_max_model_len(model_config: dict[str, Any]) -> int | None:
    """Longest request the model's config.json allows, tokens, as vLLM derives it; None where it says nothing.

    Source: `vllm/config/model.py:_get_and_verify_max_len`: position embeddings times the RoPE scaling factor,
    which for YaRN applies to the original length and for Llama 3 and LongRoPE is already in the length.
    """
    length = model_config.get("max_position_embeddings")
    if length is None:
        return None
    rope = model_config.get("rope_scaling") or model_config.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("default", "llama3", "longrope", "su", "mrope") or "factor" not in rope:
        return int(length)
    if kind == "yarn":
        length = rope.get("original_max_position_embeddings", length)
    return int(length * rope["factor"])


def check_request(cfg: BenchConfig, model_config: dict[str, Any]) -> None:
    """Refuse combinations that vLLM would refuse after minutes of start-up, or silently measure as another.

    `model_config` is the config.json that the engine will read.
    """
    limit = derived_max_model_len(model_config)
    length = cfg.engine.max_model_len
    require(
        length is None or limit is None or length <= limit,
        "engine.max_model_len", length, f"{cfg.model.name} takes at most {limit} tokens; ask for {limit} or less",
    )  # fmt: skip
    room = length or limit
    for point in cfg.workload.points:
        spec = point.spec(point.seed)
        vocabulary = model_config.get("vocab_size")
        if isinstance(vocabulary, int):
            try:
                check_prompts(spec, vocabulary)
            except BadRequest as error:
                raise BadRequest(f"workload.points[{point.name}].{error}") from None
        need = spec.longest_request_tokens
        require(
            room is None or need <= room,
            f"workload.points[{point.name}]", f"prompt and output of {need} tokens",
            f"a request may have at most {room} tokens here; shorten it or raise engine.max_model_len",
        )  # fmt: skip
    heads = model_config.get("num_attention_heads")
    tp = cfg.engine.tensor_parallel_size
    require(
        heads is None or heads % tp == 0,
        "engine.tensor_parallel_size", tp, f"{cfg.model.name} has {heads} attention heads; use a divisor of that",
    )  # fmt: skip
    if cfg.device.kind == "cuda":
        gpus = tp * cfg.engine.pipeline_parallel_size
        require(
            len(cfg.device.indices) == gpus,
            "device.indices", cfg.device.indices,
            f"tensor x pipeline parallel needs {gpus} GPU(s); list as many indices",
        )  # fmt: skip

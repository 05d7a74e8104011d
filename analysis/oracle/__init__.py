"""Ask vLLM's own model class: its tensors and its KV cache, with neither a GPU nor weights. Standard library only.

The class is built on torch's meta device, in a process of the Python that has vLLM, so that every architecture which
that vLLM knows can be predicted. It takes some ten seconds; several questions in one call share them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from analysis.arithmetic.allocator import allocated_bytes
from analysis.arithmetic.errors import ArithmeticRefusal
from analysis.arithmetic.kv_groups import KVLayer

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600.0
OraclePlatform = Literal["installed", "h100"]
_SAID_CHARACTERS = 300


class OracleRefusal(ArithmeticRefusal):
    """vLLM cannot be asked, or refuses this model; the sentence says which."""


@dataclass(frozen=True, slots=True)
class OracleTensor:
    """A tensor as vLLM's class creates it; `bytes` is its own size, unrounded."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: Literal["parameter", "buffer"]
    bytes: int


@dataclass(frozen=True, slots=True)
class OtherCache:
    """A layer whose cache does not grow with every token: a recurrent state, or attention in chunks."""

    layer: str
    kind: str
    block_tokens: int
    page_bytes: int


@dataclass(frozen=True)
class OracleResult:
    """What one rank holds, in vLLM's own words.

    Kernels may repack the tensors after loading, and MLA keeps a copy of one of its matrices: neither is seen here.
    """

    architecture: str
    vllm_version: str
    tensors: list[OracleTensor] = field(repr=False)
    kv_layers: list[KVLayer] = field(repr=False)
    """One per attention layer of this rank, in the model's order: what `KVPlan.of` takes."""
    other_caches: list[OtherCache] = field(repr=False)

    @property
    def parameter_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors if tensor.kind == "parameter")

    @property
    def buffer_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors if tensor.kind == "buffer")

    @property
    def allocator_rounded_bytes(self) -> int:
        """What torch's CUDA allocator would count for the tensors."""
        return allocated_bytes(tensor.bytes for tensor in self.tensors)

    @property
    def kv_bytes_per_token(self) -> int:
        """Over all attention layers of this rank, while no window has dropped the token."""
        return sum(layer.bytes_per_token for layer in self.kv_layers)


def vllm_oracle(
    config: Mapping[str, Any],
    *,
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
    pipeline_rank: int = 0,
    dtype: str | None = None,
    quantization: str | None = None,
    kv_cache_dtype: str | None = None,
    max_model_len: int | None = None,
    block_size: int | None = None,
    platform: OraclePlatform = "installed",
    python: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> OracleResult:
    """What vLLM's class for this config.json holds on one rank.

    Args:
        config: the content of config.json, its quantization_config included.
        quantization: vLLM's --quantization, for what is quantized while loading (`fp8`).
        platform: `installed` asks the installed build; `h100` makes a CPU build decide as on that card.
        python: the interpreter that has vLLM; this one when None.

    Raises:
        OracleRefusal: one sentence, when vLLM is absent, refuses, or does not answer within `timeout_s`.
    """
    request = {
        "config": dict(config),
        "tensor_parallel_size": tensor_parallel_size,
        "pipeline_parallel_size": pipeline_parallel_size,
        "pipeline_rank": pipeline_rank,
        "dtype": dtype,
        "quantization": quantization,
        "kv_cache_dtype": kv_cache_dtype,
        "max_model_len": max_model_len,
        "block_size": block_size,
    }
    answer = ask([request], platform=platform, python=python, timeout_s=timeout_s)[0]
    if isinstance(answer, OracleRefusal):
        raise answer
    return answer


def ask(
    requests: Sequence[Mapping[str, Any]],
    *,
    platform: OraclePlatform = "installed",
    python: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> list[OracleResult | OracleRefusal]:
    """Several questions to one process; each request holds the arguments of `vllm_oracle`, `config` at least.

    A request that vLLM refuses is answered with its refusal, the others as usual. Raises OracleRefusal when there is
    no vLLM to ask, or its process fails before the first answer.
    """
    interpreter = python or sys.executable
    with tempfile.TemporaryDirectory(prefix="oracle-") as folder:
        jobs, out = Path(folder) / "jobs.json", Path(folder) / "out.jsonl"
        jobs.write_text(json.dumps([{"id": place, **request} for place, request in enumerate(requests)]))
        _run(interpreter, [platform, str(jobs), str(out)], folder, timeout_s, len(requests))
        answers = {record["id"]: record for record in map(json.loads, out.read_text().splitlines())}
    lost = {"refused": "its process died on this model"}
    return [_answer(requests[place], answers.get(place, lost)) for place in range(len(requests))]


def _run(interpreter: str, arguments: list[str], folder: str, timeout_s: float, count: int) -> None:
    """Run the worker to its end. Raises OracleRefusal unless it answered at least one request."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    _find_vllm(interpreter, environment, folder)
    command = [interpreter, "-m", "analysis.oracle.worker", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise OracleRefusal(f"vLLM's classes did not answer within {timeout_s:g} s for {count} model(s)") from None
    out = Path(arguments[-1])
    if done.returncode and not (out.exists() and out.read_text().strip()):
        raise OracleRefusal(f"vLLM's classes could not be asked with {interpreter}: {_last_line(done.stderr)}")


def _find_vllm(interpreter: str, environment: Mapping[str, str], folder: str) -> None:
    """Raises OracleRefusal unless this Python runs and has vLLM. Does not import it, which takes seconds."""
    code = "import importlib.util, sys; sys.exit(0 if importlib.util.find_spec('vllm') else 3)"
    try:
        found = subprocess.run(
            [interpreter, "-c", code], cwd=folder, env=dict(environment), capture_output=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as broken:
        raise OracleRefusal(f"the Python of --oracle-python, {interpreter}, does not run: {broken}") from None
    if found.returncode:
        raise OracleRefusal(
            f"vLLM is not installed for {interpreter}; --oracle vllm needs a Python that has it: name one with "
            "--oracle-python"
        )


def _answer(request: Mapping[str, Any], record: Mapping[str, Any]) -> OracleResult | OracleRefusal:
    if "refused" in record:
        named = request["config"].get("architectures") if isinstance(request.get("config"), Mapping) else None
        shown = ", ".join(map(str, named)) if isinstance(named, list | tuple) else repr(named)
        return OracleRefusal(f"vLLM does not build {shown} from this config.json: {_one_line(record['refused'])}")
    attention = [one for one in record["caches"] if one[1] in ("full", "sliding", "mla")]
    return OracleResult(
        architecture=record["architecture"],
        vllm_version=record["vllm_version"],
        tensors=[OracleTensor(name, tuple(shape), *rest) for name, shape, *rest in record["tensors"]],
        kv_layers=[KVLayer(kind, window, page // tokens) for _, kind, window, tokens, page in attention],
        other_caches=[
            OtherCache(name, kind, tokens, page)
            for name, kind, _, tokens, page in record["caches"]
            if kind not in ("full", "sliding", "mla")
        ],
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:_SAID_CHARACTERS] if lines else "it said nothing"


def _one_line(text: str) -> str:
    """Pydantic's refusals run over lines; their second one says what is wrong."""
    flat = " ".join(text.split())
    _, marker, rest = flat.partition("Value error, ")
    return (rest if marker else flat).split(" [type=")[0][:_SAID_CHARACTERS]

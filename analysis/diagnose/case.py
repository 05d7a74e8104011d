"""One failed start, as its row tells it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MEMORY_CAUSES = (
    "out_of_memory", "insufficient_free_memory", "no_kv_memory", "max_model_len_exceeds_kv", "cannot_fit",
)  # fmt: skip
"""Values of failure_cause that a change of settings can cure."""

TOO_LITTLE_KV = ("no_kv_memory", "max_model_len_exceeds_kv")
"""Causes that a larger KV pool cures; where memory itself ran out a smaller one does."""

ROUNDING_BYTES = round(0.01 * 2**30)
"""vLLM prints GiB with two decimals, so a shortfall read from its message may be this much larger."""

OOM_MARGIN_BYTES = 256 * 2**20
"""An allocator names the one block it could not have, and there may be more behind it: what an answer must gain beyond
the shortfall that an out-of-memory message gives. A judgement, about one large temporary tensor."""


HOST_RESERVE_BYTES = 2**30
"""What an answer leaves of a host's memory: the engine's own working memory under load, and everybody else's. Where the
last page is taken the kernel ends a process. A judgement."""


_NODE = re.compile(r"Available memory on node \d+ \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\)")
"""vLLM's CPU worker, 0.32.0: what is available on the NUMA node it is bound to, and what that node has."""


class NotForMemory(ValueError):
    """The row did not fail, or not for memory: one sentence."""


@dataclass(frozen=True, slots=True)
class Case:
    """A start that failed for memory. Sizes in bytes.

    `shortfall_bytes` is what was missing as far as the failure said, else None. `row` is the row of the engines table.
    `longest_tokens` is the longest request of the row's workloads, which a shorter max_model_len must still take; None
    without a workload.
    """

    run_id: str
    label: str
    phase: str
    cause: str
    sentence: str
    shortfall_bytes: int | None
    on_cpu: bool
    row: Mapping[str, Any]
    longest_tokens: int | None = None

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Case:
        """Raises NotForMemory."""
        name, status = str(row.get("run_id")), row.get("status")
        if status not in ("failed", "pruned"):
            raise NotForMemory(f"{name} did not fail (status {status})")
        cause = str(row.get("failure_cause"))
        if cause not in MEMORY_CAUSES:
            raise NotForMemory(f"{name} failed for another reason than memory: {cause}, {row.get('failure_sentence')}")
        shortfall = row.get("shortfall_bytes")
        settings = [f"T={row['max_num_batched_tokens']}"] if row.get("max_num_batched_tokens") else []
        settings += [f"S={row['max_num_seqs']}"] if row.get("max_num_seqs") else []
        return cls(
            run_id=name,
            label=" ".join([str(row.get("model")), str(row.get("quantization")), *settings]),
            phase=str(row.get("failure_phase")),
            cause=cause,
            sentence=str(row.get("failure_sentence") or ""),
            shortfall_bytes=int(shortfall) if shortfall is not None else None,
            on_cpu=row.get("device_kind") == "cpu",
            row=row,
            longest_tokens=_longest(row),
        )

    @property
    def node_bytes(self) -> tuple[int, int] | None:
        """Available and total memory of the CPU engine's node, as the failure said; None where it did not. The share
        of gpu_memory_utilization is of that node, which may hold far less than the host."""
        found = _NODE.search(self.sentence)
        return (round(float(found["free"]) * 2**30), round(float(found["total"]) * 2**30)) if found else None

    @property
    def pruned(self) -> bool:
        """The arithmetic refused it, and no engine was started."""
        return self.row.get("status") == "pruned"

    @property
    def margin_bytes(self) -> int:
        """What a change must gain beyond the shortfall: the rounding of a message, what hides behind an OOM, or what a
        host needs to live on."""
        if self.on_cpu and self.cause not in TOO_LITTLE_KV:
            return HOST_RESERVE_BYTES
        return OOM_MARGIN_BYTES if self.cause == "out_of_memory" else ROUNDING_BYTES

    @property
    def config(self) -> dict[str, Any] | None:
        """config.json that the engine read; None where the row does not hold it, or not whole."""
        try:
            found = json.loads(self.row.get("model_config_json") or "null")
        except ValueError:
            return None
        return found if isinstance(found, dict) else None


def _longest(row: Mapping[str, Any]) -> int | None:
    try:
        points = json.loads(row.get("request_json") or "{}").get("workload", {}).get("points", [])
        lengths = [int(point["input_tokens"]) + int(point["output_tokens"]) for point in points]
    except (ValueError, TypeError, KeyError, AttributeError):  # lengths drawn from a distribution, or an odd row
        return None
    return max(lengths, default=None)

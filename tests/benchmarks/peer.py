"""vLLM's own benchmark tools as the other side of a comparison: their command lines, inputs and results."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.errors import BenchError
from tests.benchmarks.load import Load, Measured

VLLM = str(Path(sys.executable).with_name("vllm"))
"""The script beside this Python. `vllm bench sweep` resets caches only for a server command ending in `vllm`."""


def require_vllm() -> None:
    """Raise `BenchError` where this environment has no `vllm` script."""
    if not Path(VLLM).exists():
        raise BenchError(f"{VLLM}: not there; run with a Python that has vLLM installed (`make setup` makes .venv)")


def write_prompts(path: Path, prompts: list[list[int]]) -> Path:
    """A `--dataset-name custom` file. Prompts stay token ids, so nobody's tokenizer changes them."""
    path.write_text("".join(json.dumps({"prompt": ids}) + "\n" for ids in prompts))
    return path


def write_tokenizer(folder: Path, vocab_size: int) -> Path:
    """A tokenizer of one word an id into a model's folder, for tools that want one; dummy models have none."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"t{number}": number for number in range(vocab_size)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "t0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


def bench_serve_random(model: str, port: int, load: Load, tokenizer: Path, seed: int) -> list[str]:
    """`vllm bench serve` for this load as documented: random prompts, made with the model's tokenizer."""
    return [
        *_bench_serve(model, port, load),
        "--tokenizer", str(tokenizer), "--dataset-name", "random", "--seed", str(seed),
        "--random-input-len", str(load.input_tokens), "--random-output-len", str(load.output_tokens),
    ]  # fmt: skip


def bench_serve(model: str, port: int, load: Load, prompts: Path) -> list[str]:
    """`vllm bench serve` for this load in its leanest form: prompts from a file, no tokenizer, no progress bar.

    Without a tokenizer it takes every request for one token long; `max_tokens` in the extra body overrides that.
    """
    return [
        *_bench_serve(model, port, load), "--skip-tokenizer-init", "--disable-tqdm",
        "--dataset-name", "custom", "--dataset-path", str(prompts), "--disable-shuffle",
        "--extra-body", json.dumps({"max_tokens": load.output_tokens}),
    ]  # fmt: skip


def _bench_serve(model: str, port: int, load: Load) -> list[str]:
    return [
        VLLM, "bench", "serve",
        "--backend", "openai", "--base-url", f"http://127.0.0.1:{port}", "--endpoint", "/v1/completions",
        "--model", model, "--num-prompts", str(load.requests), "--max-concurrency", str(load.concurrency),
        "--num-warmups", str(load.warmup), "--request-rate", "inf", "--ignore-eos", "--temperature", "0",
    ]  # fmt: skip


def bench_sweep_serve(serve: list[str], bench: list[str], settings: Path, out: Path, runs: int) -> list[str]:
    """`vllm bench sweep serve` over the settings in a JSON file, `runs` client runs on each server."""
    return [
        VLLM, "bench", "sweep", "serve", "--serve-cmd", shlex.join(serve), "--bench-cmd", shlex.join(bench),
        "--serve-params", str(settings), "--num-runs", str(runs), "--output-dir", str(out.parent),
        "--experiment-name", out.name,
    ]  # fmt: skip


@dataclass(frozen=True)
class PeerFile:
    """One JSON result of `vllm bench serve --save-result`."""

    data: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> PeerFile:
        """Raises `BenchError` where the tool left no readable result."""
        try:
            return cls(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise BenchError(f"{path}: vllm bench wrote no readable result ({error})") from error

    def measured(self) -> Measured:
        """As ours: its window is from before the first sending to the last answer. Latencies need --save-detailed."""
        data = self.data
        ttfts, latencies = data.get("ttfts") or [], data.get("latencies") or []
        lengths = data.get("output_lens") or []
        tpots = [
            (latency - ttft) / (length - 1)
            for latency, ttft, length in zip(latencies, ttfts, lengths, strict=False)  # all empty without the details
            if length > 1
        ]
        return Measured(
            duration_s=data["duration"],
            completed=data["completed"],
            input_tokens=data["total_input_tokens"],
            output_tokens=data["total_output_tokens"],
            ttft_mean_s=fmean(ttfts) if ttfts else None,
            tpot_mean_s=fmean(tpots) if tpots else None,
            e2e_mean_s=fmean(latencies) if latencies else None,
        )

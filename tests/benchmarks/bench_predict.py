"""How long a prediction takes: one command line from process start to answer, and a batch.

Not a test: ``python tests/benchmarks/bench_predict.py [requests] [repeats]``. The batch draws models, formats, GPUs and
settings at random (seed 0), so that it meets every cache hot and cold as a planner's grid would.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "vllm serve Qwen/Qwen2.5-7B-Instruct --max-num-seqs 64"
MODELS = (
    "Qwen/Qwen2.5-7B-Instruct", "llama-3.1-8b", "mistral-7b", "qwen3-30b-a3b", "deepseek-coder-33b", "qwen2.5-72b",
    "qwen3-8b", "qwen2.5-0.5b", "gemma-2-9b", "Qwen/Qwen2.5-14B-Instruct-AWQ",
)  # fmt: skip


def requests(count: int) -> str:
    draw = random.Random(0).choice
    lines = []
    for number in range(count):
        model = draw(MODELS)
        formats = (None, "awq", "gptq", "fp8", "fp8-dynamic", "int8-w8a8", "w4a16")
        lines.append(json.dumps({
            "id": number, "model": model, "quantization": None if "AWQ" in model else draw(formats),
            "gpu": draw((None, "h100-80gb", "h200", "a100-80gb", "l4", "rtx-4090")),
            "tensor_parallel_size": draw((None, 1, 2, 4)), "kv_cache_dtype": draw((None, "fp8")),
            "max_num_seqs": draw((None, 8, 64, 256)), "max_num_batched_tokens": draw((None, 512, 2048, 8192)),
            "max_model_len": draw((None, 2048, 4096)), "vllm_version": draw((None, "0.19.0", "0.25.1")),
        }))  # fmt: skip
    return "\n".join(lines) + "\n"


def timed(words: list[str], stdin: str = "") -> tuple[float, str]:
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "analysis", "predict", *words], cwd=ROOT, input=stdin, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return time.perf_counter() - begun, done.stdout


def main(count: int, repeats: int) -> None:
    single = [timed([COMMAND, "--gpu", "h100-80gb"])[0] for _ in range(repeats)]
    print(f"one command line: median {statistics.median(single):.3f} s, worst {max(single):.3f} s of {repeats} "
          "(limit 0.5 s)")  # fmt: skip
    asked = requests(count)
    for _ in range(min(repeats, 3)):
        seconds, answers = timed(["--batch", "-"], asked)
        lines = answers.splitlines()
        refused = sum('"error"' in line for line in lines)
        print(f"{len(lines)} requests: {seconds:.2f} s, {seconds / len(lines) * 1e6:.0f} us each, {refused} refused "
              "(limit 10 s for 10000)")  # fmt: skip


if __name__ == "__main__":
    main(*[int(word) for word in sys.argv[1:]] or (10000, 10)) if len(sys.argv) != 2 else main(int(sys.argv[1]), 10)

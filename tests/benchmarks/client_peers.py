"""The load clients that ``bench_client`` compares: how each is installed, started, and what it then says of itself.

Each is the real one, in a process of its own, on the same load: so many streams at once, one request each, text prompts
of 32 words for those that take no token ids. A tokenizer of a few words is made here, so that nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

WORDS = 1000
PROMPT_WORDS = 32


@dataclass(frozen=True)
class Load:
    """One request per stream, all at once; ``tokens`` of output each."""

    base_url: str
    streams: int
    tokens: int


@dataclass(frozen=True)
class Said:
    """What a client reported. ``per_token``: its ITL is of single tokens, else of each request's mean."""

    requests: int
    itl_p99_s: float | None
    per_token: bool


class Ours:
    """This project's client, one worker."""

    name = "ours"
    script = "ours"

    def prepare(self, cache: Path) -> str:
        """Make it ready; a sentence if that cannot be done."""
        return ""

    def command(self, load: Load, folder: Path) -> tuple[list[str], dict[str, str]]:
        """What to run, and the environment it needs beyond this one."""
        options = [self.script, load.base_url, str(load.streams), str(load.tokens), str(folder / "said.json")]
        return [sys.executable, "-m", "tests.benchmarks.client_run", *options], {}

    def said(self, folder: Path) -> Said:
        """Read its report. Raises ``OSError``, ``ValueError`` or ``KeyError`` if there is none."""
        return Said(**json.loads((folder / "said.json").read_text()))


class Vllm(Ours):
    """vLLM's own request function, on asyncio in one process, as ``vllm bench serve`` runs it."""

    name = "vllm"
    script = "vllm"


class Bare(Ours):
    """No client: takes the bytes from the kernel, one read for each token, and drops them. What else costs is more."""

    name = "bare"
    script = "bare"


class Guidellm:
    """guidellm, with as many worker processes as it is told: one for each core."""

    name = "guidellm"
    package = "guidellm==0.8.1"

    def prepare(self, cache: Path) -> str:
        return install(cache, self.name, self.package)

    def command(self, load: Load, folder: Path) -> tuple[list[str], dict[str, str]]:
        prompts = write_prompts(folder, load, "prompt", {"output_tokens_count": load.tokens})
        cores = len(os.sched_getaffinity(0))
        backend = f"kind=openai_http,target={load.base_url},model=sim,request_format=/v1/completions"
        command = [
            str(folder.parent / self.name / "bin" / "guidellm"), "run", "--backend", backend,
            "--profile", f"kind=concurrent,streams={load.streams}",
            "--data", f"kind=json_file,path={prompts}",
            "--tokenizer", f"kind=huggingface_auto,model={write_tokenizer(folder)}",
            "--constraint", f"kind=max_requests,count={load.streams}",
            "--output", f"kind=json,path={folder / 'said.json'}", "--disable-console",
        ]  # fmt: skip
        return command, {"HF_HUB_OFFLINE": "1", "GUIDELLM__MAX_WORKER_PROCESSES": str(cores)}

    def said(self, folder: Path) -> Said:
        metrics = json.loads((folder / "said.json").read_text())["benchmarks"][0]["metrics"]
        itl = metrics["inter_token_latency_ms"]["successful"]
        p99_ms = itl["percentiles"]["p99"]
        return Said(int(metrics["request_totals"]["successful"]), p99_ms / 1e3, False)


class Aiperf:
    """aiperf, as it divides itself into processes by default."""

    name = "aiperf"
    package = "aiperf==0.13.0"

    def prepare(self, cache: Path) -> str:
        return install(cache, self.name, self.package)

    def command(self, load: Load, folder: Path) -> tuple[list[str], dict[str, str]]:
        command = [
            str(folder.parent / self.name / "bin" / "aiperf"), "profile", "-m", "sim", "--url", load.base_url,
            "--endpoint-type", "completions", "--streaming", "--tokenizer", str(write_tokenizer(folder)),
            "--input-file", str(write_prompts(folder, load, "text", {})), "--custom-dataset-type", "single_turn",
            "--concurrency", str(load.streams), "--request-count", str(load.streams), "--ui", "none",
            "--use-legacy-max-tokens", "--use-server-token-count", "--extra-inputs", f"max_tokens:{load.tokens}",
            "--extra-inputs", "ignore_eos:true", "--output-artifact-dir", str(folder),
        ]  # fmt: skip
        return command, {}

    def said(self, folder: Path) -> Said:
        report = json.loads((folder / "profile_export_aiperf.json").read_text())
        return Said(int(report["request_count"]["avg"]), report["inter_token_latency"]["p99"] / 1e3, False)


CLIENTS: dict[str, Ours | Guidellm | Aiperf] = {c.name: c for c in (Ours(), Vllm(), Guidellm(), Aiperf(), Bare())}


def install(cache: Path, name: str, package: str) -> str:
    """Make a virtual environment ``cache/name`` with ``package``; an empty string, or why not."""
    folder = cache / name
    if (folder / "bin" / name).exists():
        return ""
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", package]
    done = subprocess.run(pip, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode == 0 and (folder / "bin" / name).exists():
        return ""
    lines = [line for line in done.stdout.splitlines() if "ERROR" in line] or done.stdout.splitlines()
    return f"{package} could not be installed: {lines[-1] if lines else f'pip ended with {done.returncode}'}"


def write_tokenizer(folder: Path) -> Path:
    """A tokenizer whose tokens are words, as Hugging Face's loaders read it."""
    target = folder / "tokenizer"
    target.mkdir(exist_ok=True)
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": text, **special} for i, text in enumerate(("</s>", "<unk>"))],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {"</s>": 0, "<unk>": 1, **{f"w{i}": i for i in range(2, WORDS)}},
            "unk_token": "<unk>",
        },
    }
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "</s>"}
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    return target


def write_prompts(folder: Path, load: Load, field: str, more: dict[str, object]) -> Path:
    """A prompt of words per request, one JSON object a line."""
    words = random.Random(1)
    path = folder / "prompts.jsonl"
    with path.open("w") as file:
        for _ in range(load.streams):
            text = " ".join(f"w{words.randrange(2, WORDS)}" for _ in range(PROMPT_WORDS))
            file.write(json.dumps({field: text, **more}) + "\n")
    return path

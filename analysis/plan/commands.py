"""A plan as something to run: `vllm serve` command lines, a shell script, a compose file."""

from __future__ import annotations

import json
import shlex
from pathlib import PurePosixPath

from analysis.plan import hardware
from analysis.plan.card import Placed, Plan
from analysis.plan.checkpoints import checkpoint_of

FIRST_PORT = 8000
IMAGE = "vllm/vllm-openai"


def serve_words(one: Placed, port: int) -> list[str]:
    """The words of one engine's command line, `vllm serve` included."""
    engine = one.engine
    words = ["vllm", "serve", engine.checkpoint or checkpoint_of(engine.model, engine.quantization)[0]]
    if dtype := hardware.dtype_flag(engine.quantization, one.prediction.settings.device.name):
        words += ["--dtype", dtype]
    elif engine.quantization == "fp8":  # vLLM quantizes a 16-bit checkpoint as it loads
        words += ["--quantization", "fp8"]
    words += ["--served-model-name", engine.name]
    words += ["--max-model-len", str(engine.length), "--max-num-seqs", str(engine.max_num_seqs)]
    for key, value in engine.settings:
        if key == "enforce_eager":
            words += ["--enforce-eager"] if value else []
        elif key != "max_num_seqs":
            words += [f"--{key.replace('_', '-')}", str(value)]
    words += ["--gpu-memory-utilization", f"{one.share:.3f}"]
    if one.pool_bytes is not None:
        words += ["--kv-cache-memory-bytes", str(one.pool_bytes)]
    return [*words, "--port", str(port)]


def serve_commands(plan: Plan) -> list[str]:
    """One command line per engine, in the order of their starts."""
    return [shlex.join(serve_words(one, FIRST_PORT + place)) for place, one in enumerate(plan.placed)]


def notes(plan: Plan) -> list[str]:
    """What must be filled in before the commands run, and what they serve otherwise than asked."""
    pairs = [(one.engine.checkpoint, checkpoint_of(one.engine.model, one.engine.quantization)) for one in plan.placed]
    missing = [note for given, (_, note) in pairs if note and not given]
    half = [hardware.half_note(one.engine.quantization, one.prediction.settings.device.name) for one in plan.placed]
    return list(dict.fromkeys([*missing, *filter(None, half)]))


def script(plan: Plan) -> str:
    """A shell script that starts the engines one after the other, each when the one before it answers.

    Two engines that profile at the same time count each other's memory as their own.
    """
    # In a script a background process ignores Ctrl-C, and would outlive an engine that fails to start.
    lines = [
        "#!/bin/sh", "set -e", *(f"# {note}" for note in notes(plan)), "engines=",
        "trap '[ -z \"$engines\" ] || kill $engines 2>/dev/null || true' EXIT", "trap 'exit 1' INT TERM",
    ]  # fmt: skip
    for place, command in enumerate(serve_commands(plan)):
        port = FIRST_PORT + place
        lines += [
            "", f"{command} &", 'engines="$engines $!"',
            f"until curl -sf http://127.0.0.1:{port}/health >/dev/null; do kill -0 $! || exit 1; sleep 1; done",
        ]  # fmt: skip
    return "\n".join([*lines, "", "wait", ""])


def compose(plan: Plan) -> str:
    """A compose file: each engine waits until the one before it is healthy."""
    version = plan.placed[0].prediction.settings.version_text
    lines = [*(f"# {note}" for note in notes(plan)), "services:"]
    for place, one in enumerate(plan.placed):
        port = FIRST_PORT + place
        words = serve_words(one, port)[2:]
        volumes = ["~/.cache/huggingface:/root/.cache/huggingface"]
        if words[0].startswith(("./", "../", "/", "~")):  # a folder here, which the container must be given
            inside = f"/models/{PurePosixPath(words[0]).name}"
            volumes.append(f"{words[0]}:{inside}:ro")
            words[0] = inside
        lines += [
            f"  engine-{place + 1}:",
            f"    image: {IMAGE}:v{version}",
            "    command:",
            *(f"      - {_quoted(word)}" for word in words),
            "    ports:",
            f'      - "127.0.0.1:{port}:{port}"',
            "    ipc: host",
            "    environment: [HF_TOKEN]",
            "    volumes:",
            *(f"      - {_quoted(volume)}" for volume in volumes),
            "    deploy:",
            "      resources:",
            "        reservations:",
            "          devices:",
            '            - {driver: nvidia, device_ids: ["0"], capabilities: [gpu]}',
            "    healthcheck:",
            f'      test: ["CMD", "curl", "-sf", "http://127.0.0.1:{port}/health"]',
            "      interval: 5s",
            "      retries: 360",
        ]
        if place:
            lines += ["    depends_on:", f"      engine-{place}: {{condition: service_healthy}}"]
    return "\n".join(lines) + "\n"


def _quoted(word: str) -> str:
    """A YAML string whatever the word looks like: JSON's are YAML's."""

    return json.dumps(word)

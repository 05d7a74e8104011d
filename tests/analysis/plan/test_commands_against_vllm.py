"""The commands of every scenario, and of other plans, through the installed vLLM's own argument parser."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from analysis import guide
from analysis.plan import commands, scenarios
from analysis.plan.card import plan
from analysis.plan.engine import Card, Engine

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

PARSE = """
import contextlib, json, sys
lines = json.load(sys.stdin)
with contextlib.redirect_stdout(sys.stderr):
    from vllm.entrypoints.cli.serve import FlexibleArgumentParser, make_arg_parser
    parser = make_arg_parser(FlexibleArgumentParser())
    parsed = [vars(parser.parse_args(words)) for words in lines]
keys = ("model_tag", "max_model_len", "max_num_seqs", "gpu_memory_utilization", "kv_cache_memory_bytes", "port",
        "max_num_batched_tokens", "kv_cache_dtype", "enforce_eager", "quantization", "dtype")
print(json.dumps([{key: one[key] for key in keys} for one in parsed]))
"""


def test_vllm_reads_the_commands_as_they_are_meant():
    plans = [scenarios.planned(row) for row in guide.SUMMARY_ROWS]
    others = [
        Engine.parse("qwen2.5-7b:fp8,kv_cache_dtype=fp8,max_num_batched_tokens=4096,enforce_eager=true", 8, 2048),
        Engine.parse("llama-3.1-8b:bf16,max_num_seqs=32", 8, 2048),
    ]
    plans.append(plan(others, Card("h100", None, None), mode="bytes"))
    placed = [(one, commands.FIRST_PORT + place) for done in plans for place, one in enumerate(done.placed)]
    words = [commands.serve_words(one, port)[2:] for one, port in placed]
    env = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", PARSE], input=json.dumps(words), env=env, text=True, capture_output=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    answers = json.loads(ran.stdout)
    assert len(answers) == len(placed) == 13
    for (one, port), answer in zip(placed, answers, strict=True):
        settings = dict(one.engine.settings)
        assert answer["port"] == port
        assert answer["max_model_len"] == one.engine.length
        assert answer["max_num_seqs"] == one.engine.max_num_seqs
        assert answer["gpu_memory_utilization"] == pytest.approx(one.share)
        assert answer["kv_cache_memory_bytes"] == one.pool_bytes
        assert answer["max_num_batched_tokens"] == settings.get("max_num_batched_tokens")
        assert answer["enforce_eager"] == settings.get("enforce_eager", answer["enforce_eager"])
        assert answer["kv_cache_dtype"] == settings.get("kv_cache_dtype", "auto")

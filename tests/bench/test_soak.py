"""Memory over time: which loads have a drift, what it says of host and devices, and a leak in a real engine."""

import importlib.util
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from bench.config import WorkloadPoint
from bench.drift import MOST_LINES, drift_columns, sentences
from bench.record.tables import table_schema
from bench.summary import print_summary
from bench.telemetry.samples import FILE_NAME, Sample, read_latest

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
HELD = {"workload": "soak", "pattern": "closed_loop", "duration_s": 120.0, "knee_trial": None}


def timeline(host_mib_per_s=0.0, device_mib_per_s=None, process=False, seconds=120, phase="load:soak"):
    samples = []
    for tick in range(seconds * 10):
        at = tick / 10
        host = {"t_s": at, "phase": phase, "tree_rss_bytes": int(MIB * (900 + host_mib_per_s * at))}
        if device_mib_per_s is None:
            samples.append(Sample(**host))
            continue
        used = int(MIB * (20000 + device_mib_per_s * at))
        own = {"process_memory_used_bytes": used - 300 * MIB} if process else {}
        # A second GPU whose use does not change.
        for index, size in enumerate((used, 20000 * MIB)):
            samples.append(Sample(**host, device_index=index, device_memory_used_bytes=size, **own))
    return samples


def test_the_drift_of_a_held_load_has_a_slope_an_interval_and_a_verdict():
    columns = drift_columns(HELD, "load:soak", timeline(host_mib_per_s=0.5))
    assert columns["drift_verdict"] == columns["drift_host_verdict"] == "leak"
    assert columns["drift_host_metric"] == "tree_rss_bytes"
    slope = columns["drift_host_slope_bytes_per_s"]
    assert slope == pytest.approx(0.5 * MIB, rel=1e-3)
    assert columns["drift_host_slope_low_bytes_per_s"] <= slope <= columns["drift_host_slope_high_bytes_per_s"]
    assert columns["drift_host_growth_bytes"] == pytest.approx(60 * MIB, rel=0.05)
    assert columns["drift_seconds"] == pytest.approx(119.9)
    assert columns["drift_least_bytes_per_s"] == pytest.approx(4 * MIB / 119.9), "in two minutes: 4 MiB in all"
    assert not any(name.startswith("drift_device") for name in columns), "no GPU, no such figure"
    assert set(columns) <= set(table_schema("workloads").names)


def test_a_flat_one_is_not_accused_and_a_leak_on_the_device_is_seen_beside_it():
    assert drift_columns(HELD, "load:soak", timeline())["drift_verdict"] == "flat"
    columns = drift_columns(HELD, "load:soak", timeline(device_mib_per_s=1.0))
    assert (columns["drift_host_verdict"], columns["drift_device_verdict"]) == ("flat", "leak")
    assert columns["drift_verdict"] == "leak", "the worse of the two"
    assert columns["drift_device_first_bytes"] == pytest.approx(40001 * MIB, rel=1e-3), "both GPUs"
    assert columns["drift_device_metric"] == "device_memory_used_bytes"
    own = drift_columns(HELD, "load:soak", timeline(device_mib_per_s=1.0, process=True))
    assert own["drift_device_metric"] == "process_memory_used_bytes", "the engine's own, where the driver tells it"


@pytest.mark.parametrize(
    "changes", [{"duration_s": None}, {"pattern": "ramp"}, {"pattern": "trace"}, {"knee_trial": 1}],
)  # fmt: skip
def test_a_load_that_was_not_held_has_no_drift(changes):
    assert drift_columns(HELD | changes, "load:soak", timeline(host_mib_per_s=5)) == {}


def test_only_the_loads_own_time_counts_and_too_little_of_it_says_nothing():
    rising = timeline(host_mib_per_s=5, phase="warmup:soak")
    assert drift_columns(HELD, "load:soak", rising) == {}
    assert drift_columns(HELD, "load:soak", rising + timeline())["drift_verdict"] == "flat"
    assert drift_columns(HELD, "load:soak", timeline(host_mib_per_s=5)[:30]) == {}


@pytest.mark.parametrize("seconds", [20, 60, 100])
def test_an_ordinary_load_of_less_than_two_minutes_is_not_accused(seconds):
    """It grows by 2 MiB a second: so does an engine that settles."""
    held = HELD | {"duration_s": float(seconds)}
    assert drift_columns(held, "load:soak", timeline(host_mib_per_s=2, seconds=seconds)) == {}


def _row(workload="soak", **rates):
    return {**HELD, **drift_columns(HELD, "load:soak", timeline(**rates)), "run_id": "a", "workload": workload}


def test_the_sentence_has_the_figures_with_their_units():
    ((verdict, said),) = sentences([_row(host_mib_per_s=0.5)])
    assert verdict == "leak"
    for part in ("soak, host memory (RSS) over 120 s: leak, +5", "slope +30.00 [+30.00, +30.00]", "MiB a minute"):
        assert part in said, said
    assert len(sentences([_row(host_mib_per_s=0.5, device_mib_per_s=0.0)])) == 2
    assert sentences([HELD | {"run_id": "a"}]) == []


def test_the_summary_names_every_leak_and_counts_what_it_leaves_out():
    engine = dict.fromkeys(table_schema("engines").names) | {
        "run_id": "a", "model": "m", "quantization": "q", "status": "ok", "flags": [], "repeat": 0,
        "device_kind": "cpu", "started_unix_s": 1.0,
    }  # fmt: skip
    blank = dict.fromkeys(table_schema("workloads").names) | {"flags": []}
    loads = [blank | _row(f"w{number}") for number in range(MOST_LINES + 3)] + [blank | _row("bad", host_mib_per_s=1)]
    screen = io.StringIO()
    print_summary(Console(file=screen, width=250), [engine], loads, "results/x")
    told = [line for line in screen.getvalue().splitlines() if line.startswith("memory over time")]
    assert "bad, host memory" in told[0] and "leak" in told[0]
    assert told[-1] == "memory over time: 4 more loads, none of them a leak" and len(told) == MOST_LINES + 1


def test_the_soak_of_the_catalogue_holds_a_closed_loop_for_five_minutes():
    from omegaconf import OmegaConf

    (written,) = OmegaConf.load(ROOT / "conf" / "workload" / "soak.yaml").points
    point = WorkloadPoint(**written)
    assert (point.pattern, point.duration_s, point.num_requests) == ("closed_loop", 300, None)


# -- a real engine -------------------------------------------------------------------------------------------

LEAK_BYTES_PER_S = 4 * MIB
SOAK = "{{name:{name},concurrency:1,duration_s:7,warmup_requests:{warmup},input_tokens:32,output_tokens:8}}"


@pytest.fixture
def short_folder():
    """Sockets have short names; pytest's own folders leave them too little room."""
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.engine
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs an installed vLLM")
def test_a_leak_in_a_real_engine_is_found_and_the_same_engine_before_it_is_not_accused(short_folder, tmp_path, bench):
    """One engine under one load, twice; the leak begins with the second."""
    points = ",".join(SOAK.format(name=name, warmup=warmup) for name, warmup in (("flat", 32), ("leaks", 0)))
    trigger = short_folder / "go"
    words = ["model=tiny-llama", "quantization=fp32", "engine=cpu", "device=cpu", "launcher=spawn", "set=s",
             f"workload.points=[{points}]", "workload.name=soaks", f"paths.results={tmp_path}", "telemetry.hz=20",
             f"paths.scratch={short_folder}", f"+engine.env.FAKE_LEAK_BYTES_PER_S={LEAK_BYTES_PER_S}",
             f"+engine.env.FAKE_LEAK_WHEN={trigger}"]  # fmt: skip
    with ThreadPoolExecutor() as beside:
        harness = beside.submit(bench, *words, PYTHONPATH=str(ROOT / "tests" / "fakes" / "leak"))
        while not harness.done() and not trigger.exists():
            for file in short_folder.glob(f"*/telemetry/{FILE_NAME}"):
                if (now := read_latest(file)) and now.phase == "load:leaks":
                    trigger.touch()
            time.sleep(0.05)
    done = harness.result()
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (tmp_path / "s" / "workloads").glob("*.parquet")
    for row in pq.read_table(file, partitioning=None).to_pylist():
        assert row["drift_verdict"] is None, "seconds are no soak; only who asks for them is answered"
    command = [sys.executable, "-m", "analysis", "drift", str(tmp_path / "s")]
    refused = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert refused.returncode == 2 and "cannot tell a leak from settling; hold it for 120 s or more" in refused.stdout
    words = [*command, "--least-seconds", "5", "--json"]
    answered = subprocess.run(words, cwd=ROOT, text=True, capture_output=True)
    assert answered.returncode == 1, "something leaks"
    found = {one["workload"]: one for one in json.loads(answered.stdout) if one["column"] == "tree_rss_bytes"}
    assert found["flat"]["verdict"] in ("flat", "levels_off"), found
    assert abs(found["flat"]["late_slope_bytes_per_s"]) < LEAK_BYTES_PER_S / 10
    assert found["leaks"]["verdict"] == "leak", found
    assert found["leaks"]["slope_bytes_per_s"] == pytest.approx(LEAK_BYTES_PER_S, rel=0.15)

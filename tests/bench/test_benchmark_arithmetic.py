"""The arithmetic behind the benchmarks against other tools, and what makes their runs comparable."""

import argparse
import json
import math
import socket
import sys
import threading
from dataclasses import asdict

import pytest

from bench.errors import BadRequest, BenchError
from bench.load.plan import make_plans
from bench.load.spec import LoadSpec
from bench.telemetry.procfs import read_stat
from tests.benchmarks import bench_agreement, bench_overhead, bench_sweep, engines, lean, peer, tools
from tests.benchmarks.load import Load, Measured, prompts
from tests.benchmarks.paired import Change
from tests.benchmarks.report import write_json

LOAD = Load(concurrency=2, requests=6, input_tokens=20, output_tokens=4, warmup=0)


def test_change_is_of_pairs_and_not_of_pools():
    # Both halve from pair to pair, which pools would drown in; within each pair the treated one is 1 % faster.
    reference = [400.0, 200.0, 100.0]
    change = Change.of([value * 1.01 for value in reference], reference)
    assert change.change == pytest.approx(0.01)
    assert change.low == pytest.approx(0.01) and change.high == pytest.approx(0.01)


def test_interval_is_students_t():
    # Log ratios 0.01, 0.02, 0.03: mean 0.02, sd 0.01; t(0.975, 2) = 4.3027.
    change = Change.of([math.exp(x) for x in (0.01, 0.02, 0.03)], [1.0, 1.0, 1.0])
    half = 4.30265 * 0.01 / math.sqrt(3)
    assert math.log1p(change.low) == pytest.approx(0.02 - half, abs=1e-6)
    assert math.log1p(change.high) == pytest.approx(0.02 + half, abs=1e-6)
    assert change.sd == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.004, 0.006, "shown"), (-0.012, 0.002, "undecided"), (0.011, 0.02, "refuted"), (-0.05, -0.0101, "refuted"),
     (-0.02, 0.02, "undecided"), (-0.01, 0.0, "undecided"), (-math.inf, math.inf, "undecided")],
)  # fmt: skip
def test_only_a_whole_interval_decides(low, high, verdict):
    assert Change((low + high) / 2, low, high, 0.01, 8).verdict(0.01) == verdict


def test_one_pair_tells_nothing_of_the_spread():
    change = Change.of([101.0], [100.0])
    assert change.verdict(0.05) == "undecided" and change.pairs_needed(0.05) is None


def test_pairs_needed_would_just_decide():
    change = Change(0.002, -0.01, 0.014, 0.02, 8)
    needed = change.pairs_needed(0.01)
    assert needed is not None

    def upper(pairs: int) -> float:
        from scipy.stats import t

        return math.log1p(0.002) + t.ppf(0.975, pairs - 1) * 0.02 / math.sqrt(pairs)

    assert upper(needed) < math.log1p(0.01) <= upper(needed - 1)
    assert Change(0.01, 0.0, 0.02, 0.02, 8).pairs_needed(0.01) is None, "a change on the limit is never decided"


def test_one_pair_is_valid_json(tmp_path):
    write_json(tmp_path / "out.json", {"change": asdict(Change.of([101.0], [100.0]))})
    told = json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)
    assert told["change"]["low"] is None and told["change"]["change"] == pytest.approx(0.01)


def test_values_that_make_no_pairs_are_refused():
    with pytest.raises(ValueError, match="2 treated and 1 reference"):
        Change.of([1.0, 2.0], [1.0])


@pytest.mark.parametrize("field", ["completed", "input_tokens", "output_tokens"])
def test_other_work_than_asked_for_is_no_comparison(field):
    done = {"duration_s": 1.0, "completed": 6, "input_tokens": 120, "output_tokens": 24}
    Measured(**done).check(LOAD, "peer")
    with pytest.raises(BenchError, match="peer: did .* not comparable"):
        Measured(**done | {field: done[field] - 1}).check(LOAD, "peer")


def test_the_peer_gets_the_prompts_our_client_sends(tmp_path):
    spec = LoadSpec(concurrency=2, num_requests=6, input_tokens=20, output_tokens=4, seed=3)
    (plan,) = make_plans("http://127.0.0.1:1", "m", spec, 4096, 1)
    sent = [json.loads(plan.wire(request).split(b"\r\n\r\n", 1)[1]) for request in plan.requests()]
    file = peer.write_prompts(tmp_path / "prompts.jsonl", prompts(LOAD, 3, 4096))
    assert [json.loads(line)["prompt"] for line in file.read_text().splitlines()] == [body["prompt"] for body in sent]
    wires = lean.requests_for(LOAD, "m", 1, prompts(LOAD, 3, 4096))
    assert [json.loads(wire.split(b"\r\n\r\n", 1)[1]) for wire in wires] == sent


def test_a_peers_details_give_our_means(tmp_path):
    file = tmp_path / "run.json"
    file.write_text(json.dumps({
        "duration": 2.0, "completed": 2, "total_input_tokens": 40, "total_output_tokens": 6, "output_lens": [1, 5],
        "ttfts": [0.1, 0.3], "latencies": [0.1, 0.7],
    }))  # fmt: skip
    run = peer.PeerFile.read(file).measured()
    assert run.output_tokens_per_s == 3.0
    # A request of one token has no time per further token.
    assert (run.ttft_mean_s, run.tpot_mean_s, run.e2e_mean_s) == pytest.approx((0.2, 0.1, 0.4))


def test_a_peer_without_a_result_is_named(tmp_path):
    with pytest.raises(BenchError, match="gone.json: vllm bench wrote no readable result"):
        peer.PeerFile.read(tmp_path / "gone.json")


def _pair(ours: float, theirs: float) -> dict[str, Measured]:
    return {side: Measured(100 / rate, 6, 120, 100, 0.1, 0.01, 1.0) for side, rate in
            (("ours", ours), ("peer", theirs))}  # fmt: skip


@pytest.mark.parametrize(("ours", "agrees"), [(103.0, True), (103.2, False), (97.0, True), (96.8, False)])
def test_agreement_is_of_medians_of_throughput(ours, agrees, capsys):
    # One wild pair must not decide.
    pairs = [_pair(ours, 100.0), _pair(50.0, 100.0), _pair(ours, 100.0), _pair(200.0, 100.0), _pair(ours, 100.0)]
    figures, found = bench_agreement.summary(pairs, 0.03 + 1e-9)
    assert found is agrees
    assert figures["output_tokens_per_s"]["difference"] == pytest.approx(ours / 100 - 1)
    assert "TTFT mean, ms" in capsys.readouterr().out


def test_sweep_ratios_are_of_the_same_round(capsys):
    def swept(side: str, wall_s: float) -> bench_sweep.Swept:
        return bench_sweep.Swept(side, wall_s, 12.0, 6, 2, 100.0)

    walls = [(100.0, 80.0, 20.0, 40.0), (200.0, 160.0, 38.0, 80.0), (100.0, 80.0, 22.0, 40.0)]
    rounds = [{side: swept(side, wall) for side, wall in zip(bench_sweep.SIDES, one, strict=True)} for one in walls]
    figures, met = bench_sweep.summary(rounds, 0.2)
    assert figures["one start"]["to peer"]["wall_ratios"] == pytest.approx([0.2, 0.19, 0.22])
    assert figures["one start"]["to peer"]["wall_ratio"] == pytest.approx(0.2) and met
    assert figures["one start"]["overhead_per_point_s"] == pytest.approx((22.0 - 12.0) / 6)
    assert "one start / peer lean: 0.250 of its wall time" in capsys.readouterr().out


def test_overhead_is_judged_for_telemetry_and_client_alike(capsys):
    groups = [(100.0 + k, 100.0) for k in (0.0, 0.1, 0.05)]
    found = {"telemetry": groups, "client": groups}
    figures, shown = bench_overhead.summary(found, 0.01)
    assert shown and figures["client"]["verdict"] == figures["telemetry"]["verdict"] == "shown"
    assert capsys.readouterr().out.count("shown") == 2
    for question in found:
        assert not bench_overhead.summary(found | {question: [(90.0 + k, 100.0) for k in range(3)]}, 0.01)[1]


def test_overhead_puts_one_answer_as_long_as_the_engine_takes_on_every_slot():
    request = engines.compose(engines.words_for("cpu", ["engine.max_model_len=512"]))
    options = argparse.Namespace(concurrency=12, quick=False)
    load = bench_overhead.the_load(request, options)
    assert (load.concurrency, load.requests, load.input_tokens + load.output_tokens) == (12, 12, 512)


def _answer(connection: socket.socket, pieces: list[bytes], requests: int) -> None:
    seen = b""
    with connection:
        for _ in range(requests):
            while b"\r\n\r\n" not in seen:
                seen += connection.recv(65536)
            head, rest = seen.split(b"\r\n\r\n", 1)
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            while len(rest) < length:
                rest += connection.recv(65536)
            seen = rest[length:]
            for piece in pieces:
                connection.sendall(piece)
                threading.Event().wait(0.005)  # pieces must not merge on their way


STREAM = [b"HTTP/1.1 200 OK\r\nTransfer-Enc", b"oding: chunked\r\n\r\n6\r\nda", b"ta: x\r\n", b"0\r\n", b"\r\n"]


@pytest.mark.parametrize("pieces", [STREAM, [b"".join(STREAM)]])
def test_the_lean_client_finds_the_end_of_an_answer_however_it_is_cut(pieces):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        thread = threading.Thread(target=lambda: _answer(server.accept()[0], pieces, 3), daemon=True)
        thread.start()
        wires = lean.requests_for(LOAD, "m", port, [[1, 2], [3], [4]])
        assert lean.run(port, wires, 1) > 0
        thread.join(5)
        assert not thread.is_alive(), "all three requests were answered"


def test_the_lean_client_refuses_an_error_and_a_cut_answer():
    for pieces, said in (([b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"], "answered b'HTTP/1.1 500"),
                         ([STREAM[0]], "closed a connection")):  # fmt: skip
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            threading.Thread(target=lambda s=server, p=pieces: _answer(s.accept()[0], p, 1), daemon=True).start()
            with pytest.raises(BenchError, match=said):
                lean.run(port, lean.requests_for(LOAD, "m", port, [[1]]), 1)


LEAVER = """
import subprocess, sys, time
left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True, env={})
print(left.pid, flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(3)
"""


@pytest.mark.parametrize(("seconds", "limit_s", "said"), [(1.0, 30, "ended with 3"), (600, 1, "not finished within")])
def test_a_tool_leaves_nothing_behind(seconds, limit_s, said, tmp_path, monkeypatch):
    # What it leaves has a session of its own and no mark, as vLLM's workers have.
    monkeypatch.setattr(tools, "WATCH_S", 0.1)
    request = engines.compose(engines.words_for("cpu", []))
    with pytest.raises(BenchError, match=said):
        tools.run_tool([sys.executable, "-c", LEAVER, str(seconds)], request, tmp_path, tmp_path / "log", limit_s)
    left = read_stat(int((tmp_path / "log").read_text().split()[0]))
    assert left is None or left.is_dead


def test_said_words_win_over_the_defaults():
    words = engines.words_for("cpu", ["model=tiny-qwen3", "+engine.env.X=1"])
    assert "model=tiny-qwen3" in words and "model=tiny-llama" not in words and "+engine.env.X=1" in words


@pytest.mark.parametrize("word", ["repeats=2", "engine.max_num_seqs=4,16", "model", "workload=smoke"])
def test_words_that_change_what_is_compared_are_refused(word):
    with pytest.raises(BadRequest, match=f"^{word}: "):
        engines.words_for("cpu", [word])


@pytest.mark.parametrize(
    ("module", "argv", "said"),
    [(bench_sweep, ["--rounds", "0"], "--rounds 0: at least 1"),
     (bench_agreement, ["--limit", "0"], "--limit 0.0: a share greater than 0"),
     (bench_overhead, ["--limit", "1.5"], "--limit 1.5: a share between 0 and 1"),
     (bench_overhead, ["--loads", "-1"], "--loads -1: at least 1")],
)  # fmt: skip
def test_bad_options_are_one_sentence(module, argv, said, monkeypatch):
    monkeypatch.setattr("sys.argv", ["bench", *argv])
    with pytest.raises(BadRequest, match=said):
        module.parse()

"""Steps, turns and queues: limits, conservation of time, monotonicity."""

from __future__ import annotations

import math

import pytest

from analysis import gpus
from analysis.predict.models import resolve
from analysis.predict.request import Request
from analysis.throughput.calibration import FOLDER, Choice, load
from analysis.throughput.predict import Engine, Load, speed
from analysis.throughput.roofline import Limits, erlang_c, of_run, seconds, turn, waiting_turns
from analysis.throughput.work import work_of

WORK = work_of(resolve(Request(model="llama-3.1-8b")).config)
EXPERTS = work_of(resolve(Request(model="qwen3-30b-a3b")).config)
SHEET = gpus.find("h100").sheet
RATES = load(FOLDER / "public-qwen3-32b-vllm-0.12-h100.json")
PACE = RATES.seconds_per_unit(SHEET)
LIMITS = Limits(256, 8192, 400.0)


def ask(work=WORK, limits=LIMITS, sheet=SHEET, rates=RATES, **values):
    given = {"input_tokens": 1024, "output_tokens": 256, **values}
    return speed(Engine((work,), limits, limits, limits, sheet), Load(**given), Choice(rates, 0.0, ()))


def test_one_request_alone_takes_a_prefill_step_and_a_step_a_token():
    found = turn((WORK,), LIMITS, 1000, 100, 1.0)
    step = PACE[0] + WORK.weight_bytes(1) * PACE[1]
    token = step + WORK.kv_bytes(1050) * PACE[2] + PACE[6]
    first = step + WORK.prefill_flops(1000) * PACE[3] + 1000 * PACE[5] + PACE[6]
    assert found.steps == 100 and seconds(found.tpot, PACE) == pytest.approx(token)
    assert seconds(found.ttft, PACE) == pytest.approx(first)
    assert seconds(found.cycle, PACE) == pytest.approx(first + 99 * token)


@pytest.mark.parametrize("batch", [1, 2, 7.5, 32, 256])
@pytest.mark.parametrize(("prompt", "output"), [(32, 1), (32, 128), (6000, 4), (20000, 64)])
@pytest.mark.parametrize("one_by_one", [False, True])
def test_the_time_of_a_turn_is_that_of_its_parts(batch, prompt, output, one_by_one):
    found = turn((WORK,), LIMITS, prompt, output, batch, one_by_one=one_by_one)
    parts = seconds(found.ttft, PACE) + (output - 1) * (seconds(found.tpot, PACE) if found.tpot else 0.0)
    assert parts == pytest.approx(seconds(found.cycle, PACE)) and min(found.ttft) >= -1e-9
    # All the work is in it, and no step holds more tokens than the budget.
    assert found.cycle[5] == pytest.approx(batch * prompt)
    assert found.cycle[6] == pytest.approx(batch * output)
    assert found.steps >= batch * (prompt + output - 1) / 8192 - 1e-9
    for requests in (batch, 4 * batch):
        ttft, tpot = of_run(found, output, int(requests))
        rest = (output - 1) * seconds(tpot, PACE) if tpot else 0.0
        assert seconds(ttft, PACE) + rest == pytest.approx(seconds(found.cycle, PACE))


def test_a_burst_waits_for_the_prompts_before_it():
    small = Limits(64, 1100, 400.0)  # about one prompt a step
    found = turn((WORK,), small, 1024, 64, 16.0)
    assert seconds(found.burst, PACE) > 3 * seconds(found.ttft, PACE)
    alone = turn((WORK,), small, 1024, 64, 1.0)
    assert alone.burst == pytest.approx(alone.ttft)


@pytest.mark.parametrize(("limits", "cap", "why"), [
    (Limits(16, 2048, 400.0), 16, "max_num_seqs"), (Limits(256, 2048, 12.5), 12.5, "kv_capacity"),
])  # fmt: skip
def test_requests_in_service_are_capped(limits, cap, why):
    found = ask(limits=limits, concurrency=100)
    assert found.in_service == cap and found.limited_by == why and found.saturated
    assert (found.bound == "KV capacity") == (why == "kv_capacity")
    # Little's law over the whole system: everybody is waiting or served.
    whole = found.ttft.value + 255 * found.tpot.value
    assert whole * found.requests_per_s == pytest.approx(100, rel=1e-6)
    more = ask(limits=limits, concurrency=200)
    assert more.tokens_per_s.value == pytest.approx(found.tokens_per_s.value)
    assert more.ttft.value > found.ttft.value and more.tpot.value == found.tpot.value


@pytest.mark.parametrize("work", [WORK, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize("lengths", [(128, 32), (1024, 256), (4096, 8), (30000, 100)])
def test_more_requests_at_once_never_lower_the_throughput(work, lengths):
    last = 0.0
    for concurrency in range(1, 400):
        found = ask(work, concurrency=concurrency, input_tokens=lengths[0], output_tokens=lengths[1])
        assert found.tokens_per_s.value >= last * (1 - 1e-9), concurrency
        last = found.tokens_per_s.value


@pytest.mark.parametrize("load_", [{"concurrency": 1}, {"concurrency": 64}, {"concurrency": 500}, {"rate_per_s": 3.0}])
def test_more_bandwidth_is_never_slower(load_):
    found = [ask(sheet=gpus.find(name).sheet, **load_) for name in ("l4", "a100-40gb", "a100-80gb", "h200")]
    assert [one.tpot.value for one in found] == sorted((one.tpot.value for one in found), reverse=True)
    assert [one.tokens_per_s.value for one in found] == sorted(one.tokens_per_s.value for one in found)


def test_longer_contexts_are_never_faster():
    found = [ask(concurrency=32, input_tokens=tokens) for tokens in (16, 100, 1000, 5000, 8000, 8300, 20000, 100000)]
    assert [one.tpot.value for one in found] == sorted(one.tpot.value for one in found)
    assert [one.ttft.value for one in found] == sorted(one.ttft.value for one in found)
    assert [one.tokens_per_s.value for one in found] == sorted((o.tokens_per_s.value for o in found), reverse=True)


def test_an_open_loop_obeys_littles_law_until_it_saturates():
    most = ask(rate_per_s=1.0).most_requests_per_s
    for share in (0.01, 0.3, 0.8, 0.95):
        found = ask(rate_per_s=share * most)
        assert not found.saturated and found.tokens_per_s.value == pytest.approx(share * most * 256)
        # One request finds the others that Little's law makes of the time it takes.
        seen = min(found.in_service + 1, 256)
        service = seconds(turn((WORK,), LIMITS, 1024, 256, seen, one_by_one=True).cycle, PACE)
        assert found.in_service == pytest.approx(share * most * service, rel=1e-3)
    beyond = ask(rate_per_s=1.2 * most)
    assert beyond.saturated and beyond.ttft is None and "grow" in " ".join(beyond.warnings)
    assert beyond.tokens_per_s.value == pytest.approx(most * 256) and beyond.fields()["ttft_s"] is None


def test_a_rate_near_saturation_waits_longer():
    most = ask(rate_per_s=1.0).most_requests_per_s
    waits = [ask(rate_per_s=share * most).ttft.value for share in (0.1, 0.5, 0.9, 0.99)]
    assert waits == sorted(waits) and waits[-1] < math.inf


def test_erlang_and_the_queue_of_a_closed_loop():
    assert erlang_c(1, 0.5) == pytest.approx(0.5)
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert erlang_c(1000, 500.0) < 1e-9
    assert waiting_turns(16, 16) == 0 and waiting_turns(32, 16) == 1
    # Of a run that begins with all at once, the first wait for fewer.
    assert 0 < waiting_turns(32, 16, 32) < waiting_turns(32, 16, 320) < 1


def test_what_bounds_it_is_where_the_time_goes():
    assert ask(work_of(resolve(Request(model="qwen2.5-coder-32b")).config), concurrency=1).bound == "weights bandwidth"
    assert ask(concurrency=200, input_tokens=8000, output_tokens=2000).bound == "KV bandwidth"
    assert ask(concurrency=64, input_tokens=8000, output_tokens=2).bound == "compute"
    assert ask(concurrency=250, input_tokens=16, output_tokens=64).bound == "overhead"
    for found in (ask(concurrency=1), ask(rate_per_s=1.0)):
        assert sum(found.shares.values()) == pytest.approx(1.0)


def test_the_sheet_alone_is_the_upper_bound():
    for concurrency in (1, 8, 64, 256):
        found = ask(concurrency=concurrency)
        assert found.ideal_tokens_per_s > found.tokens_per_s.value
    # One token of one request reads all weights: 15 GB at 3.35 TB/s.
    alone = ask(concurrency=1, input_tokens=1, output_tokens=1000)
    assert alone.ideal_tokens_per_s == pytest.approx(3.35e12 / WORK.weight_bytes(1), rel=0.01)


def test_pipeline_ranks_share_the_batch_and_pass_a_step_on():
    config = resolve(Request(model="llama-3.1-8b")).config
    ranks = tuple(work_of(config, pipeline_parallel_size=2, pipeline_rank=rank) for rank in (0, 1))
    found = turn(ranks, LIMITS, 1024, 256, 32.0)
    assert found.cycle[5] == pytest.approx(32 * 1024)
    assert found.cycle[0] > turn((WORK,), LIMITS, 1024, 256, 32.0).cycle[0]
    alone = turn(ranks, LIMITS, 1024, 256, 1.0)  # one request passes every rank whole
    assert alone.cycle[3] == pytest.approx(turn((WORK,), LIMITS, 1024, 256, 1.0).cycle[3], rel=1e-3)

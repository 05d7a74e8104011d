"""Which cores are the client's, and which the engine's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bench.load.affinity import (
    as_ranges,
    bound_cores,
    choose_placement,
    engine_kept_to,
    from_ranges,
    on_cores,
    plan_cores,
)
from bench.load.run import run_load as run_one_load
from bench.load.spec import LoadSpec
from tests.fakes.sim_server import SimServer


@pytest.mark.parametrize(
    ("workers", "cores", "client", "engine"),
    [
        (1, range(4), ((3,),), (0, 1, 2)),
        (1, range(16), ((15,),), tuple(range(15))),
        (2, range(8), ((6,), (7,)), tuple(range(6))),
        (4, range(8), ((6,), (7,), (6,), (7,)), tuple(range(6))),  # never more than a quarter
        (2, [1, 3, 5, 7, 9, 11, 13, 15], ((13,), (15,)), (1, 3, 5, 7, 9, 11)),
    ],
)
def test_the_client_takes_from_the_top(workers, cores, client, engine):
    placement = plan_cores(workers, cores)
    assert (placement.client, placement.engine) == (client, engine)
    assert not set(engine) & {core for mine in client for core in mine}
    assert as_ranges(engine) in placement.text


@pytest.mark.parametrize("cores", [1, 2, 3])
def test_too_few_cores_are_not_divided_and_that_is_said(cores):
    placement = plan_cores(2, range(cores))
    assert placement.client == placement.engine == () and placement.of_worker(1) == ()
    assert placement.text == f"not pinned: {cores} cores are too few to divide"


def test_threads_of_one_core_stay_together():
    siblings = [[0, 4], [1, 5], [2, 6], [3, 7]]
    placement = plan_cores(2, range(8), siblings)
    assert placement.client == ((3, 7), (3, 7)) and placement.engine == (0, 1, 2, 4, 5, 6)
    assert plan_cores(1, [0, 1, 2, 3, 4, 5], siblings).client == ((3,),)  # the sibling is not ours to use


def test_cores_that_the_engine_has_bound_are_left_to_it():
    assert plan_cores(1, range(8), bound=[7, 6]).client == ((5,),)
    placement = plan_cores(1, range(8), bound=range(8))
    assert placement.client == () and "every core" in placement.text


@pytest.mark.parametrize("text", ["0", "0-3", "0-2,7", "1,3,5-6"])
def test_ranges_read_and_written(text):
    assert as_ranges(from_ranges(text)) == text


def test_an_engine_is_moved_and_given_back_its_cores():
    everywhere = os.sched_getaffinity(0)
    if len(everywhere) < 2:
        pytest.skip("one core")
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        one = {min(everywhere)}
        with engine_kept_to(tuple(one), [process.pid, 2**22 - 1]) as moved:
            assert moved >= 1 and os.sched_getaffinity(process.pid) == one
            assert bound_cores([process.pid], sorted(everywhere)) == one
        assert os.sched_getaffinity(process.pid) == everywhere
        assert bound_cores([process.pid], sorted(everywhere)) == set()
        with engine_kept_to((), [process.pid]) as moved:
            assert moved == 0
    finally:
        process.kill()
        process.communicate()


def test_a_thread_is_pinned_only_meanwhile():
    before = os.sched_getaffinity(0)
    with on_cores([max(before)]):
        assert os.sched_getaffinity(0) == {max(before)}
    with on_cores(()):
        assert os.sched_getaffinity(0) == before
    assert os.sched_getaffinity(0) == before


def test_this_machine_has_a_placement():
    placement = choose_placement(1)
    assert placement.text and bool(placement.client) == (len(os.sched_getaffinity(0)) >= 4)


def test_a_single_client_says_where_it_ran_too(run_load):
    with SimServer(ttft_s=0.01, itl_s=0.001) as sim:
        spec = LoadSpec(concurrency=1, num_requests=2, input_tokens=8, output_tokens=2)
        before = os.sched_getaffinity(0)
        known = run_one_load(sim.base_url, "sim", spec, 2048, engine_pids=[sim.pid])
        assert os.sched_getaffinity(0) == before == os.sched_getaffinity(sim.pid)
        assert known.client.placement == choose_placement(1, [sim.pid]).text
        assert "not known" in run_load(sim.base_url).client.placement

"""The engine's counters around a run, and its gauges during it, polled without touching the run."""

from __future__ import annotations

import http.server
import threading
import time
from contextlib import contextmanager

import pytest

from bench.load.engine_watch import FIRST_INTERVAL_S, EngineWatch, GaugeReadings
from bench.load.wire import Target


class Engine:
    """A metrics page over real HTTP. `filtered`: it honours ?name[]= as vLLM's mounted page does."""

    def __init__(self, *, filtered: bool = True, status: int = 200, filler: int = 40_000) -> None:
        self.usage, self.running, self.waiting, self.tokens = 0.0, 0, 0, 0
        self.filtered, self.status, self.filler = filtered, status, filler
        self.paths: list[str] = []

    def page(self, path: str) -> bytes:
        gauges = (
            f'vllm:kv_cache_usage_perc{{engine="0"}} {self.usage}\nvllm:num_requests_running{{engine="0"}} '
            f'{self.running}.0\nvllm:num_requests_waiting{{engine="0"}} {self.waiting}.0\n'
        )
        if self.filtered and "?" in path:
            return gauges.encode()
        more = f'vllm:generation_tokens_total{{engine="0"}} {self.tokens}.0\n# {"x" * self.filler}\n'
        return (gauges + more).encode()


@contextmanager
def served(engine: Engine):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            engine.paths.append(self.path)
            page = engine.page(self.path)
            self.send_response(engine.status)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield Target("127.0.0.1", server.server_port)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _watched(engine: Engine, *states, hold_s: float = 0.2) -> GaugeReadings:
    with served(engine) as target, EngineWatch(target) as watch:
        watch.start()
        for state in states:
            engine.usage, engine.running, engine.waiting = state
            time.sleep(hold_s)
        return watch.stop()


def test_a_peak_that_lasts_is_seen_even_in_a_short_load():
    engine = Engine()
    seen = _watched(engine, (0.0, 0, 0), (0.5, 4, 2), (0.25, 2, 0), (0.0, 0, 0))
    assert seen.kv_cache_usage_max_ratio == 0.5
    assert (seen.requests_running_max, seen.requests_waiting_max) == (4, 2)
    assert 2 < seen.requests_running_mean < 4, "readings of the idle engine do not count"
    assert seen.readings >= 8 and 0 < seen.poll_hz <= 1 / FIRST_INTERVAL_S
    assert all("?name" in path for path in engine.paths), "only the small page is read while requests are timed"


def test_a_use_that_no_reading_fell_into_is_unknown_not_zero():
    seen = _watched(Engine(), (0.0, 0, 0))
    assert seen.readings > 1 and seen.kv_cache_usage_max_ratio is None and seen.requests_running_mean is None


def test_a_server_that_gives_the_whole_page_is_asked_seldom():
    engine = Engine(filtered=False)
    engine.usage = 0.5
    seen = _watched(engine, (0.5, 1, 0), hold_s=0.5)
    assert seen.kv_cache_usage_max_ratio == 0.5 and 1 <= seen.readings <= 2


def test_no_page_costs_the_numbers_and_nothing_else():
    engine = Engine(status=404)
    assert _watched(engine, (0.5, 1, 0)) == GaugeReadings(cpu_s=pytest.approx(0, abs=0.2))
    assert len(engine.paths) == 2, "the small page, the whole page, and no more"
    gone = EngineWatch(Target("127.0.0.1", 9))
    gone.start()
    assert gone.snapshot() is None and gone.settled_snapshot() is None
    assert gone.stop().readings == 0
    assert gone.stop().readings == 0


def test_the_last_tokens_are_waited_for():
    engine = Engine(filler=0)
    engine.running, engine.tokens = 1, 90

    def finish():
        time.sleep(0.2)
        engine.tokens, engine.running = 100, 0

    with served(engine) as target:
        threading.Thread(target=finish).start()
        assert EngineWatch(target).settled_snapshot().generation_tokens == 100
        engine.running = 1
        began = time.monotonic()
        assert EngineWatch(target).settled_snapshot(alive=lambda: False).generation_tokens == 100
        assert time.monotonic() - began < 1, "an engine that has died is not waited for"


def test_a_page_without_gauges_is_not_asked_again():
    engine = Engine()
    engine.page = lambda path: b"vllm:num_preemptions_total 0\n"
    assert _watched(engine, (0.0, 0, 0)).readings == 0
    assert len(engine.paths) == 2

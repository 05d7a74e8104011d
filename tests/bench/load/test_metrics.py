"""Reading vLLM's metrics page, in the spellings of several versions."""

from __future__ import annotations

import http.server
import threading

import pytest

from bench.errors import BenchError
from bench.load.metrics import (
    Gauges,
    MetricsDelta,
    MetricsSnapshot,
    delta,
    parse_gauges,
    parse_metrics,
    parse_samples,
    snapshot,
)

PAGE = """\
# HELP vllm:num_preemptions_total Cumulative number of preemption from the engine.
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="m"} 3.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.79e+09
vllm:num_requests_running{engine="0",model_name="m"} 5.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 4096.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 128.0
vllm:prompt_tokens_total{engine="0",model_name="m"} 5000.0
vllm:prompt_tokens_by_source_total{engine="0",source="local_compute"} 4000.0
vllm:prompt_tokens_cached_total{engine="0"} 128.0
vllm:generation_tokens_total{engine="0",model_name="m"} 1.2e+03
vllm:request_success_total{engine="0",finished_reason="length"} 9.0
vllm:request_success_total{engine="0",finished_reason="stop"} 1.0
vllm:request_queue_time_seconds_bucket{engine="0",le="0.3"} 4.0
vllm:request_queue_time_seconds_count{engine="0",model_name="m"} 10.0
vllm:request_queue_time_seconds_sum{engine="0",model_name="m"} 0.5
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",note="a \\"b\\", {c} \\\\ d"} 1.0
python_gc_objects_collected_total{generation="0"} 42.0
"""


def test_a_current_page():
    s = parse_metrics(PAGE)
    assert s.num_preemptions == 3
    assert (s.prefix_cache_queries_tokens, s.prefix_cache_hits_tokens) == (4096, 128)
    assert (s.prompt_tokens, s.generation_tokens) == (5000, 1200)  # not the tokens by source, nor the cached
    assert (s.num_requests_running, s.num_requests_waiting) == (5, 2)
    assert s.kv_cache_usage_ratio == 0.25
    assert s.requests_succeeded == 10
    assert (s.request_queue_time_sum_s, s.request_queue_time_count) == (0.5, 10)
    assert s.cache_config == {
        "block_size": "16",
        "cache_dtype": "auto",
        "engine": "0",
        "note": 'a "b", {c} \\ d',
    }


def test_older_names_and_missing_ones():
    s = parse_metrics(
        "vllm:gpu_cache_usage_perc 0.5\nvllm:gpu_prefix_cache_hits_total 7\nvllm:num_preemptions 1 1700000\n"
    )
    assert (s.kv_cache_usage_ratio, s.prefix_cache_hits_tokens, s.num_preemptions) == (0.5, 7, 1)
    assert s.prompt_tokens is None and s.request_queue_time_sum_s is None and s.cache_config == {}
    assert parse_metrics("") == MetricsSnapshot()


def test_replicas_add_up_and_the_fullest_cache_counts():
    s = parse_metrics(
        'vllm:prompt_tokens_total{engine="0"} 3\nvllm:prompt_tokens_total{engine="1"} 4\n'
        'vllm:kv_cache_usage_perc{engine="0"} 0.9\nvllm:kv_cache_usage_perc{engine="1"} 0.1\n'
    )
    assert s.prompt_tokens == 7 and s.kv_cache_usage_ratio == 0.9


def test_lines_that_are_no_samples_are_skipped():
    text = 'a 1\n\n# a 2\nb{x="1"} NaN\nc{x="unclosed} 3\nd one\n!! 4\ne +Inf\n'
    names = [name for name, _, _ in parse_samples(text)]
    assert names[0] == "a" and "b" in names and "e" in names and "d" not in names and "!!" not in names


def test_quick_gauges_equal_the_whole_page():
    whole = parse_metrics(PAGE)
    found = parse_gauges(PAGE.encode())
    assert found == Gauges(0.25, 5, 2)
    assert found.kv_cache_usage_ratio == whole.kv_cache_usage_ratio
    assert found.num_requests_running == whole.num_requests_running
    two = b'x 1\nvllm:gpu_cache_usage_perc{a="b"} 0.125\nvllm:kv_cache_usage_perc 0.5\n'
    replicas = b'vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_running{engine="1"} 3.0\n'
    assert parse_gauges(two + replicas) == Gauges(0.5, 5, None)
    assert parse_gauges(b"nothing") == Gauges()
    assert parse_gauges(b"vllm:kv_cache_usage_perc wrong\nvllm:kv_cache_usage_perc NaN\n") == Gauges()


def test_delta():
    before = parse_metrics(PAGE)
    after = parse_metrics(
        PAGE.replace("5000.0", "6000.0")
        .replace("} 0.5", "} 2.5")
        .replace('count{engine="0",model_name="m"} 10', 'count{engine="0",model_name="m"} 14')
    )
    d = delta(before, after, 0.75)
    assert d.prompt_tokens == 1000 and d.num_preemptions == 0 and d.kv_cache_usage_max_ratio == 0.75
    assert d.request_queue_time_mean_s == pytest.approx(2.0 / 4)
    assert MetricsDelta().request_queue_time_mean_s is None
    assert MetricsDelta(generation_tokens=12.0).lost_tokens(10) == 2
    assert MetricsDelta().lost_tokens(10) is None


def test_delta_of_missing_or_fallen_counters_is_none():
    before, after = MetricsSnapshot(prompt_tokens=10, num_preemptions=1), MetricsSnapshot(prompt_tokens=4)
    assert delta(before, after).prompt_tokens is None
    assert delta(before, after).num_preemptions is None


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        found = self.path == "/metrics"
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(PAGE.encode() if found else b"")

    def log_message(self, *args):
        pass


def test_snapshot_over_http():
    server = http.server.HTTPServer(("127.0.0.1", 0), _Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    base_url = f"http://127.0.0.1:{server.server_port}"
    try:
        assert snapshot(base_url + "/v1") == parse_metrics(PAGE)
        with pytest.raises(BenchError, match="HTTP 404"):
            snapshot(base_url + "/elsewhere")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    with pytest.raises(BenchError, match="No metrics from"):
        snapshot(base_url)

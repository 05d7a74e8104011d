"""The closing table: whole on any width, with flags, and with a column for whatever tells two rows apart."""

import io

from rich.console import Console

from bench.record.tables import table_schema
from bench.summary import best_speed, figures, print_summary


def _row(run_id, **changes):
    row = dict.fromkeys(table_schema("engines").names)
    return row | {
        "run_id": run_id, "model": "tiny-llama", "quantization": "fp32", "status": "ok", "flags": [], "repeat": 0,
        "device_kind": "cpu", "device_name": "some CPU", "started_unix_s": 1.0, "kv_pool_mode": "fixed",
        "launcher": "warm",
        "weights_bytes": 50 * 2**20, "kv_cache_bytes": 128 * 2**20, "tree_pss_peak_bytes": 2**30, "startup_s": 3.0,
        "effective_max_num_seqs": 16, "effective_max_num_batched_tokens": 1024, "kv_cache_tokens": 16256,
    } | changes  # fmt: skip


def _load(**changes):
    row = dict.fromkeys(table_schema("workloads").names)
    return row | {
        "run_id": "a", "workload": "w", "pattern": "closed_loop", "flags": [], "output_tokens_per_s": 217.4,
        "ttft_p50_s": 0.675, "tpot_p50_s": 0.0164,
    } | changes  # fmt: skip


def _trial(number, value, met, **changes):
    return _load(
        workload="knee", pattern="poisson", rate_per_s=value, knee_trial=number, knee_axis="rate", knee_value=value,
        knee_met=met, knee_answer=met, knee_slo_json='{"ttft_p99_s": 0.5}', knee_outcome="bracketed",
        knee_highest_met=8.0, knee_lowest_broken=9.0, knee_trials=2, output_tokens_per_s=value * 10,
    ) | changes  # fmt: skip


def _shown(rows, width, *workloads):
    screen = io.StringIO()
    print_summary(Console(file=screen, width=width), rows, list(workloads) or [_load()], "results/x")
    return screen.getvalue()


def test_a_wide_terminal_shows_every_figure_with_one_unit_a_column():
    shown = _shown([_row("a"), _row("b", tree_pss_peak_bytes=3 * 2**30)], 200)
    for part in ("weights, MiB", "peak, GiB", "50.0", "1.00", "3.00", "217", "675 ms", "16.4 ms", "16,256", "1,024"):
        assert part in shown
    assert "left out" not in shown and "pool" not in shown.splitlines()[0].replace("KV pool", "")


def test_a_narrow_terminal_leaves_columns_out_and_cuts_none():
    shown = _shown([_row("a")], 90)
    assert "left out for want of width:" in shown and "…" not in shown
    for part in ("tiny-llama", "50.0", "217", "ok", "1,024"):
        assert part in shown


def test_flags_failures_and_what_differs_are_shown():
    shown = _shown([
        _row("a", flags=["client_starved"], repeat=1),
        _row("b", kv_pool_mode="auto", launcher="spawn"),
        _row("c", status="failed", failure_cause="out_of_memory", failure_phase="load", kv_cache_bytes=None),
    ], 200)  # fmt: skip
    for part in ("[client_starved]", "restart", "spawn", "auto", "failed: out_of_memory (load)", "2 ok, 1 failed"):
        assert part in shown


def test_a_client_bound_figure_is_marked_and_explained():
    shown = _shown([_row("a")], 200, _load(client_bound=True))
    assert "217*" in shown and "*: client-bound" in shown
    assert "217*" not in _shown([_row("a")], 200)
    assert "217 tokens/s (client-bound)" in figures(_row("a"), [_load(client_bound=True)])


def test_open_loop_rows_show_the_rate_asked_and_served_and_what_to_doubt():
    row = _load(
        workload="poisson", pattern="poisson", rate_per_s=12.0, served_requests_per_s=9.5, requests_per_s=7.0,
        mean_in_flight=31.0, ttft_p50_s=0.1, ttft_p99_s=1.25, steady_ttft_p99_s=0.75, goodput_share=0.625,
        flags=["not_steady"], failed=2, not_sent=0,
    )  # fmt: skip
    shown = _shown([_row("a")], 200, row)
    for part in ("asked/s", "served/s", "poisson", "12", "9.5", "31", "750 ms", "62%", "not steady, 2 requests failed"):
        assert part in shown
    assert "1,250 ms" not in shown, "the steady state's latency, where there is one"
    assert "asked/s" not in _shown([_row("a")], 200), "no open loop, no table of it"


def test_a_knee_is_one_line_and_its_broken_trials_count_for_no_speed():
    trials = [_trial(1, 8.0, True), _trial(2, 9.0, False)]
    assert best_speed(trials) == 80.0
    shown = _shown([_row("a")], 200, *trials)
    line = "knee, ttft_p99_s <= 0.5: rate 8 requests/s holds, 9 does not (2 trials)"
    assert f"knee of tiny-llama fp32: {line}" in shown.replace("\n", " ")
    assert shown.count("9.0") == 0, "trials are not listed"

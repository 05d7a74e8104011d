"""The closing table: whole on any width, with flags, and with a column for whatever tells two rows apart."""

import io

from rich.console import Console

from bench.record.tables import table_schema
from bench.summary import print_summary


def _row(run_id, **changes):
    row = dict.fromkeys(table_schema("engines").names)
    return row | {
        "run_id": run_id, "model": "tiny-llama", "quantization": "fp32", "status": "ok", "flags": [], "repeat": 0,
        "device_kind": "cpu", "device_name": "some CPU", "started_unix_s": 1.0, "kv_pool_mode": "fixed",
        "launcher": "warm",
        "weights_bytes": 50 * 2**20, "kv_cache_bytes": 128 * 2**20, "tree_pss_peak_bytes": 2**30, "startup_s": 3.0,
        "effective_max_num_seqs": 16, "effective_max_num_batched_tokens": 1024, "kv_cache_tokens": 16256,
    } | changes  # fmt: skip


def _shown(rows, width):
    screen = io.StringIO()
    workload = {"run_id": "a", "output_tokens_per_s": 217.4, "ttft_p50_s": 0.675, "tpot_p50_s": 0.0164}
    print_summary(Console(file=screen, width=width), rows, [workload], "results/x")
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

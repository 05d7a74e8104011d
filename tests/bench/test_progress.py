"""What a person reads while a sweep runs: plain lines where nobody watches, a table of the same on a terminal."""

import io

from rich.console import Console

from bench.progress import Progress, duration, gib


def _finish_one(progress):
    view = progress.start("tiny fp32 T=256")
    progress.phase("load:x")
    view.detail, view.tokens_per_s, view.read_memory = "3/8", 123.4, lambda: 3 * 2**30
    return view


def test_plain_lines_say_number_status_figures_and_time_left(capsys):
    progress = Progress(2, 0, "cpu -> cpu", Console(file=io.StringIO(), force_terminal=False))
    _finish_one(progress)
    progress.finish("ok", "weights 1 MiB", 2**30, 100.0)
    line = capsys.readouterr().err
    assert line.startswith("[1/2] tiny fp32 T=256: ok, weights 1 MiB (")


def test_the_live_table_shows_phase_memory_speed_and_finished_points():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=140)
    progress = Progress(2, 5, "cpu -> cpu", console)
    _finish_one(progress)
    console.print(progress._render())
    shown = screen.getvalue()
    for part in ("0 of 2 points, 5 recorded before", "load:x 3/8", "3.00 GiB", "123"):
        assert part in shown
    progress.finish("failed", "out_of_memory: all gone", 2**20, None)
    console.print(progress._render())
    progress.close()
    assert "1 of 2 points" in screen.getvalue() and "all gone" in screen.getvalue()


def test_units_read_well():
    assert (gib(3 * 2**30), gib(5 * 2**20), gib(None)) == ("3.00 GiB", "5.0 MiB", "-")
    assert (duration(75), duration(3671)) == ("1:15", "1:01:11")

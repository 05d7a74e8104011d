"""One metric over many sets: order, change points, noise, and what cannot be told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ruptures")

from analysis.cli import main  # noqa: E402
from analysis.history.render import page, sparkline  # noqa: E402
from analysis.history.series import History, history  # noqa: E402
from tests.analysis.compare.make_sets import noisy, write_set  # noqa: E402

VERSIONS = ["0.8.5", "0.9.0", "0.10.1", "0.11.0", "0.12.0", "0.13.0"]


def sets(root: Path, levels: list[float], seed: int = 0, repeats: int = 4, noise: float = 0.01) -> list[Path]:
    out = []
    for at, level in enumerate(levels):
        rng = np.random.default_rng([seed, at])
        version = VERSIONS[at] if at < len(VERSIONS) else f"0.{at + 8}.0"

        def measured(c: int, r: int, rng: np.random.Generator = rng, level: float = level) -> dict:
            return {"output_tokens_per_s": 1000 * level * (1 + noise * rng.standard_normal())}

        out.append(
            write_set(
                root / f"s{at}",
                3,
                repeats,
                measured,
                lambda c, r, v=version, at=at: {"vllm_version": v, "started_unix_s": 1e9 + at * 1e6 + r},
            )
        )
    return out


def test_names_the_version_that_changed_it_whatever_the_order_given(tmp_path: Path) -> None:
    made = sets(tmp_path, [1, 1, 1, 0.95, 0.95, 0.95])
    found = history(made[::-1], "throughput")
    assert [point.version for point in found.points] == VERSIONS and found.order == "version"
    (change,) = found.changes
    assert (found.points[change.at].label, round(change.per_cent)) == ("s3", -5)
    assert found.shared_cells == 3 and "between restarts" in found.noise_source


def test_a_steady_history_is_seldom_split(tmp_path: Path) -> None:
    split = sum(bool(history(sets(tmp_path / str(seed), [1] * 6, seed), "throughput").changes) for seed in range(40))
    assert split <= 5


def test_without_restarts_few_sets_decide_nothing_and_many_do(tmp_path: Path) -> None:
    few = history(sets(tmp_path / "few", [1, 1, 0.5], repeats=1), "throughput")
    assert not few.changes and any("repeats=3" in note for note in few.notes)
    many = history(sets(tmp_path / "many", [1] * 5 + [0.8] * 5, repeats=1), "throughput")
    assert [change.at for change in many.changes] == [5]


def test_what_has_no_noise_changes_exactly(tmp_path: Path) -> None:
    found = history(sets(tmp_path, [1, 1, 1.001, 1.001], noise=0.0), "throughput")
    assert [change.at for change in found.changes] == [2]


def told(found: History) -> str:
    return " ".join(page(found).split())


def test_a_set_that_failed_is_named_and_ends_no_history(tmp_path: Path) -> None:
    made = sets(tmp_path, [1, 1, 1, 0.95, 0.95])
    failed = write_set(tmp_path / "failed", 3, 2, of_engine=lambda c, r: {"status": "failed", "vllm_version": "0.10.9"})
    found = history([*made, failed], "throughput")
    assert [point.label for point in found.points] == ["s0", "s1", "s2", "failed", "s3", "s4"]
    (change,) = found.changes
    assert (change.last, change.at, found.shared_cells, found.total_cells) == (2, 4, 3, 3)
    text = told(found)
    assert "failed has no value of throughput (none of its 6 engine starts succeeded): it is left out" in text
    assert "over the 3 of 3 cells that all 5 sets with a value have" in text and "0.10.1 -> 0.11.0" in text
    first = history([failed, *made], "throughput", order="given")
    assert [change.at for change in first.changes] == [4] and "-5." in told(first)


def test_a_set_with_fewer_cells_is_named(tmp_path: Path) -> None:
    made = sets(tmp_path, [1, 1, 1, 1])
    partly = write_set(tmp_path / "part", 2, 3, noisy(9), lambda c, r: {"vllm_version": "0.12.0"})
    found = history([*made, partly], "throughput")
    assert "2 of 3 cells are shared by the 5 sets that have a value: part lacks 1" in found.warnings
    assert not [one for one in history(made, "throughput").warnings if "shared" in one]


def test_without_shared_cells_nothing_was_tested_together(tmp_path: Path) -> None:
    made = [
        write_set(
            tmp_path / name, 1, 3, noisy(at), lambda c, r, name=name: {"model": name, "vllm_version": f"0.{name}"}
        )
        for at, name in enumerate("1234")
    ]
    text = told(history(made, "throughput"))
    assert "nothing was tested over the cells together: none of the 4 is one that all sets have" in text
    assert "no single cell was tested either" in text and "no step stands out" not in text
    assert "0 of 4 cells are shared by the 4 sets that have a value" in text


def test_too_few_measured_sets_say_so(tmp_path: Path) -> None:
    made = sets(tmp_path, [1, 0.5])
    failed = write_set(tmp_path / "failed", 3, 2, of_engine=lambda c, r: {"status": "failed", "vllm_version": "0.12"})
    found = history([*made, failed], "throughput")
    assert not found.changes and "2 sets with values are too few" in told(found)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = [str(one) for one in sets(tmp_path, [1, 1, 0.9])]
    assert main(["history", "--metric", "throughput", *made]) == 0
    assert "0.9.0 -> 0.10.1" in capsys.readouterr().out
    assert main(["history", "--metric", "throughput", "--format", "json", *made]) == 0
    assert json.loads(capsys.readouterr().out)["changes"][0]["at"] == 2
    assert main(["history", "--metric", "nonsense", *made]) == 2
    assert main(["history", "--metric", "energy_per_token", *made]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_sparkline() -> None:
    assert sparkline([1.0, None, 3.0, 2.0]) == "▁ █▅" and sparkline([]) == ""

"""What a grid can identify: both sides of the kink, pairs, models, and points to add."""

from __future__ import annotations

import json
from collections.abc import Iterable

import made_up_starts as made_up
import pytest

pytest.importorskip("numpy")

from analysis.fit import design_cli  # noqa: E402
from analysis.fit.design import Point, check, variance_inflation  # noqa: E402


def grid(models: Iterable[str] = tuple(made_up.MODELS), settings: Iterable[tuple[int, int]] = ()) -> list[Point]:
    made = []
    for model in models:
        for seqs, tokens in settings or ((1024, 2048), (8, 2048), (8, 16384), (256, 2048), (1024, 8192)):
            for pool in ("auto", "fixed"):
                made.append(Point(model, made_up.features(model, seqs, tokens), pool))
        made.append(Point(model, made_up.features(model, 8, 2048, eager=True), "auto"))
    return made


def by_subject(points: list[Point]) -> dict:
    return {f"{one.term}: {one.subject}": one for one in check(points)}


def test_a_good_grid_is_called_good() -> None:
    bad = [one for one in check(grid()) if not one.identified]
    assert bad == []


def test_one_side_of_the_kink_is_missed() -> None:
    few = by_subject(grid(settings=((4, 8192), (8, 16384))))
    sampler = few["activation: branch 1 of 2"]
    assert not sampler.identified and "sampler decides" in sampler.missing
    graphs = [point for point in grid(settings=((2048, 2048), (1024, 1024))) if not point.features.enforce_eager]
    many = by_subject([point for point in graphs if point.model in ("b", "c", "e")])
    mlp = many["activation: branch 2 of 2"]
    assert not mlp.identified and "MLP decides" in mlp.missing


def test_drivers_that_move_together_are_named() -> None:
    together = grid(models=("b",), settings=((1024, 1024), (2048, 2048)))
    found = by_subject(together)
    hidden = found["activation: branch 1 of 2: hidden_bytes"]
    assert not hidden.identified and "moves with logits" in hidden.sentence and "infinite" in hidden.sentence


def test_what_only_models_vary_is_said() -> None:
    found = by_subject(grid(settings=((1024, 2048),)))["activation: branch 1 of 2: logits"]
    assert found.identified and "only models vary it" in found.sentence and "max_num_seqs" in found.missing


def test_pairs_and_models_are_counted() -> None:
    alone = [point for point in grid(models=("a", "b")) if point.pool == "auto" and not point.features.enforce_eager]
    found = by_subject(alone)
    assert not found["cuda_graph: eager against graphs"].identified
    assert not found["runtime: auto against fixed pool"].identified
    assert not found["grid: models"].identified and "2 more models" in found["grid: models"].missing


def test_terms_that_no_row_measured() -> None:
    fixed = [Point(p.model, p.features, "fixed", measured=frozenset({"context"})) for p in grid()]
    found = by_subject(fixed)
    assert not found["activation: rows"].identified and "auto-sized pool" in found["activation: rows"].missing


def test_an_empty_or_mixed_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="no points"):
        check([])
    mixed = [*grid(), Point("a", made_up.features("a"), "fixed", on_cpu=True)]
    with pytest.raises(ValueError, match="mixes CPU and CUDA"):
        check(mixed)


def test_variance_inflation() -> None:
    found = variance_inflation({"x": [1.0, 2.0, 3.0], "twice": [2.0, 4.0, 6.0], "other": [1.0, -2.0, 1.0]})
    assert found["x"] == found["twice"] == float("inf") and found["other"] == pytest.approx(1.0)
    assert variance_inflation({"x": [1.0, 2.0]}) == {"x": 1.0}


@pytest.mark.parametrize("sweep", ["cpu", "cpu-smoke", "gpu", "gpu-memory", "gpu-smoke"])
def test_the_named_sweeps_can_be_checked_before_they_run(sweep: str, capsys: pytest.CaptureFixture) -> None:
    assert design_cli.main([sweep, "--json"]) in (0, 1)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {one["term"] for one in told} >= {"grid", "context", "runtime"}


def test_the_memory_sweep_identifies_every_term(capsys: pytest.CaptureFixture) -> None:
    assert design_cli.main(["gpu-memory"]) == 0, capsys.readouterr().out


def test_what_is_neither_a_set_nor_a_sweep(capsys: pytest.CaptureFixture) -> None:
    assert design_cli.main(["nonsense"]) == 2
    assert "neither a result set nor a sweep; sweeps are cpu" in capsys.readouterr().err

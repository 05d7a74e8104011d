"""Fits of starts whose terms are known: coefficients found, outliers damped, errors of unseen models told truly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import made_up_starts as made_up
import pytest

pytest.importorskip("scipy")

from analysis.calibration import from_document, load  # noqa: E402
from analysis.fit import build  # noqa: E402
from analysis.fit.holdout import half_width, jackknife, leave_out  # noqa: E402
from analysis.fit.solve import fit  # noqa: E402
from analysis.fit.starts import GIB, ROUNDING_BYTES, Origin  # noqa: E402
from analysis.fit.terms import CPU_FORMULAS, GPU_FORMULAS  # noqa: E402

FORMULAS = {formula.term: formula for formula in GPU_FORMULAS}
ORIGIN = Origin("0.32.0", "v2", "h100-80gb")


@pytest.fixture(scope="module")
def fits() -> dict:
    return build.fit_all(made_up.starts(), on_cpu=False)


def test_coefficients_are_found_on_both_sides_of_the_kink(fits: dict) -> None:
    sampler, mlp = fits["activation"][0].fitted.values
    assert sampler[1] == pytest.approx(9.0, rel=0.01) and mlp[1] == pytest.approx(5.0, rel=0.02)
    captured, layers = fits["cuda_graph"][0].fitted.values[0]
    assert captured == pytest.approx(0.25 * GIB, rel=0.05) and layers == pytest.approx(0.3e-3 * GIB, rel=0.02)
    identified = fits["activation"][0].fitted.identified
    assert identified[0][:2] == (None, True) and identified[1] == (None, True, None)


def test_wild_rows_and_a_model_measured_often_do_not_decide() -> None:
    rows = made_up.starts()
    wild = [replace(row, measured={**row.measured, "activation": 40 * GIB}) for row in rows[:2]]
    often = [replace(rows[7], row_id=f"again-{i}") for i in range(60)]
    values = fit(FORMULAS["activation"], [*wild, *rows[2:], *often]).values
    assert values[0][1] == pytest.approx(9.0, rel=0.03) and values[1][1] == pytest.approx(5.0, rel=0.05)


def test_coefficients_that_no_row_tells_apart_keep_their_start_and_say_so() -> None:
    rows = [row for row in made_up.starts() if row.setting.startswith("S8 T16384")]
    fitted = fit(FORMULAS["activation"], rows)
    assert fitted.identified[0] == (None, False, False, None) and fitted.identified[1][1] is True
    assert fitted.values[0][1] == pytest.approx(12.0, rel=0.2)  # the prior's; the rows lie beyond the kink


def test_tensor_parallel_sizes_are_fitted_apart_where_the_term_asks() -> None:
    rows = made_up.starts()
    two = []
    for row in rows:
        features = replace(row.features, tensor_parallel_size=2)
        two.append(replace(row, row_id=f"{row.row_id}-2", features=features, measured=made_up.true_terms(features)))
    groups = build.fit_term(FORMULAS["non_torch"], [*rows, *two])
    assert [group.tensor_parallel_size for group in groups] == [1, 2]
    assert groups[1].fitted.estimate(two[0]) == pytest.approx(2.1 * GIB, rel=0.01)


def test_unseen_models_are_predicted_and_their_error_is_stated(fits: dict) -> None:
    for term in ("activation", "cuda_graph", "context"):
        group = fits[term][0]
        assert group.model_errors.groups == 6 and group.model_errors.rows == 30
        assert 0 < group.model_errors.mean_gib < 0.01, term
        assert group.setting_errors.groups == (5 if term == "activation" else group.setting_errors.groups)
        assert group.model_errors.worst_gib >= group.model_errors.mean_gib


def test_a_left_out_model_had_no_say() -> None:
    rows = made_up.starts()
    odd = [replace(row, measured={**row.measured, "context": 9 * GIB}) if row.model == "a" else row for row in rows]
    held = leave_out(FORMULAS["context"], odd, build.model_of)
    for row, estimate in zip(held.starts, held.estimates, strict=True):
        if row.model == "a":
            assert estimate == pytest.approx(0.5 * GIB, rel=0.01)


def test_ninety_per_cent_intervals_cover_about_that_much_of_new_models() -> None:
    """A model is as wrong as its own draw; the interval from nineteen models must hold for new ones."""
    import random

    chance = random.Random(3)
    covered = total = 0
    for _ in range(200):
        errors = [chance.gauss(0, 1e9) for _ in range(19)]
        width = half_width(errors, [str(i) for i in range(19)])
        covered += sum(abs(chance.gauss(0, 1e9)) <= width for _ in range(10))
        total += 10
    assert 0.85 <= covered / total <= 0.95


def test_half_widths_count_models_not_rows_and_never_fall_below_the_rounding() -> None:
    assert half_width([1e9] * 50 + [0.0] * 20, ["a"] * 50 + [str(i) for i in range(20)]) == ROUNDING_BYTES
    assert half_width([0.0], ["a"]) == ROUNDING_BYTES
    assert half_width([-3e9, 1e9], ["a", "b"]) == 3e9


def test_jackknife_needs_three_models() -> None:
    assert jackknife([1.0, 2.0], 1.5) is None
    low, high = jackknife([1.0, 1.1, 0.9, 1.0], 1.0) or (0.0, 0.0)
    assert low < 1.0 < high and high - low < 1.0


def test_one_model_is_fitted_with_a_wide_interval() -> None:
    rows = [row for row in made_up.starts() if row.model == "b"]
    group = build.fit_term(FORMULAS["context"], rows)[0]
    assert group.model_errors is None and group.half_width >= 0.1 * 0.4 * GIB


def test_failed_and_unmeasured_terms_are_left_out() -> None:
    rows = [replace(row, measured={"context": row.measured["context"]}) for row in made_up.starts()]
    assert set(build.fit_all(rows, on_cpu=False)) == {"context"}
    assert build.fit_all([], on_cpu=False) == {}


def test_the_file_is_byte_identical_for_equal_rows_in_any_order(tmp_path: Path, fits: dict) -> None:
    rows = made_up.starts()
    first = build.document("x", "own", "here", ORIGIN, fits, rows)
    turned = list(reversed(rows))
    second = build.document("x", "own", "here", ORIGIN, build.fit_all(turned, on_cpu=False), turned)
    for name, content in (("1", first), ("2", second)):
        build.write(content, tmp_path / name)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    changed = [replace(rows[0], measured={**rows[0].measured, "context": 1.0}), *rows[1:]]
    assert build.digest(changed) != build.digest(rows)


def test_the_file_estimates_what_the_fit_estimates(tmp_path: Path, fits: dict) -> None:
    rows = made_up.starts()
    build.write(build.document("x", "own", "here", ORIGIN, fits, rows), tmp_path / "x.json")
    made = load(tmp_path / "x.json")
    for row in rows:
        found = made.estimate("activation", row.features)
        assert found.basis == "calibrated"
        assert found.value == pytest.approx(fits["activation"][0].fitted.estimate(row), rel=2e-3)
    beyond = made.estimate("activation", made_up.features("b", 1024, 65536))
    assert beyond.basis == "extrapolated"


def test_every_coefficient_has_its_held_out_error_beside_it(fits: dict) -> None:
    content = build.document("x", "own", "here", ORIGIN, fits, made_up.starts())
    for term in content["terms"].values():
        for group in term["groups"].values():
            for kind in ("leave_one_model_out", "leave_one_setting_out"):
                errors = group["held_out"][kind]
                assert {"mean_gib", "worst_gib", "mean_per_cent", "worst_per_cent"} <= set(errors)
            assert group["rows"] == 30 and group["models"] == 6
    assert from_document(content).tensor_parallel_sizes == (1,)
    assert content["rows"]["used"] == 30


def test_cpu_rows_are_fitted_by_their_own_formulas() -> None:
    rows = []
    for row in made_up.starts():
        under_load = 5e7 + 6 * row.features.max_num_seqs * row.features.vocab_size
        rows.append(replace(row, measured={"context": 0.5 * GIB, "runtime": under_load}))
    found = build.fit_all(rows, on_cpu=True)
    assert set(found) == {"context", "runtime"} <= {formula.term for formula in CPU_FORMULAS}
    told = found["runtime"][0].model_errors
    assert told is not None and told.mean_gib < 0.02

"""The statistics against scipy, and against what can be counted by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

scipy_stats = pytest.importorskip("scipy.stats")

from analysis.compare import stats  # noqa: E402


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 3), (4, 7), (8, 8), (50, 50)])
def test_mann_whitney_is_scipys_exact_one(n: int, m: int) -> None:
    rng = np.random.default_rng(n * 100 + m)
    a, b = rng.normal(size=(30, n)), rng.normal(0.7, size=(30, m))
    expected = scipy_stats.mannwhitneyu(a, b, axis=1, method="exact").pvalue
    np.testing.assert_allclose(stats.mann_whitney(a, b), expected, rtol=1e-9)


def test_mann_whitney_of_large_samples_is_scipys_normal_one() -> None:
    rng = np.random.default_rng(1)
    a, b = np.round(rng.normal(size=(20, 60)), 1), np.round(rng.normal(0.3, size=(20, 70)), 1)
    expected = scipy_stats.mannwhitneyu(a, b, axis=1, method="asymptotic").pvalue
    np.testing.assert_allclose(stats.mann_whitney(a, b), expected, rtol=1e-9)


def test_mann_whitney_with_ties_counts_every_deal() -> None:
    a, b = np.array([[1.0, 1.0, 2.0, 3.0]]), np.array([[2.0, 3.0, 3.0, 4.0, 4.0]])
    ranks = scipy_stats.rankdata(np.concatenate([a, b], axis=1)[0])
    seen = ranks[:4].sum()
    sums = np.array([sum(ranks[list(deal)]) for deal in itertools.combinations(range(9), 4)])
    expected = min(1.0, 2 * min((sums <= seen).mean(), (sums >= seen).mean()))
    np.testing.assert_allclose(stats.mann_whitney(a, b), [expected])


def test_restarts_needed() -> None:
    assert stats.smallest_p(3, 3) == pytest.approx(0.1)
    assert stats.restarts_needed(0.05) == 4
    assert stats.restarts_needed(0.05 / 40) == 7
    assert stats.smallest_p(7, 7) <= 0.05 / 40 < stats.smallest_p(6, 6)


def test_hodges_lehmann_inverts_the_test() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(10, 1, size=(200, 6)), rng.normal(11, 1, size=(200, 7))
    shift, low, high = stats.hodges_lehmann(a, b, 0.05)
    pairs = np.sort((b[:, :, None] - a[:, None, :]).reshape(200, -1), axis=1)
    np.testing.assert_allclose(shift, np.median(pairs, axis=1))
    rejected = stats.mann_whitney(a, b) <= 0.05
    np.testing.assert_array_equal(rejected, (low > 0) | (high < 0))
    _, none, _ = stats.hodges_lehmann(a[:, :3], b[:, :3], 0.05)
    assert np.isnan(none).all()


def test_hodges_lehmann_of_many_restarts_covers_the_shift() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(1e6, 100, size=(400, 60)), rng.normal(1e6 + 50, 100, size=(400, 55))
    _, low, high = stats.hodges_lehmann(a, b, 0.05)
    assert 0.92 <= ((low <= 50) & (high >= 50)).mean() <= 0.98


def test_welch_is_scipys() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(10, 5)), rng.normal(1, 3, size=(10, 9))
    p, change, low, high = stats.t_test(a, b, 0.05)
    expected = scipy_stats.ttest_ind(b, a, axis=1, equal_var=False)
    np.testing.assert_allclose(p, expected.pvalue)
    interval = expected.confidence_interval(0.95)
    np.testing.assert_allclose([low, high], [interval.low, interval.high])
    np.testing.assert_allclose(change, b.mean(axis=1) - a.mean(axis=1))


def test_moderated_t_holds_its_level_and_recovers_the_prior() -> None:
    rng = np.random.default_rng(6)
    spread = np.sqrt(1e-4 * 8 / rng.chisquare(8, size=(4000, 1)))
    a, b = (1 + spread * rng.normal(size=(4000, 5)) for _ in range(2))
    priors = tuple(stats.variance_prior(side.var(axis=1, ddof=1), np.full(4000, 4.0)) for side in (a, b))
    for prior in priors:
        assert prior.df == pytest.approx(8, rel=0.25) and prior.variance == pytest.approx(1e-4, rel=0.1)
    p, *_ = stats.t_test(a, b, 0.05, priors)
    assert (p <= 0.001).mean() <= 0.003
    assert 0.035 <= (p <= 0.05).mean() <= 0.065


def test_corrections() -> None:
    p = np.array([0.001, 0.04, 0.03, 0.2])
    np.testing.assert_allclose(stats.adjusted(p, "holm"), [0.004, 0.09, 0.09, 0.2])
    np.testing.assert_allclose(stats.adjusted(p, "bh"), scipy_stats.false_discovery_control(p))
    np.testing.assert_allclose(stats.adjusted(p, "none"), p)


@pytest.mark.parametrize(("n", "m", "noise"), [(12, 5, 3.0), (5, 12, 3.0), (12, 5, 1.0)])
def test_moderated_t_holds_its_level_where_one_side_is_noisier(n: int, m: int, noise: float) -> None:
    rng = np.random.default_rng(8)
    a, b = rng.normal(size=(3000, n)), noise * rng.normal(size=(3000, m))
    priors = tuple(stats.variance_prior(x.var(axis=1, ddof=1), np.full(3000, x.shape[1] - 1.0)) for x in (a, b))
    p, _, low, high = stats.t_test(a, b, 0.05, priors)
    assert (p <= 0.05).mean() <= 0.065 and (p <= 0.001).mean() <= 0.004
    assert ((low <= 0) & (high >= 0)).mean() >= 0.935


def test_restarts_that_agree_by_luck_are_no_evidence() -> None:
    # One restart in three falls into a slow mode: five that do not are as likely as a coin falling thrice.
    rng = np.random.default_rng(9)
    a, b = (1 + 0.002 * rng.normal(size=(4000, k)) + 0.05 * (rng.random((4000, k)) < 0.3) for k in (12, 5))
    priors = tuple(stats.variance_prior(x.var(axis=1, ddof=1), np.full(4000, x.shape[1] - 1.0)) for x in (a, b))
    p, *_ = stats.t_test(a, b, 0.05, priors)
    assert (p <= 0.001).mean() <= 0.003


@pytest.mark.parametrize("correction", ["bh", "holm"])
def test_corrections_are_the_published_ones(correction: str) -> None:
    p = np.random.default_rng(5).uniform(size=200) ** 3
    p[:10] = p[10:20]  # ties
    if correction == "bh":
        expected = scipy_stats.false_discovery_control(p)
    else:
        expected = [min(1.0, max(p[k] * (200 - (p < p[k]).sum()) for k in np.flatnonzero(p <= one))) for one in p]
    assert stats.adjusted(p, correction) == pytest.approx(expected, rel=1e-12)


def test_ranks_of_tied_values_are_the_middle_of_theirs() -> None:
    rows = np.sort(np.random.default_rng(6).integers(0, 5, size=(50, 12)).astype(float), axis=1)
    assert (stats._doubled_ranks(rows) == np.rint(2 * scipy_stats.rankdata(rows, axis=1))).all()

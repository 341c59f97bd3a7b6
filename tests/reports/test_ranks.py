"""Rank statistics: equal to scipy's on the units and on every resample; undefined where nothing varies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from harness.base import UserError
from reports import ranks
from reports.ranks import Units


def sample(seed=0, n=300, shift=0.8):
    generator = np.random.default_rng(seed)
    flag = generator.random(n) < 0.3
    values = np.round(generator.normal(0, 1, n) - shift * flag, 1)  # rounding makes ties
    return Units(values, flag, [f"image{k // 3}" for k in range(n)])


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(0, 3)), min_size=2, max_size=40))
def test_weighted_statistics_equal_scipys_on_the_repeated_units(rows):
    values, flag, counts = (np.array(column) for column in zip(*rows, strict=True))
    repeated, flags = np.repeat(values, counts), np.repeat(flag, counts)
    distinct = np.unique(values)
    yes, no = ([float(counts[(values == v) & (flag == f)].sum()) for v in distinct] for f in (True, False))
    found = ranks.correlation(np.array(yes), np.array(no))
    if len(set(flags)) < 2 or len(set(repeated)) < 2:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(stats.spearmanr(repeated, flags).statistic)
    area = ranks.larger(np.array(yes), np.array(no))
    if len(set(flags)) < 2:
        assert np.isnan(area)
    else:
        u = stats.mannwhitneyu(repeated[flags], repeated[~flags]).statistic
        assert area == pytest.approx(u / (flags.sum() * (~flags).sum()))


def test_estimate_is_the_mean_over_trainings_with_an_interval_around_it():
    parts = [sample(0), sample(1)]
    found = ranks.estimate(parts, ranks.correlation, resamples=500)
    assert found.value == pytest.approx(np.mean([stats.spearmanr(p.values, p.flag).statistic for p in parts]))
    assert found.low < found.value < found.high < 0
    assert (found.n, found.clusters, found.seeds) == (300, 100, 2)


def test_the_draws_of_the_bootstrap_resample_whole_clusters():
    """Copies of a unit within its cluster add nothing: the interval must not shrink."""
    few = sample(n=120)
    alone = Units(few.values, few.flag, [str(k) for k in range(120)])
    copied = Units(np.repeat(few.values, 4), np.repeat(few.flag, 4), [str(k) for k in np.repeat(range(120), 4)])
    a, b = (ranks.estimate([u], ranks.smaller, resamples=500) for u in (alone, copied))
    assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high))


def test_a_coverage_close_to_the_level():
    """Of 200 samples without any relation, about 5 % resolve one."""
    wrong = 0
    for seed in range(200):
        found = ranks.estimate([sample(seed, 150, shift=0.0)], ranks.correlation, resamples=200, seed=seed)
        wrong += found.low > 0 or found.high < 0
    assert 2 <= wrong <= 22


def test_minus_infinity_is_the_smallest_value_and_nan_is_refused():
    flag = np.array([True] * 5 + [False] * 15)
    oracle = Units(np.where(flag, -np.inf, 0.0), flag, [str(k) for k in range(20)])
    assert ranks.estimate([oracle], ranks.correlation, resamples=50).value == pytest.approx(-1.0)
    with pytest.raises(UserError, match="not a number"):
        ranks.estimate([Units(np.full(20, np.nan), flag, oracle.clusters)], ranks.correlation)


@pytest.mark.parametrize(
    "units",
    [
        Units(np.ones(9), np.arange(9) < 4, [str(k) for k in range(9)]),
        Units(np.arange(9.0), np.zeros(9, bool), [str(k) for k in range(9)]),
        Units(np.zeros(0), np.zeros(0, bool), []),
    ],
)
def test_what_does_not_vary_has_no_correlation(units):
    assert ranks.estimate([units], ranks.correlation, resamples=50) is None


def test_a_single_cluster_of_a_kind_gets_no_interval():
    units = Units(np.arange(12.0), np.arange(12) < 2, ["a", "a", *(str(k) for k in range(10))])
    found = ranks.estimate([units], ranks.smaller, resamples=400)
    assert found.low is None
    assert "too few clusters" in found.note

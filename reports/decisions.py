"""What a difference decides: tests, their correction, non-inferiority against a margin, and the size that would decide.

Sources: exact McNemar test, McNemar 1947 with the binomial of the discordant pairs (scipy); Holm 1979; p-values of resamples
count the observed one (Davison & Hinkley 1997, eq. 4.11); sample size from the normal power function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from harness.base import UserError

Floats = NDArray[np.float64]

#: The power at which detectable differences and needed sizes are given.
POWER = 0.8


def holm(p: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values in the order given; rejecting those <= alpha keeps the family's error below alpha.

    Raises:
        UserError: for a p-value outside 0..1 or NaN.
    """
    values = np.asarray(p, dtype=np.float64)
    bad = ~((values >= 0.0) & (values <= 1.0))
    if bad.any():
        raise UserError(f"holm: {values[bad][0]} is no p-value; expected 0..1")
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    out = np.empty(len(values))
    out[order] = np.minimum(stepped, 1.0)
    return [float(x) for x in out]


def mcnemar(above: int, below: int) -> float:
    """Return the exact two-sided p-value of McNemar's test from the two discordant counts; 1 where there are none."""
    if above < 0 or below < 0:
        raise UserError(f"mcnemar: discordant counts are {above} and {below}; expected 0 or more")
    if above + below == 0:
        return 1.0
    return float(stats.binomtest(above, above + below, 0.5).pvalue)


def p_above(draws: Floats, bound: float) -> float:
    """Return the one-sided p-value of "the number is at most ``bound``" from its resamples, never 0."""
    return (int((draws <= bound).sum()) + 1.0) / (len(draws) + 1.0)


def p_below(draws: Floats, bound: float) -> float:
    """Return the one-sided p-value of "the number is at least ``bound``" from its resamples, never 0."""
    return (int((draws >= bound).sum()) + 1.0) / (len(draws) + 1.0)


def p_two_sided(draws: Floats) -> float:
    """Return the p-value of "the number is zero": the level at which the percentile interval begins to exclude zero."""
    return min(1.0, 2.0 * min(p_above(draws, 0.0), p_below(draws, 0.0)))


@dataclass(frozen=True)
class NonInferiority:
    """A difference held against a margin.

    Attributes:
        margin: how much worse is still acceptable, in the number's unit, > 0 or 0.
        low, high: one-sided limits, each at ``level``: the true difference is above ``low``, and is below ``high``.
        p_inferior: of "the difference is at least minus the margin"; small means worse than the margin allows.
        p_noninferior: of "the difference is at most minus the margin"; small means not worse than the margin allows.
    """

    margin: float
    level: float
    low: float
    high: float
    p_inferior: float
    p_noninferior: float


def non_inferiority(draws: Floats, margin: float, level: float = 0.95) -> NonInferiority:
    """Hold the resamples of a paired difference (new minus baseline, higher is better) against ``margin``.

    Args:
        draws: float64 [resamples], finite: :attr:`reports.statistics.Difference.draws`.
        margin: in the number's own unit, 0 or more; level: of each one-sided limit.

    Raises:
        UserError: for a negative margin, or a level outside 0.5..1.
    """
    if not margin >= 0.0:
        raise UserError(f"the margin is {margin}; expected 0 or more, in the benchmark's unit")
    if not 0.5 < level < 1.0:
        raise UserError(f"the level is {level}; expected more than 0.5 and less than 1")
    ordered = np.sort(draws)
    place = max(math.floor((1.0 - level) * (len(ordered) + 1.0) + 1e-9) - 1, 0)
    low, high = float(ordered[place]), float(ordered[-1 - place])
    return NonInferiority(margin, level, low, high, p_below(draws, -margin), p_above(draws, -margin))


def detectable(standard_error: float, level: float = 0.95, power: float = POWER, df: float = math.inf) -> float:
    """Return the smallest true difference that a two-sided test at ``1 - level`` finds with ``power``."""
    return float((stats.t.ppf(0.5 + level / 2.0, df) + stats.t.ppf(power, df)) * standard_error)


def needed_n(n: int, standard_error: float, distance: float, level: float = 0.95, power: float = POWER) -> int | None:
    """Return how many questions would decide a one-sided test at ``1 - level`` with ``power``; None where no number would.

    Args:
        n: questions that gave ``standard_error`` (of the difference).
        distance: from the difference to the bound tested, ``value + margin``; 0 is never decided.
    """
    if n < 1 or standard_error < 0.0:
        raise UserError(f"needed_n: n is {n} and the standard error {standard_error}; expected n >= 1 and an error >= 0")
    if distance == 0.0:
        return None
    wanted = float(stats.norm.ppf(level) + stats.norm.ppf(power)) * standard_error / abs(distance)
    return max(1, math.ceil(n * wanted**2))

"""What so many test rows can say: intervals of a share and of the difference of two shares."""

from __future__ import annotations

import math

CONFIDENCE = 0.95


def wilson(correct: int, rows: int) -> tuple[float, float]:
    """The 95% Wilson score interval of a share of correct answers.

    Args:
        correct: right answers, 0 to `rows`.
        rows: at least 1.

    Source: Wilson (1927), as SciPy computes it.
    """
    from scipy.stats import binomtest

    interval = binomtest(correct, rows).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def difference(first: int, second: int, rows: int) -> tuple[float, float]:
    """A 95% interval of `(first - second) / rows`, as if the two had answered different rows.

    Both answered the same rows, which makes the true interval narrower as a rule: whoever is outside zero here is not
    so by the choice of these rows.

    Source: Newcombe (1998), Statistics in Medicine 17, 873-890, method 10.
    """
    p, q = first / rows, second / rows
    (low_p, high_p), (low_q, high_q) = wilson(first, rows), wilson(second, rows)
    return p - q - math.hypot(p - low_p, high_q - q), p - q + math.hypot(high_p - p, q - low_q)

"""How far the within-class covariance is shrunk, chosen from the federated sums alone.

Linear discriminant directions with the covariance `(1-s) W + s t I` span what ridge regression on the class indicators
finds (Hastie, Buja and Tibshirani 1995, penalised optimal scoring), and all that generalised cross-validation of that
regression needs is in the sums: no row, no second exchange. Tried instead: the shrinkage that estimates the covariance
itself best (Ledoit and Wolf, oracle approximating) is far too small for directions.
"""

from __future__ import annotations

import numpy as np

from llm_qfl.federation.types import Array

SHRINKAGE = 0.1
"""Share of the identity where rows are many; chosen on training rows of the embedded data sets."""
ENOUGH = 10
"""Rows for each number of a row from which on `SHRINKAGE` is taken."""
GRID = np.concatenate([[SHRINKAGE], 1 / (1 + np.exp(-np.arange(-2, 5.01, 0.25)))])  # few rows never get less; to .9933


def choose_shrinkage(within: Array, between: Array, rows: int) -> float:
    """`SHRINKAGE` where rows are many, else the shrinkage of least generalised cross-validation error.

    Args:
        within: (D, D) within-class covariance of standardised numbers.
        between: B (G, D), the classes' means times the roots of their shares; B.T @ B is the between-class covariance.
        rows: how many rows the sums hold.
    """
    if rows >= ENOUGH * len(within):
        return SHRINKAGE
    return float(GRID[np.argmin(gcv(within, between, rows, GRID))])


def gcv(within: Array, between: Array, rows: int, shrinkage: Array) -> Array:
    """Generalised cross-validation error (S,) of ridge regression on the class indicators (Golub, Heath, Wahba 1979).

    Row i's target for class c is `(1[i in c] - p_c) / sqrt(p_c)`, p_c the class's share; `rss / n / (1 - df / n)^2`.

    Args:
        within: (D, D), as above.
        between: (G, D), as above; a class without rows is a row of zeros.
        rows: n.
        shrinkage: (S,) between 0 and 1.
    """
    values, vectors = np.linalg.eigh(within + between.T @ between)
    values = np.maximum(values, 0.0)
    squares = ((between @ vectors) ** 2).sum(axis=0)  # (D,) products of numbers and targets, along each eigenvector
    ridge = (shrinkage / (1 - shrinkage) * np.trace(within) / len(within))[:, None]
    targets = int((between != 0).any(axis=1).sum()) - 1  # sum of the targets' variances
    residual = targets - (squares * (values + 2 * ridge) / (values + ridge) ** 2).sum(axis=1)
    degrees = 1 + (values / (values + ridge)).sum(axis=1)
    error: Array = residual / (1 - degrees / rows) ** 2
    return error

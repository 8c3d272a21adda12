"""`data.reduction`: from the numbers of a row to one feature per qubit, fitted on federated sums alone.

Every feature of a row is standardised (mean 0, variance 1 over the contributing rows; a feature that is constant
there is dropped), projected, scaled to variance 1 and clipped to +-pi: an angle beyond would read as another one.

- `pca`: the first principal components.
- `discriminant`: first the C-1 linear discriminant directions (Fisher), the within-class covariance shrunk towards a
  multiple of the identity, then the principal components of what is orthogonal to them. What was tried for these
  later features, on 4-mers by cross-validation on the training file: residuals uncorrelated with the discriminants,
  and directions in which the classes' covariances differ most; both gave a support-vector machine less.
- `none`: standardised only; as many numbers as qubits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_qfl.federation.data.numerics import one_thread
from llm_qfl.federation.data.shrinkage import choose_shrinkage
from llm_qfl.federation.data.sums import POOLED, REDUCTIONS, FeatureSums
from llm_qfl.federation.errors import DataError, RecordError
from llm_qfl.federation.types import Array

CLIP = float(np.pi)
CONSTANT = 1e-12  # a standard deviation below this share of the mean's size is rounding
RANK = 1e-9  # a component with less than this share of the greatest variance is rounding


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Numbers of a row (D) -> features (q), one per qubit: clip(((x - mean) / scale) @ matrix).

    Attributes:
        reduction: which.
        mean: (D,) mean over the contributing rows.
        scale: (D,) standard deviation over them; 1 for a dropped feature, whose row of `matrix` is zero.
        matrix: (D, q).
        clip: largest absolute value of a feature, radians.
        shrinkage: of the within-class covariance, where the reduction is `discriminant`.
    """

    reduction: str
    mean: Array
    scale: Array
    matrix: Array
    clip: float = CLIP
    shrinkage: float | None = None

    def transform(self, x: Array) -> Array:
        """Features (N, q) of rows (N, D).

        Raises:
            DataError: another number of columns.
        """
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise DataError(
                f"feature map: expected rows of {len(self.mean)} numbers, got shape {x.shape}; "
                "the columns, data.encoding and data.k must be those of the run"
            )
        with one_thread():
            return np.clip(((x - self.mean) / self.scale) @ self.matrix, -self.clip, self.clip)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; floats round-trip exactly."""
        arrays = {name: getattr(self, name).tolist() for name in ("mean", "scale", "matrix")}
        return {"reduction": self.reduction, **arrays, "clip": self.clip, "shrinkage": self.shrinkage}

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(self.to_dict(), sort_keys=True, allow_nan=False)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> FeatureMap:
        """Read what `to_dict` wrote.

        Raises:
            RecordError: not such values.
        """
        try:
            mean, scale, matrix = (np.array(value[name], np.float64) for name in ("mean", "scale", "matrix"))
            shrinkage = value.get("shrinkage")
            made = cls(
                str(value["reduction"]),
                mean,
                scale,
                matrix,
                float(value["clip"]),
                None if shrinkage is None else float(shrinkage),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(f"feature map: cannot be read ({type(error).__name__}: {error})") from error
        arrays = (mean, scale, matrix)
        shapes_fit = mean.ndim == 1 and scale.shape == mean.shape and matrix.ndim == 2 and len(matrix) == len(mean)
        if not shapes_fit or not all(np.isfinite(a).all() for a in arrays) or (scale <= 0).any() or not made.clip > 0:
            raise RecordError(f"feature map: shapes {[a.shape for a in arrays]} or values that no map has")
        return made

    @classmethod
    def from_json(cls, text: str) -> FeatureMap:
        """Read what `to_json` wrote.

        Raises:
            RecordError: not such a text.
        """
        try:
            value = json.loads(text)
        except ValueError as error:
            raise RecordError(f"feature map: not JSON ({error})") from error
        if not isinstance(value, dict):
            raise RecordError("feature map: expected a JSON object")
        return cls.from_dict(value)

    def digest(self) -> str:
        """SHA-256 of the JSON text."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def fit_feature_map(
    sums: FeatureSums, *, reduction: str, qubits: int, shrinkage: float = 0.0, clip: float = CLIP
) -> FeatureMap:
    """Fit the map on combined sums; equal to a fit on the pooled contributing rows.

    Args:
        sums: what `combine` returned.
        reduction: `discriminant`, `pca` or `none`, as for the sums.
        qubits: number of features q.
        shrinkage: of the within-class covariance (of standardised numbers), for `discriminant`; 0 chooses.
        clip: largest absolute value of a feature, radians.

    Raises:
        DataError: sums of another reduction, fewer than two classes among them, or too few independent features.
    """
    if reduction not in REDUCTIONS or (reduction == "discriminant") == (sums.groups == POOLED):
        raise DataError(f"feature map: sums by {', '.join(sums.groups)} do not serve data.reduction={reduction!r}")
    if sums.rows < 2:
        raise DataError("feature map: one row has no spread; lower data.min-rows or bring more rows")
    with one_thread():
        mean, within, between = _moments(sums)
        variance = np.diagonal(within) + np.einsum("gd,gd->d", between, between)
        kept = np.sqrt(variance) > CONSTANT * np.maximum(np.abs(mean), np.finfo(float).tiny)
        scale = np.where(kept, np.sqrt(variance), 1.0)
        if reduction == "none":
            small = _identity(kept, qubits)
        else:
            spread = np.outer(scale[kept], scale[kept])
            standard_within = within[np.ix_(kept, kept)] / spread
            standard_between = between[:, kept] / scale[kept]
            total = standard_within + standard_between.T @ standard_between
            if reduction == "pca":
                small = _components(total, np.zeros((len(total), 0)), qubits)
            else:
                shrinkage = shrinkage or choose_shrinkage(standard_within, standard_between, sums.rows)
                directions = _discriminants(sums, standard_within, standard_between, shrinkage)[:, :qubits]
                small = _components(total, directions, qubits)
            small = _signed(small / np.sqrt(np.einsum("dq,de,eq->q", small, total, small)))
    matrix = np.zeros((len(mean), qubits))
    matrix[kept] = small
    return FeatureMap(reduction, mean, scale, matrix, clip, shrinkage if reduction == "discriminant" else None)


def _moments(sums: FeatureSums) -> tuple[Array, Array, Array]:
    """Total mean (D,), within-group covariance, and B (G, D) with B.T @ B the between-group covariance."""
    weights = sums.counts / sums.counts.sum()
    first = sums.means[np.flatnonzero(weights)[0]]
    mean = first + weights @ np.where(weights[:, None] > 0, sums.means - first, 0.0)
    between = np.sqrt(weights)[:, None] * np.where(weights[:, None] > 0, sums.means - mean, 0.0)
    return mean, sums.scatter_matrix() / sums.counts.sum(), between


def _identity(kept: np.ndarray[Any, np.dtype[np.bool_]], qubits: int) -> Array:
    if len(kept) != qubits:
        raise DataError(
            f"data.reduction: none takes one number a qubit, the rows have {len(kept)} and quantum.qubits={qubits}; "
            "set quantum.qubits to that number or choose pca or discriminant"
        )
    identity: Array = np.eye(qubits)[kept]
    return identity


def _discriminants(sums: FeatureSums, within: Array, between: Array, shrinkage: float) -> Array:
    """Linear discriminant directions (D, up to G-1), the most telling first.

    The generalised eigenvectors of the between-group against the shrunk within-group covariance, solved in the
    G-dimensional space of the class means. For two classes that is the direction of scikit-learn's
    `LinearDiscriminantAnalysis(solver="lsqr", shrinkage=...)` (its solver "eigen" shrinks the total covariance, too).
    """
    groups = int((sums.counts > 0).sum())
    if groups < 2:
        there = [group for group, count in zip(sums.groups, sums.counts, strict=True) if count]
        raise DataError(
            f"data.reduction: discriminant needs sums of two classes, the sites sent them for {', '.join(there)} only; "
            "lower data.min-rows (a site leaves out a class with fewer rows) or choose pca"
        )
    dimension = len(within)
    if not dimension:
        raise DataError("data.reduction: every feature is constant over the federation; nothing to learn from")
    target = max(np.trace(within) / dimension, np.finfo(float).eps)
    shrunk = (1 - shrinkage) * within + shrinkage * target * np.eye(dimension)
    solved = np.linalg.solve(shrunk, between.T)  # (D, G)
    values, vectors = np.linalg.eigh(between @ solved)
    order = np.argsort(values)[::-1][: groups - 1]
    return np.asarray(solved @ vectors[:, order[values[order] > RANK * values[order[0]]]])


def _components(total: Array, first: Array, qubits: int) -> Array:
    """`first` (D, p), then the principal components of what is orthogonal to its span, to q columns in all."""
    basis = np.linalg.qr(first)[0]  # (D, p)
    outside = np.eye(len(total)) - basis @ basis.T
    values, vectors = np.linalg.eigh(outside @ total @ outside)
    rank = int((values > RANK * values[-1]).sum()) if len(values) and values[-1] > 0 else 0
    more = qubits - first.shape[1]
    if more > rank:
        raise DataError(
            f"data.reduction: {qubits} qubits need {qubits} independent features, the rows have "
            f"{rank + first.shape[1]}; lower quantum.qubits to that or bring more columns"
        )
    return np.hstack([first, vectors[:, ::-1][:, :more]])


def _signed(matrix: Array) -> Array:
    """Each column's largest coefficient is positive, so that the sign is no accident of the solver."""
    largest = matrix[np.argmax(np.abs(matrix), axis=0), np.arange(matrix.shape[1])]
    signs: Array = np.where(largest < 0, -1.0, 1.0)
    return matrix * signs

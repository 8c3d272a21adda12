"""Data sets that the policy learns from: generators, and two small ones of scikit-learn. None is in a comparison.

Absent on purpose: breast-cancer, digits, human_or_worm and tweet_sentiment, on which policies are compared.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llm_qfl.federation.data.synthetic import gaussian_rows, markov_sequences, write_csv
from llm_qfl.federation.errors import ConfigError
from llm_qfl.federation.types import Array, Labels

KINDS = ("gaussian", "clusters", "markov", "iris", "wine")


def clustered_rows(
    random: np.random.Generator, rows: int, *, columns: int, clusters: int, spread: float = 2.0
) -> tuple[Array, Labels]:
    """Two classes of several Gaussian clusters each: no single line tells them apart.

    Args:
        random: generator.
        rows: N.
        columns: D.
        clusters: of each class.
        spread: of the centres, in standard deviations of a cluster.
    """
    centres = random.normal(scale=spread, size=(2 * clusters, columns))
    which = random.permutation(np.arange(rows) % (2 * clusters))
    return centres[which] + random.normal(size=(rows, columns)), (which % 2).astype(np.intp)


def write_table(kind: str, seed: int, folder: Path) -> Path:
    """The CSV file of one data set, written once; equal for equal arguments.

    Args:
        kind: one of `KINDS`.
        seed: of the generator: rows, columns, classes and how hard they are to tell apart.
        folder: receives the file.

    Raises:
        ConfigError: no such kind.
    """
    path = folder / f"{kind}-{seed}.csv"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng([KINDS.index(kind) if kind in KINDS else 0, seed])
    partial = path.with_suffix(".partial")
    if kind == "markov":
        texts, labels = markov_sequences(random, _rows(random), contrast=float(random.uniform(0.3, 1.2)))
        write_csv(partial, ["sequence", "label"], [[s, int(y)] for s, y in zip(texts, labels, strict=True)])
    else:
        values, labels = _numbers(kind, random)
        lines = [[*(f"{v:.6g}" for v in row), int(y)] for row, y in zip(values, labels, strict=True)]
        write_csv(partial, [*(f"f{i}" for i in range(values.shape[1])), "label"], lines)
    partial.replace(path)
    return path


def _numbers(kind: str, random: np.random.Generator) -> tuple[Array, Labels]:
    rows, columns = _rows(random), int(random.integers(5, 24))
    if kind == "gaussian":
        classes = int(random.choice([2, 2, 3]))
        return gaussian_rows(random, rows, columns=columns, classes=classes, distance=float(random.uniform(0.8, 2.8)))
    if kind == "clusters":
        clusters, spread = int(random.integers(2, 6)), float(random.uniform(0.8, 2.0))
        return clustered_rows(random, rows, columns=columns, clusters=clusters, spread=spread)
    if kind in ("iris", "wine"):
        from sklearn.datasets import load_iris, load_wine

        bunch = load_iris() if kind == "iris" else load_wine()
        return np.asarray(bunch.data, np.float64), np.asarray(bunch.target, np.intp)
    raise ConfigError(f"policy data: expected one of {', '.join(KINDS)}, got {kind!r}")


def _rows(random: np.random.Generator) -> int:
    """A few hundred, now and then a few thousand."""
    return int(random.integers(1500, 3000)) if random.random() < 0.3 else int(random.integers(300, 900))

"""Small seeded data of each kind, for tests and examples; nothing here looks like real rows."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llm_qfl.federation.data.encodings import BASES
from llm_qfl.federation.types import Array, Labels

_OPENINGS = ("The new phone", "This film", "My flight", "The match", "Our hotel", "That update", "The concert")
_WORDS = (
    ("is awful", "was a disaster", "made me angry", "is the worst in years", "was sadly broken"),
    ("starts at noon", "is on Monday", "has two parts", "was announced today", "comes in black"),
    ("is wonderful", "was a delight", "made my day", "is the best in years", "was truly great"),
)
_ENDINGS = ("", " again", " @user", " for me", " in town", ", they say", " this week")
SENTIMENTS = ("negative", "neutral", "positive")


def gaussian_rows(
    random: np.random.Generator, rows: int, *, columns: int = 6, classes: int = 2, distance: float = 2.0
) -> tuple[Array, Labels]:
    """Rows (N, D) of Gaussian classes with one correlated covariance and features of different scales.

    Args:
        random: generator.
        rows: N, dealt evenly to the classes.
        columns: D.
        classes: C.
        distance: between any two classes' centres, in standard deviations (Mahalanobis): two classes can be told
            apart with accuracy Phi(distance / 2). Classes may not outnumber columns.
    """
    labels = random.permutation(np.arange(rows) % classes)
    centres = distance / np.sqrt(2) * np.linalg.qr(random.normal(size=(columns, classes)))[0].T
    mix = np.eye(columns) + 0.4 * random.normal(size=(columns, columns)) / np.sqrt(columns)
    scales = 10.0 ** random.uniform(-2, 2, size=columns)
    values = (centres[labels] + random.normal(size=(rows, columns))) @ mix * scales
    return values, labels.astype(np.intp)


def markov_sequences(
    random: np.random.Generator, rows: int, *, length: int = 200, contrast: float = 1.0
) -> tuple[tuple[str, ...], Labels]:
    """DNA of two order-3 Markov chains (64 contexts, four bases), one per class.

    Args:
        random: generator; it draws the chains, too.
        rows: N, half of each class.
        length: bases of a sequence.
        contrast: how far the chains differ; 0 makes the classes equal.
    """
    labels = random.permutation(np.arange(rows) % 2)
    common = random.normal(scale=0.4, size=(64, 4))
    logits = common + contrast * random.normal(scale=0.4, size=(2, 64, 4))
    cumulative = np.cumsum(np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True), axis=2)
    codes = np.zeros((rows, length), np.intp)
    codes[:, :3] = random.integers(0, 4, size=(rows, min(3, length)))
    for position in range(3, length):
        context = codes[:, position - 3] * 16 + codes[:, position - 2] * 4 + codes[:, position - 1]
        drawn = random.random(rows)[:, None] > cumulative[labels, context]  # (N, 4)
        codes[:, position] = np.minimum(drawn.sum(axis=1), 3)
    letters = np.array(list(BASES))
    return tuple("".join(row) for row in letters[codes]), labels.astype(np.intp)


def sentiment_sentences(random: np.random.Generator, rows: int) -> tuple[tuple[str, ...], Labels]:
    """Template sentences of three sentiments: 0 negative, 1 neutral, 2 positive."""
    labels = random.permutation(np.arange(rows) % len(SENTIMENTS))
    texts = tuple(
        f"{random.choice(_OPENINGS)} {random.choice(_WORDS[label])}{random.choice(_ENDINGS)}" for label in labels
    )
    return texts, labels.astype(np.intp)


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    """Write a CSV file with a header line; floats are written in full."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def write_gaussian_csv(
    path: Path, random: np.random.Generator, rows: int, *, columns: int = 6, classes: int = 2
) -> Path:
    """A CSV file of `gaussian_rows`: columns `f0`, `f1`, ... and `label`."""
    values, labels = gaussian_rows(random, rows, columns=columns, classes=classes)
    lines = [[*(repr(float(v)) for v in row), int(label)] for row, label in zip(values, labels, strict=True)]
    return write_csv(path, [*(f"f{i}" for i in range(columns)), "label"], lines)


def write_markov_csv(path: Path, random: np.random.Generator, rows: int, *, length: int = 200) -> Path:
    """A CSV file of `markov_sequences`: columns `sequence` and `label`."""
    sequences, labels = markov_sequences(random, rows, length=length)
    return write_csv(path, ["sequence", "label"], [[s, int(y)] for s, y in zip(sequences, labels, strict=True)])


def write_sentiment_csv(path: Path, random: np.random.Generator, rows: int) -> Path:
    """A CSV file of `sentiment_sentences`: columns `text` and `label`."""
    texts, labels = sentiment_sentences(random, rows)
    return write_csv(path, ["text", "label"], [[t, int(y)] for t, y in zip(texts, labels, strict=True)])

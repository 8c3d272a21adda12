"""`data.encoding`: what numbers a row becomes, the same on every site without looking at other rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from llm_qfl.federation.data.table import Table
from llm_qfl.federation.errors import DataError
from llm_qfl.federation.types import Array, Labels

BASES = "ACGT"
_COMPLEMENT = str.maketrans(BASES, BASES[::-1])
_WANTS = {
    "columns": "columns",
    "kmer": "sequence",
    "canonical-kmer": "sequence",
    "onehot": "sequence",
    "language": "text",
}
_AUTO = {"columns": "columns", "sequence": "kmer"}


def resolve_encoding(kind: str, encoding: str) -> str:
    """The encoding that `auto` means for rows of this kind; others are checked against the kind.

    Raises:
        DataError: an unknown encoding, or one that does not go with the rows.
    """
    if encoding == "auto" and kind in _AUTO:
        return _AUTO[kind]
    if encoding != "auto" and encoding not in _WANTS:
        raise DataError(f"data.encoding: expected auto, {', '.join(_WANTS)}, got {encoding!r}")
    if _WANTS.get(encoding) == kind:
        return encoding
    if kind == "text":
        raise DataError(
            f"data.encoding: {encoding!r} makes no numbers of text; set data.encoding=language (and language.dtype="
            "float32), or bring numeric columns or a sequence column"
        )
    needs = {"columns": "numeric columns", "language": "a text column"}.get(encoding, "a sequence column")
    raise DataError(f"data.encoding: {encoding!r} needs {needs}, the rows are of kind {kind!r}; use data.encoding=auto")


def encode(table: Table, encoding: str = "auto", *, k: int = 4) -> tuple[Array, tuple[str, ...]]:
    """Numbers of every row (N, D) float64, and their names.

    - `columns`: the numeric columns as they are.
    - `kmer`: frequencies of the 4**k words of k bases among the row's windows; windows that hold an N do not count.
    - `canonical-kmer`: the same with each word and its reverse complement counted as one, for reads of either strand;
      of the two the first by letter names the pair.
    - `onehot`: four numbers a base, N is four zeros; all sequences must be of one length.
    - `language`: none here (N, 0); who holds the language model makes them.

    Args:
        table: the rows.
        encoding: a word that `data.encoding` takes.
        k: length of the k-mers, 1 to 6.

    Raises:
        DataError: the encoding does not go with the rows, or a sequence is too short or of another length.
    """
    encoding = resolve_encoding(table.kind, encoding)
    if table.values is not None:
        return table.values, table.columns
    if encoding == "language":
        return np.zeros((len(table), 0)), ()
    sequences = table.sequences or ()
    if encoding == "onehot":
        return one_hot(sequences)
    values, words = kmer_frequencies(sequences, k)
    return (values, words) if encoding == "kmer" else _both_strands(values, words)


def number_names(encoding: str, columns: Sequence[str], k: int) -> tuple[str, ...]:
    """Names of the numbers of a row as `encode` gives them, where they are columns or k-mers; else nothing."""
    words = tuple("".join(word) for word in product(BASES, repeat=k))
    if encoding == "kmer":
        return words
    if encoding == "canonical-kmer":
        return tuple(sorted({min(word, word.translate(_COMPLEMENT)[::-1]) for word in words}))
    return tuple(columns) if encoding == "columns" else ()


def kmer_frequencies(sequences: Sequence[str], k: int) -> tuple[Array, tuple[str, ...]]:
    """Share of each word of k bases among the windows of each sequence (N, 4**k); words in the order A, C, G, T.

    Raises:
        DataError: k is not 1 to 6, or a sequence has no window of k bases without N.
    """
    if not 1 <= k <= 6:
        raise DataError(f"data.k: expected 1 to 6, got {k}")
    names = tuple("".join(word) for word in product(BASES, repeat=k))
    codes, row_of = _codes(sequences)
    windows = max(len(codes) - k + 1, 0)
    word = np.zeros(windows, np.int64)
    whole = row_of[:windows] == row_of[len(codes) - windows :]  # the window lies within one sequence
    for offset in range(k):
        here = codes[offset : offset + windows]
        whole &= here >= 0
        word = 4 * word + here
    flat = row_of[:windows][whole] * 4**k + word[whole]
    counts = np.bincount(flat, minlength=len(sequences) * 4**k).reshape(len(sequences), 4**k).astype(np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    if len(empty := np.flatnonzero(totals == 0)):
        raise DataError(
            f"data.encoding: the sequence in row {empty[0] + 1} has no window of {k} bases without N; "
            "lower data.k or leave that row out"
        )
    return counts / totals, names


def _both_strands(values: Array, words: tuple[str, ...]) -> tuple[Array, tuple[str, ...]]:
    """Each word's share and its reverse complement's added up (a palindrome is its own)."""
    canonical = [min(word, word.translate(_COMPLEMENT)[::-1]) for word in words]
    names = tuple(sorted(set(canonical)))
    column = {name: number for number, name in enumerate(names)}
    folded = np.zeros((len(values), len(names)))
    for source, name in enumerate(canonical):
        folded[:, column[name]] += values[:, source]
    return folded, names


def one_hot(sequences: Sequence[str]) -> tuple[Array, tuple[str, ...]]:
    """Four numbers a base (N, 4 L): position by position, in the order A, C, G, T.

    Raises:
        DataError: sequences of several lengths.
    """
    lengths = np.array([len(sequence) for sequence in sequences])
    if len(odd := np.flatnonzero(lengths != lengths[0])):
        raise DataError(
            f"data.encoding: onehot needs sequences of one length, row 1 has {lengths[0]} bases and row {odd[0] + 1} "
            f"has {lengths[odd[0]]}; cut them to one length or use kmer"
        )
    codes, _ = _codes(sequences)
    hot = (codes[:, None] == np.arange(4)).astype(np.float64)
    names = tuple(f"{base}{position}" for position in range(1, int(lengths[0]) + 1) for base in BASES)
    return hot.reshape(len(sequences), -1), names


def _codes(sequences: Sequence[str]) -> tuple[Labels, Labels]:
    """All bases in a row as 0..3 (N: -1), and the sequence that each belongs to."""
    lookup = np.full(256, -1, np.intp)
    lookup[np.frombuffer(BASES.encode(), np.uint8)] = np.arange(4)
    letters = np.frombuffer("".join(sequences).encode("ascii"), np.uint8)
    row_of = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
    return lookup[letters], row_of

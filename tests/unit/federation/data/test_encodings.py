"""Encodings against direct counting."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_qfl.federation.data.encodings import encode, kmer_frequencies, one_hot, resolve_encoding
from llm_qfl.federation.data.sources import load_table
from llm_qfl.federation.data.table import Table
from llm_qfl.federation.errors import DataError


def sequence_table(*sequences):
    return Table("sequence", ("sequence",), np.zeros(len(sequences), int), ("0", "1"), sequences=sequences)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("ACGTN", min_size=6, max_size=30), min_size=1, max_size=6), st.integers(1, 4))
def test_kmers_equal_a_count_by_hand(sequences, k):
    counts = []
    for sequence in sequences:
        windows = [sequence[i : i + k] for i in range(len(sequence) - k + 1)]
        counts.append(Counter(word for word in windows if "N" not in word))
    if not all(counts):
        with pytest.raises(DataError, match=f"has no window of {k} bases"):
            kmer_frequencies(sequences, k)
        return
    found, names = kmer_frequencies(sequences, k)
    assert names == tuple(sorted(names))
    assert found.shape == (len(sequences), 4**k)
    expected = [[count[name] / count.total() for name in names] for count in counts]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("k", "words"), [(1, 2), (2, 10), (3, 32), (4, 136)])
def test_canonical_kmers_do_not_see_the_strand(k, words):
    random = np.random.default_rng(k)
    one = ["".join(random.choice(list("ACGTN"), 50, p=[0.2, 0.3, 0.24, 0.24, 0.02])) for _ in range(4)]
    other = [sequence.translate(str.maketrans("ACGT", "TGCA"))[::-1] for sequence in one]
    values, names = encode(sequence_table(*one), "canonical-kmer", k=k)
    assert values.shape == (4, words)  # (4**k + palindromes) / 2, and a word of odd length is never a palindrome
    assert len(names) == words
    np.testing.assert_allclose(values, encode(sequence_table(*other), "canonical-kmer", k=k)[0], atol=1e-15)
    np.testing.assert_allclose(values.sum(axis=1), 1)
    if k == 1:
        share = [(s.count("A") + s.count("T")) / (len(s) - s.count("N")) for s in one]
        np.testing.assert_allclose(values[:, names.index("A")], share)


def test_one_hot_by_hand():
    found, names = one_hot(["ACN", "GTT"])
    assert names[:5] == ("A1", "C1", "G1", "T1", "A2")
    assert found.tolist() == [[1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 1]]


def test_auto_goes_by_kind():
    table = sequence_table("ACGTACGT", "AAAAAAAA")
    np.testing.assert_array_equal(encode(table, "auto", k=2)[0], encode(table, "kmer", k=2)[0])
    assert encode(table)[0].shape == (2, 256)
    columns = load_table("breast-cancer")
    values, names = encode(columns, "auto")
    assert values is columns.values
    assert names == columns.columns


@pytest.mark.parametrize(
    ("kind", "encoding", "message"),
    [
        ("columns", "kmer", "'kmer' needs a sequence column, the rows are of kind 'columns'"),
        ("sequence", "columns", "'columns' needs numeric columns, the rows are of kind 'sequence'"),
        ("text", "auto", "'auto' makes no numbers of text"),
        ("text", "kmer", "'kmer' makes no numbers of text"),
        ("text", "words", "expected auto, columns, kmer, canonical-kmer, onehot, language, got 'words'"),
        ("columns", "language", "'language' needs a text column, the rows are of kind 'columns'"),
    ],
)
def test_encodings_that_do_not_go_with_the_rows(kind, encoding, message):
    with pytest.raises(DataError, match=message):
        resolve_encoding(kind, encoding)


def test_sequences_that_cannot_be_encoded():
    with pytest.raises(DataError, match="row 1 has 4 bases and row 2 has 3; cut them to one length or use kmer"):
        encode(sequence_table("ACGT", "ACG"), "onehot")
    with pytest.raises(DataError, match=r"row 2 has no window of 3 bases without N; lower data\.k"):
        encode(sequence_table("ACGT", "ACNGT"), "kmer", k=3)
    with pytest.raises(DataError, match="expected 1 to 6, got 9"):
        encode(sequence_table("ACGT"), "kmer", k=9)

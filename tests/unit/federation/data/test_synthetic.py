"""The generators: seeded, learnable, and nothing to learn where nothing is."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from llm_qfl.federation.data.encodings import kmer_frequencies
from llm_qfl.federation.data.synthetic import gaussian_rows, markov_sequences, sentiment_sentences


def test_seeded():
    for make in (gaussian_rows, markov_sequences, sentiment_sentences):
        one, two, other = (make(np.random.default_rng(seed), 30) for seed in (1, 1, 2))
        assert np.array_equal(one[0], two[0])
        assert np.array_equal(one[1], two[1])
        assert not np.array_equal(one[0], other[0])


def test_classes_are_even():
    for make, classes in ((gaussian_rows, 2), (markov_sequences, 2), (sentiment_sentences, 3)):
        assert np.bincount(make(np.random.default_rng(0), 60)[1]).tolist() == [60 // classes] * classes


@pytest.mark.parametrize(("contrast", "low", "high"), [(1.0, 0.9, 1.0), (0.0, 0.35, 0.65)])
def test_two_chains_are_told_apart_by_their_kmers(contrast, low, high):
    sequences, labels = markov_sequences(np.random.default_rng(4), 400, length=120, contrast=contrast)
    x, _ = kmer_frequencies(sequences, 3)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    model = LogisticRegression(C=0.01).fit(x[:200], labels[:200])
    assert low <= model.score(x[200:], labels[200:]) <= high


def test_gaussian_classes_can_be_learned():
    x, y = gaussian_rows(np.random.default_rng(5), 400, distance=4.0)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    assert LogisticRegression().fit(x[:200], y[:200]).score(x[200:], y[200:]) > 0.9

"""The noise has the distribution that the accountant assumes, and comes from the secret and the question alone."""

import numpy as np
import pytest
from scipy.stats import kstest

from llm_qfl.federation.privacy.noise import SecretNoise, digest_arrays, noise_key

SECRET = bytes(range(32))


def test_gaussians_have_the_size_that_was_asked_for():
    drawn = SecretNoise(noise_key(SECRET, purpose="test")).gaussian(40_000, 2.5)
    assert kstest(drawn / 2.5, "norm").pvalue > 1e-3
    assert abs(drawn.mean()) < 5 * 2.5 / 200
    assert drawn.std() == pytest.approx(2.5, rel=0.02)


def test_samples_have_the_rate():
    noise = SecretNoise(noise_key(SECRET, purpose="test"))
    taken = np.mean([noise.sample(1000, 0.2) for _ in range(40)])
    assert taken == pytest.approx(0.2, abs=0.01)
    assert noise.sample(100, 1.0).all()


def test_the_same_question_has_the_same_noise_and_any_other_has_another():
    about = {"purpose": "round", "round": 3, "state": digest_arrays(np.zeros(3))}
    first = SecretNoise(noise_key(SECRET, **about))
    again = SecretNoise(noise_key(SECRET, **about))
    one, two = first.gaussian(5), first.gaussian(5)
    np.testing.assert_array_equal(one, again.gaussian(5))
    assert np.abs(one - two).min() > 0
    others = [{**about, "round": 4}, {**about, "state": digest_arrays(np.ones(3))}, {**about, "purpose": "census"}]
    for other in others:
        assert np.abs(one - SecretNoise(noise_key(SECRET, **other)).gaussian(5)).min() > 0
    assert noise_key(SECRET[::-1], **about) != noise_key(SECRET, **about)


def test_a_secret_must_be_one():
    with pytest.raises(ValueError, match="at least 32 bytes"):
        noise_key(b"short", purpose="x")


def test_arrays_are_told_apart_by_shape_and_type():
    zeros = np.zeros((2, 3))
    others = {digest_arrays(zeros.T), digest_arrays(zeros.astype(np.float32)), digest_arrays(zeros, zeros)}
    assert len(others | {digest_arrays(zeros)}) == 4

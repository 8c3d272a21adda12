import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from llm_qfl.quantum.readout import FLOOR, Readout

KINDS = [("scale", 3, 3), ("scale-bias", 3, 3), ("linear", 4, 3), ("linear", 1, 2), ("parity", 2, 2), ("bit", 3, 3)]


def example(name, outputs, classes, rows=5, seed=0):
    rng = np.random.default_rng(seed)
    readout = Readout(name, outputs, classes)
    values = rng.uniform(-1, 1, (rows, outputs))
    if name in ("parity", "bit"):
        values = np.abs(values) / np.abs(values).sum(axis=1, keepdims=True)
    return readout, values, rng.normal(size=len(readout.parameter_names)), rng


def test_log_probabilities_by_hand():
    values = np.array([[0.2, -0.6], [1.0, 1.0]])
    at = Readout("scale", 2, 2).log_probabilities(values, np.array([np.log(5.0)]))
    np.testing.assert_allclose(at[0], [-np.log1p(np.exp(-4.0)), -np.log1p(np.exp(4.0))])
    np.testing.assert_allclose(at[1], np.log([0.5, 0.5]))
    biased = Readout("scale-bias", 2, 2).log_probabilities(values, np.array([0.0, 0.3, -0.3]))
    np.testing.assert_allclose(biased, log_softmax(values + np.array([0.3, -0.3]), axis=1))
    matrix, bias = np.array([[1.0, 2.0], [-1.0, 0.5], [0.0, 3.0]]), np.array([0.1, 0.2, 0.3])
    linear = Readout("linear", 2, 3).log_probabilities(values, np.concatenate([matrix.ravel(), bias]))
    np.testing.assert_allclose(linear, log_softmax(values @ matrix.T + bias, axis=1))
    certain = Readout("parity", 2, 2).log_probabilities(np.array([[1.0, -1e-17]]), np.zeros(0))
    np.testing.assert_allclose(certain, [[0.0, np.log(FLOOR)]])


@pytest.mark.parametrize(("name", "outputs", "classes"), KINDS)
def test_pull_back_is_the_derivative(name, outputs, classes):
    readout, values, weights, rng = example(name, outputs, classes)
    by_logp = rng.normal(size=(len(values), classes))
    by_values, by_weights = readout.pull_back(values, weights, readout.log_probabilities(values, weights), by_logp)

    def total(v, w):
        return (readout.log_probabilities(v, w) * by_logp).sum(axis=1)  # a number a row

    step = 1e-6
    for k in range(outputs):
        move = step * np.eye(outputs)[k]
        slope = (total(values + move, weights) - total(values - move, weights)) / (2 * step)
        np.testing.assert_allclose(by_values[:, k], slope, rtol=1e-6, atol=1e-8)
    assert by_weights.shape == (len(values), len(weights))
    for r in range(len(weights)):
        move = step * np.eye(len(weights))[r]
        slope = (total(values, weights + move) - total(values, weights - move)) / (2 * step)
        np.testing.assert_allclose(by_weights[:, r], slope, rtol=1e-6, atol=1e-8)
        assert np.abs(by_weights[:, r]).max() > 1e-3


def test_a_clipped_probability_has_no_slope():
    readout, values = Readout("bit", 2, 2), np.array([[1e-12, 1.0]])
    by_values, by_weights = readout.pull_back(
        values, np.zeros(0), readout.log_probabilities(values, np.zeros(0)), np.ones((1, 2))
    )
    np.testing.assert_array_equal(by_values, [[0.0, 1.0]])
    assert by_weights.shape == (1, 0)


@pytest.mark.parametrize(("name", "outputs", "classes"), KINDS)
def test_names_are_unique_and_first_weights_fit_them(name, outputs, classes):
    readout = Readout(name, outputs, classes)
    names = readout.parameter_names
    assert len(set(names)) == len(names)
    assert all(part.startswith("readout/") for part in names)
    first = readout.initial(np.random.default_rng(0))
    assert first.shape == (len(names),)
    assert first.dtype == np.float64


def test_linear_starts_near_scale():
    rng = np.random.default_rng(0)
    values = rng.uniform(-1, 1, (50, 4))
    linear, scale = Readout("linear", 4, 2), Readout("scale", 2, 2)
    first = linear.log_probabilities(values, linear.initial(rng))
    second = scale.log_probabilities(values[:, :2], scale.initial(rng))
    assert np.abs(first - second).max() < 1.0
    assert (first.argmax(axis=1) == second.argmax(axis=1)).mean() > 0.85


@given(
    st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    st.lists(st.floats(-50, 50), min_size=3, max_size=3),
    st.floats(-3, 6),
)
@settings(max_examples=30, deadline=None)
def test_probabilities_are_probabilities(values, bias, log_scale):
    at = Readout("scale-bias", 3, 3).log_probabilities(np.array([values]), np.array([log_scale, *bias]))
    assert (at <= 1e-15).all()
    np.testing.assert_allclose(np.exp(at).sum(), 1.0, atol=1e-12)
    np.testing.assert_allclose(at, log_softmax(np.array([values]) * np.exp(log_scale) + bias, axis=1), atol=1e-11)

"""DP-SGD: what the noise is, against closed forms; without noise it is the plain optimizer."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llm_qfl.federation.config import QuantumConfig
from llm_qfl.federation.errors import DataError
from llm_qfl.federation.privacy.noise import SecretNoise, noise_key
from llm_qfl.federation.types import Rows
from llm_qfl.quantum.model import get_model
from llm_qfl.quantum.private import RowPrivacy, clipped, noisy_gradient, train_privately
from llm_qfl.quantum.training import adam_steps


def noise(**about):
    return SecretNoise(noise_key(bytes(32), **about))


@pytest.fixture(scope="module")
def model():
    return get_model(QuantumConfig(qubits=2, layers=1), 2)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return Rows(rng.normal(size=(12, 2)), np.arange(12) % 2)


@given(hnp.arrays(np.float64, (5, 4), elements=st.floats(-1e6, 1e6)), st.floats(0.01, 10))
@example(np.zeros((5, 4)), 4.0)  # no length to divide by
def test_no_row_counts_more_than_the_clip(gradients, clip):
    result = clipped(gradients, clip)
    lengths = np.linalg.norm(gradients, axis=1)
    assert np.linalg.norm(result, axis=1).max() <= clip * (1 + 1e-9)
    short = lengths <= clip
    np.testing.assert_allclose(result[short], gradients[short])


def test_the_noise_is_what_the_accountant_is_told():
    privacy = RowPrivacy(clip=2.0, noise=1.5, rate=0.25)
    drawn = noisy_gradient(np.zeros((0, 20_000)), privacy, 80, noise(purpose="size"))
    # of a sum: noise * clip; the gradient is the sum over the expected sample of 20 rows
    assert drawn.std() == pytest.approx(1.5 * 2.0 / 20, rel=0.03)
    assert abs(drawn.mean()) < 5 * 0.15 / np.sqrt(20_000)


def test_the_mean_gradient_is_the_clipped_one_over_the_expected_sample(model, rows):
    rng = np.random.default_rng(1)
    theta = model.initial_theta(rng)
    by_row = model.jacobian(theta, rows.x, rows.y)[1]
    found = noisy_gradient(by_row, RowPrivacy(0.3, 0.0, 0.5), len(rows), noise(purpose="mean"))
    by_hand = sum(g * min(1.0, 0.3 / np.linalg.norm(g)) for g in by_row) / 6
    np.testing.assert_allclose(found, by_hand)


def test_without_noise_or_clip_it_is_the_plain_optimizer(model, rows):
    theta = model.initial_theta(np.random.default_rng(2))
    result = train_privately(
        model, rows, theta, steps=3, learning_rate=0.1, l2=1e-3, privacy=RowPrivacy(1e6, 0.0, 1.0), noise=noise(a="b")
    )
    expected = adam_steps(theta, 0.1, 3, lambda point: model.loss_and_gradient(point, rows.x, rows.y)[1] + 2e-3 * point)
    np.testing.assert_allclose(result.theta, expected, atol=1e-12)
    np.testing.assert_array_equal(result.first_theta, theta)
    assert result.spent.evaluations == 3 * model.gradient_cost
    assert result.spent.circuits == 12 * result.spent.evaluations


def test_what_is_told_of_the_cost_does_not_depend_on_the_draw(model, rows):
    theta = model.initial_theta(np.random.default_rng(2))
    privacy = RowPrivacy(1.0, 1.0, 0.3)
    runs = [
        train_privately(model, rows, theta, steps=4, learning_rate=0.1, l2=0, privacy=privacy, noise=noise(run=str(n)))
        for n in range(3)
    ]
    assert len({run.spent.circuits for run in runs}) == 1
    assert np.abs(runs[0].theta - runs[1].theta).max() > 0
    again = train_privately(model, rows, theta, steps=4, learning_rate=0.1, l2=0, privacy=privacy, noise=noise(run="0"))
    np.testing.assert_array_equal(again.theta, runs[0].theta)


def test_what_cannot_be_bounded_is_refused(model, rows):
    with pytest.raises(DataError, match="not finite"):
        clipped(np.array([[np.nan, 1.0]]), 1.0)
    none = Rows(rows.x[:0], rows.y[:0])
    with pytest.raises(DataError, match="no training rows"):
        train_privately(
            model, none, np.zeros(3), steps=1, learning_rate=0.1, l2=0, privacy=RowPrivacy(1, 1, 1), noise=noise(a="c")
        )

"""Epsilon against closed forms and against dp-accounting's other accountant."""

import math

import pytest
from scipy.stats import norm

from llm_qfl.federation.errors import ConfigError
from llm_qfl.federation.privacy.accountant import TOLERANCE, Release, epsilon_of, noise_for

DELTA = 1e-5


def gaussian_delta(noise, epsilon):
    """Balle and Wang 2018, theorem 8, for sensitivity 1."""
    return norm.cdf(0.5 / noise - epsilon * noise) - math.exp(epsilon) * norm.cdf(-0.5 / noise - epsilon * noise)


@pytest.mark.parametrize("noise", [0.7, 1.0, 3.0, 20.0])
def test_one_gaussian_is_the_closed_form(noise):
    assert gaussian_delta(noise, epsilon_of([Release(noise)], DELTA)) == pytest.approx(DELTA, rel=1e-6)


def test_gaussians_compose_as_one():
    together = epsilon_of([Release(4.0, times=3), Release(2.0)], DELTA)
    assert together == pytest.approx(epsilon_of([Release(1 / math.sqrt(3 / 16 + 1 / 4))], DELTA))


@pytest.mark.parametrize(("noise", "rate", "times"), [(1.2, 0.05, 200), (0.9, 0.3, 30)])
def test_sampled_gaussians_lie_between_a_finer_reckoning_and_renyis_bound(noise, rate, times):
    from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    ours = epsilon_of([Release(noise, rate, times)], DELTA)
    relation = NeighboringRelation.REPLACE_SPECIAL
    fine = PLDAccountant(relation, value_discretization_interval=2e-4)
    loose = RdpAccountant(range(2, 64), relation)
    for accountant in (fine, loose):
        accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), times)
    assert fine.get_epsilon(DELTA) * (1 - 1e-6) <= ours <= loose.get_epsilon(DELTA)
    assert ours == pytest.approx(fine.get_epsilon(DELTA), rel=1e-2)


def test_many_kinds_are_bounded_from_above():
    many = [Release(2.0 + n / 100, 0.1, 5) for n in range(12)]
    one = [Release(2.0, 0.1, 60)]
    assert epsilon_of(one, DELTA) * 0.9 < epsilon_of(many, DELTA) < 2 * epsilon_of(one, DELTA)


def test_sampling_hides_and_more_steps_tell():
    plain, sampled = epsilon_of([Release(1.0, 1.0, 50)], DELTA), epsilon_of([Release(1.0, 0.1, 50)], DELTA)
    assert sampled < plain / 4
    assert epsilon_of([Release(1.0, 0.1, 60)], DELTA) > sampled
    assert epsilon_of([], DELTA) == 0
    assert epsilon_of([Release(1.0, 0.1, 0)], DELTA) == 0
    assert epsilon_of([Release(0.0)], DELTA) == math.inf


@pytest.mark.parametrize(("rate", "times"), [(1.0, 1), (1.0, 100), (0.2, 60), (0.01, 500)])
def test_calibrated_noise_spends_the_budget_and_no_more(rate, times):
    before = (Release(10.0),)
    noise = noise_for(2.0, DELTA, rate=rate, times=times, before=before)
    assert epsilon_of([*before, Release(noise, rate, times)], DELTA) <= 2.0
    assert epsilon_of([*before, Release(noise * (1 - 2 * TOLERANCE), rate, times)], DELTA) > 2.0


def test_nothing_left_is_said():
    with pytest.raises(ConfigError, match="spent"):
        noise_for(1.0, DELTA, rate=1.0, times=1, before=(Release(1.0),))

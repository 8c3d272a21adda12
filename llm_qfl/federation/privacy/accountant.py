"""What noise costs: epsilon of Gaussian releases, with and without Poisson sampling, by dp-accounting.

Neighbours are two data sets of which one has a null row (or site) in place of one of the other's (`REPLACE_SPECIAL`,
Kairouz et al. 2021): the number of rows is public, a row's content and whether it counts are not. Sampled Gaussians
compose by their privacy loss distributions, rounded upwards (Meiser and Mohammadi 2018; Koskela et al. 2020), plain
ones exactly (Balle and Wang 2018). Where there are many kinds of releases, or hardly any noise, distributions grow out
of hand; Rényi differential privacy (Mironov, Talwar and Zhang 2019) then gives a looser bound.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

from llm_qfl.federation.errors import ConfigError

_INTERVAL = 1e-3  # width of a step of a privacy loss distribution
_ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 512)  # Rényi's; those between whole numbers converge slowly or not
_MOST_KINDS, _LEAST_NOISE = 8, 0.3  # of privacy loss distributions
TOLERANCE = 1e-3
"""By which a calibrated noise multiplier may be larger than needed."""


@dataclass(frozen=True)
class Release:
    """`times` answers: each row is in with probability `rate`, the sum of what it adds gets Gaussian noise.

    Attributes:
        noise: standard deviation over the largest Euclidean length of what one row (or site) adds.
        rate: sampling probability; 1 is everyone.
        times: how often.
    """

    noise: float
    rate: float = 1.0
    times: int = 1


def epsilon_of(releases: Sequence[Release], delta: float) -> float:
    """Epsilon at `delta` of all releases together; 0 of none.

    Raises:
        ConfigError: dp-accounting is not installed.
    """
    done = [release for release in releases if release.times > 0]
    if not done:
        return 0.0
    if any(release.noise <= 0 for release in done):
        return math.inf
    accounting = _accounting()
    if all(release.rate >= 1 for release in done):
        # Gaussians on the same rows are one Gaussian: precisions add up.
        together = 1 / math.sqrt(sum(release.times / release.noise**2 for release in done))
        return float(accounting.get_epsilon_gaussian(together, delta))
    simple = len(done) <= _MOST_KINDS and min(release.noise for release in done) >= _LEAST_NOISE
    return _composed(done, delta, tight=simple)


def _composed(releases: Sequence[Release], delta: float, *, tight: bool) -> float:
    accounting, relation = _accounting(), _accounting().NeighboringRelation.REPLACE_SPECIAL
    if tight:
        accountant = accounting.pld.PLDAccountant(relation, value_discretization_interval=_INTERVAL)
    else:
        accountant = accounting.rdp.RdpAccountant(_ORDERS, relation)
    for release in releases:
        event = accounting.GaussianDpEvent(release.noise)
        if release.rate < 1:
            event = accounting.PoissonSampledDpEvent(release.rate, event)
        accountant.compose(event, release.times)
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=256)
def noise_for(epsilon: float, delta: float, *, rate: float, times: int, before: tuple[Release, ...] = ()) -> float:
    """The smallest noise multiplier with which `times` more releases stay within epsilon.

    Args:
        epsilon: of everything together.
        delta: of everything together.
        rate: sampling probability of the new releases.
        times: how many there will be.
        before: what is released beside them.

    Raises:
        ConfigError: what is released beside them leaves nothing; or dp-accounting is not installed.
    """
    if (spent := epsilon_of(before, delta)) >= epsilon:
        raise ConfigError(
            f"privacy.epsilon: {epsilon:g} is spent ({spent:.3g}) before the first step; raise it, or lower "
            "privacy.feature-share"
        )

    def fits(noise: float, tight: bool) -> bool:
        releases = [*before, Release(noise, rate, times)]
        return (epsilon_of(releases, delta) if tight else _composed(releases, delta, tight=False)) <= epsilon

    high = 1.0
    while not fits(high, tight=False):  # the loose bound is quick, whatever the noise
        high *= 2
    while high > 2e-2 and fits(high / 1.1, tight=False):
        high /= 1.1
    low = high
    while low > 2e-2 and fits(low, tight=True):
        low, high = low / 1.1, low
    while high - low > TOLERANCE * high:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle, tight=True) else (middle, high)
    return high


def _accounting() -> ModuleType:
    try:
        return importlib.import_module("dp_accounting")  # a second and a half that only private runs pay
    except ImportError as error:
        raise ConfigError(
            "privacy.unit: the accountant is not installed; install llm-qfl[privacy] (dp-accounting) on every side, "
            "or set privacy.unit=none"
        ) from error

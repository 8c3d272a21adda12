"""What noise costs: epsilon of Gaussian releases, with and without Poisson sampling, by dp-accounting.

Neighbours are two data sets of which one has a null row (or site) in place of one of the other's (`REPLACE_SPECIAL`,
Kairouz et al. 2021): the number of rows is public, a row's content and whether it counts are not. Sampled Gaussians
compose by Rényi differential privacy (Mironov, Talwar and Zhang 2019), plain ones exactly (Balle and Wang 2018).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

from llm_qfl.federation.errors import ConfigError

TOLERANCE = 1e-4
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
    accountant = accounting.rdp.RdpAccountant(neighboring_relation=accounting.NeighboringRelation.REPLACE_SPECIAL)
    for release in done:
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

    def fits(noise: float) -> bool:
        return epsilon_of([*before, Release(noise, rate, times)], delta) <= epsilon

    low = high = 1.0
    while not fits(high):
        low, high = high, 2 * high
    while low > 1e-3 and fits(low):
        low, high = low / 2, low
    while high - low > TOLERANCE * high:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _accounting() -> ModuleType:
    try:
        return importlib.import_module("dp_accounting")  # a second and a half that only private runs pay
    except ImportError as error:
        raise ConfigError(
            "privacy.unit: the accountant is not installed; install llm-qfl[privacy] (dp-accounting) on every side, "
            "or set privacy.unit=none"
        ) from error

"""The run config's section `privacy`: what one row, or one site, may give away."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from llm_qfl.federation.section import Section

if TYPE_CHECKING:
    from llm_qfl.federation.config import RunConfig

Unit = Literal["none", "record", "client-central", "client-local"]

FEW_CLIENTS = 100
"""Fewer clients than this, and the noise that hides one of them drowns their mean."""


class PrivacyConfig(Section):
    """Differential privacy; what it covers is named in the report."""

    unit: Unit = "none"
    """What is hidden: `none`; `record`, a row of a site, from everybody who sees what the site sends (DP-SGD, noise of
    the site); `client-central`, a site, from those who see the global model (noise of the server); `client-local`, a
    site, from the server too (noise of the site)."""
    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 8.0
    """Of the whole run. The noise is made for it; a site refuses a task that would go beyond."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """Of the whole run; below one over the number of rows (or sites)."""
    clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Longest gradient of a row (`record`) or update of a site (`client-...`), Euclidean; longer ones are scaled."""
    adapter_clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Longest update of a site's adapter (`client-...`), Euclidean over all matrices; longer ones are scaled."""
    feature_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of epsilon that the sums behind the feature map get, were they alone."""
    ranges: str = "none"
    """Lowest and highest value of every number of a row, known without looking at rows: `0:1` for all of them, or one
    pair a number, comma separated. Values beyond are cut off. Needed with every unit but `none`."""

    @property
    def on(self) -> bool:
        """Is anything hidden?"""
        return self.unit != "none"

    @property
    def bounds(self) -> tuple[tuple[float, float], ...]:
        """The ranges as numbers.

        Raises:
            ValueError: not such ranges.
        """
        pairs = []
        for part in self.ranges.split(","):
            low, _, high = part.partition(":")
            pair = (float(low), float(high))
            if not (math.isfinite(pair[0]) and math.isfinite(pair[1]) and pair[0] < pair[1]):
                raise ValueError(part)
            pairs.append(pair)
        return tuple(pairs)


def privacy_problems(config: RunConfig) -> list[str]:
    """Cross checks: what would leave a site uncovered is refused; one line per problem."""
    privacy, data = config.privacy, config.data
    if not privacy.on:
        return []
    unit, problems = f"privacy.unit={privacy.unit}", []
    try:
        privacy.bounds  # noqa: B018  a property that checks
    except ValueError:
        problems.append(
            f"privacy.ranges: {unit} needs low:high for all numbers of a row, or one pair each (0:1 or 0:30,5:40), "
            f"got {privacy.ranges!r}"
        )
    if data.class_list is None:
        problems.append(f"data.classes: which labels a site has is in its rows; {unit} needs them by name, got 'all'")
    if data.reduction == "pca":
        problems.append(f"data.reduction: with {unit} no products of features are sent; take discriminant or none")
    for key, value in (("data.test", data.test), ("data.validation", data.validation)):
        if value == "federated":
            problems.append(f"{key}: the sites' scores are not covered; {unit} needs server or file:<path>")
    problems += _record_problems(config) if privacy.unit == "record" else _client_problems(config)
    if config.language.enabled:
        problems += _language_problems(config)
    return problems


def _language_problems(config: RunConfig) -> list[str]:
    language, unit, problems = config.language.effective(), f"privacy.unit={config.privacy.unit}", []
    if config.privacy.unit == "record":
        return [f"language.model: the adapter's rows are not covered; {unit} needs none, got {language.model!r}"]
    if not language.federated:
        problems.append(f"language.method: {unit} hides a site in an average, {language.method!r} makes none")
    if language.wire != "fp32":
        problems.append(
            f"language.wire: what rounding loses would enter the next answer uncovered; {unit} needs fp32, got "
            f"{language.wire!r}"
        )
    if config.data.encoding == "language":
        problems.append(f"data.encoding: states of texts have no public ranges; {unit} needs numbers of rows")
    if config.agent.regulates:
        problems.append(f"agent.mode: sites tell no losses; {unit} needs qfl, got {config.agent.mode!r}")
    return problems


def _record_problems(config: RunConfig) -> list[str]:
    if config.training.optimizer != "adam":
        return [
            f"training.optimizer: privacy.unit=record clips gradients row by row, expected adam, got "
            f"{config.training.optimizer!r}"
        ]
    return []


def _client_problems(config: RunConfig) -> list[str]:
    server, unit, problems = config.server, f"privacy.unit={config.privacy.unit}", []
    if server.late != "dropped":
        problems.append(f"server.late: a late answer would count beside a fresh one; {unit} needs dropped")
    if server.weighting != "uniform":
        problems.append(f"server.weighting: a site counts once; {unit} needs uniform, got {server.weighting!r}")
    if config.privacy.unit == "client-central":
        if server.aggregation != "mean":
            problems.append(
                f"server.aggregation: the noise is made for the mean; {unit} needs mean, got {server.aggregation!r}"
            )
        if config.data.reduction != "discriminant":
            problems.append(f"data.reduction: {unit} needs discriminant, got {config.data.reduction!r}")
    return problems

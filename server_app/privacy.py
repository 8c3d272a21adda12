"""The server's part of privacy: its own noise (`client-central`), and what the report says of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llm_qfl.federation.combine import Combined
from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.config_privacy import FEW_CLIENTS
from llm_qfl.federation.data.sums import FeatureSums
from llm_qfl.federation.errors import FederationError
from llm_qfl.federation.privacy.accountant import Release, epsilon_of
from llm_qfl.federation.privacy.noise import SECRET_BYTES, SecretNoise, digest_arrays, noise_key
from llm_qfl.federation.privacy.releases import feature_release, training_release
from llm_qfl.federation.privacy.sums import from_moments, to_moments
from llm_qfl.federation.robust import scale_down, update_stats
from llm_qfl.federation.types import Array, ClientReport, GlobalState, Labels, RoundSummary

Json = dict[str, Any]

COVERS = {
    "record": "one training row of a site (its numbers, its label, whether it counts), from everybody who sees all "
    "that the site sends: the sums behind the feature map and the QNN's weights of every round",
    "client-local": "all rows of one site, from everybody who sees all that the site sends, the server too: the sums "
    "behind the feature map, the QNN's weights of every round and the adapter of every round that trains one",
    "client-central": "all rows of one site, from those who see the setup, the global QNN and the global adapter of "
    "every round and the final model; not from the server",
}
NOT_COVERED = (
    "the number of rows of each site",
    "names of columns and classes, and what the configuration says of rows (ranges, encoding)",
    "how long a site takes",
    "several rows of one person: k rows cost k times epsilon",
    "jobs on IBM Quantum: their service sees the angles of rows",
)
NOT_TOLD = "baselines and the sites' losses and scores: not computed or not sent"


@dataclass(eq=False)
class CentralNoise:
    """Noise of the server, from a secret of this process: nobody needs it again.

    Attributes:
        config: the run config.
        secret: at least 32 bytes.
    """

    config: RunConfig
    secret: bytes = field(default_factory=lambda: os.urandom(SECRET_BYTES), repr=False)

    def sums(self, sums: Sequence[tuple[str, FeatureSums]], by_class: Mapping[str, Labels]) -> FeatureSums:
        """One set of sums from all sites': each site counts with the mean of its rows, then comes the noise.

        Args:
            sums: (site, its sums within the public ranges).
            by_class: rows by class of each site, in the order of the sums' groups.

        Raises:
            FederationError: the noise left no class with enough rows.
        """
        privacy, data = self.config.privacy, self.config.data
        bounds, rows = privacy.bounds, [int(by_class[site].sum()) for site, _ in sums]
        means = [to_moments(one, by_class[site], bounds) / n for (site, one), n in zip(sums, rows, strict=True)]
        total = np.sum(means, axis=0)
        noise = self._stream("sums", digest_arrays(total))
        total = total + noise.gaussian(len(total), feature_release(self.config).noise)
        classes = data.class_list or ()
        everyone = sum(rows)
        found, _ = from_moments(
            total * (everyone / len(sums)), everyone, classes=classes, reduction=data.reduction,
            min_rows=data.min_rows, bounds=bounds,
        )  # fmt: skip
        if found is None:
            raise FederationError(
                "privacy.epsilon: the noise left no class with data.min-rows rows; raise it, or bring more sites"
            )
        return found

    def combine(self, state: GlobalState, reports: Sequence[ClientReport], planned: int) -> Combined:
        """The next state: clipped updates and noise over the sites that were asked, whether they answered or not.

        Args:
            state: that was sent.
            reports: accepted ones of this round.
            planned: sites that were given a task.
        """
        clip = self.config.privacy.clip
        ordered = sorted(reports, key=lambda report: report.site)
        updates = [report.theta - state.theta for report in ordered]
        scaled = [scale_down(update, clip) for update in updates]
        total: Array = np.sum([update for update, _ in scaled], axis=0)
        noise = self._stream(f"round {state.server_round}", digest_arrays(state.theta, total))
        release = training_release(self.config, 0, 1)
        change = (total + noise.gaussian(len(total), release.noise * clip)) / planned
        stats = update_stats(updates, [factor for _, factor in scaled], change, np.arange(len(ordered)))
        new = GlobalState(state.server_round, state.theta + change, state.parameter_names, state.baselines)
        return Combined(new, {report.site: one for report, one in zip(ordered, stats, strict=True)})

    def adapter(self, server_round: int, adapter_digest: str, updates: Sequence[Array], planned: int) -> Array:
        """The change of the adapter (P,): clipped updates and noise over the sites that were asked.

        Args:
            server_round: the round.
            adapter_digest: of the adapter that the updates are of.
            updates: (P,) each, in the order of the sites' names.
            planned: sites that were asked to train it.
        """
        clip = self.config.privacy.adapter_clip
        total: Array = np.sum([scale_down(update, clip)[0] for update in updates], axis=0)
        noise = self._stream(f"adapter {server_round} {adapter_digest}", digest_arrays(total))
        release = training_release(self.config, 0, 1)
        return np.asarray((total + noise.gaussian(len(total), release.noise * clip)) / planned)

    def epsilon(self, averages: int) -> float:
        """After so many averages, of the QNN's weights and of the adapter's together."""
        noise = training_release(self.config, 0, 1).noise
        releases = [feature_release(self.config), Release(noise, 1.0, averages)]
        return epsilon_of(releases, self.config.privacy.delta)

    def _stream(self, purpose: str, about: str) -> SecretNoise:
        return SecretNoise(noise_key(self.secret, purpose=purpose, about=about))


def privacy_notes(config: RunConfig, sites: Mapping[str, int]) -> list[str]:
    """What a person should know before the run: one line each.

    Args:
        config: the run config.
        sites: site -> training rows.
    """
    notes: list[str] = []
    privacy = config.privacy
    if not privacy.on:
        return notes
    if privacy.unit != "record" and len(sites) < FEW_CLIENTS:
        notes.append(
            f"privacy.unit={privacy.unit} with {len(sites)} sites: below about {FEW_CLIENTS} the noise that hides a "
            "site drowns the mean of all; expect a model that guesses"
        )
    least = min(sites.values(), default=1) if privacy.unit == "record" else len(sites)
    if privacy.delta > 1 / max(least, 1):
        what = "rows of the smallest site" if privacy.unit == "record" else "number of sites"
        notes.append(f"privacy.delta={privacy.delta:g} is more than one over the {what} ({least}); lower it")
    return notes


def privacy_json(config: RunConfig, rounds: Sequence[RoundSummary], past: Sequence[Json] = ()) -> Json | None:
    """The summary's part on privacy; None where nothing is hidden.

    Args:
        config: the run config.
        rounds: closed by this server.
        past: lines of rounds that an earlier server closed.
    """
    privacy = config.privacy
    if not privacy.on:
        return None
    sites: dict[str, float] = {}
    found = [(one["site"], one.get("epsilon")) for line in past for one in (*line["clients"], *line["late"])]
    found += [(report.site, report.epsilon) for summary in rounds for report in summary.work]
    for site, epsilon in found:
        if epsilon is not None:
            sites[site] = max(sites.get(site, 0.0), float(epsilon))
    central = None
    if privacy.unit == "client-central":
        done = sum(one.aggregated + (one.language is not None and one.language.aggregated) for one in rounds)
        done += sum(line["aggregated"] + bool((line["language"] or {}).get("aggregated")) for line in past)
        central = CentralNoise(config).epsilon(done)
    return {
        "unit": privacy.unit,
        "delta": privacy.delta,
        "epsilon_allowed": privacy.epsilon,
        "epsilon": central,
        "epsilon_by_site": dict(sorted(sites.items())),
        "covers": COVERS[privacy.unit],
        "not_covered": list(NOT_COVERED),
        "not_told": NOT_TOLD,
    }

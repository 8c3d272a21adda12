"""Where L_i and soft labels come from, where no language model is tuned: recorded trajectories, or a stand-in.

A recording is one real federation in which every site tunes its adapter in every language round: L_i on the site's
validation rows and the soft labels of its training rows, round by round. What the QNN is told to do changes neither, so
a recording holds for every policy on the same rows, deal and seed; only who is left out of a language round differs.
The stand-in is no language model: a linear one on all columns, made as good or bad as is asked for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from zipfile import BadZipFile

import numpy as np

from llm_qfl.federation.errors import LanguageError
from llm_qfl.federation.types import Array

if TYPE_CHECKING:
    from simulation.policy_world import World

FORMAT = 1


class Teacher(Protocol):
    """A language model of every site, as far as the QNN's side sees it."""

    @property
    def kind(self) -> str:
        """`none`, `recorded` or `stand-in`."""

    def loss(self, site: str, server_round: int) -> float | None:
        """L_i as it stands in a round, nats; None before the site has tuned anything."""

    def server_loss(self, server_round: int) -> float | None:
        """L_s likewise; None where the server has none."""

    def soft(self, site: str, server_round: int) -> Array | None:
        """Soft labels of the site's training rows (N, C), or None."""


@dataclass(frozen=True)
class NoTeacher:
    """Sites without a language model."""

    kind: str = "none"

    def loss(self, site: str, server_round: int) -> float | None:
        """None."""
        return None

    def server_loss(self, server_round: int) -> float | None:
        """None."""
        return None

    def soft(self, site: str, server_round: int) -> Array | None:
        """None."""
        return None


@dataclass(frozen=True, eq=False)
class Recording:
    """What every site's language model said in one federation.

    Attributes:
        losses: language round -> site -> L_i, nats.
        labels: language round -> site -> soft labels (N, C).
        about: what was recorded: model, data source, seed, sites.
        kind: `recorded`, or `stand-in`.
    """

    losses: Mapping[int, Mapping[str, float]]
    labels: Mapping[int, Mapping[str, Array]]
    about: Mapping[str, str] = field(default_factory=dict)
    kind: str = "recorded"

    def _round(self, server_round: int) -> int | None:
        return max((number for number in self.losses if number <= server_round), default=None)

    def loss(self, site: str, server_round: int) -> float | None:
        """See Teacher."""
        number = self._round(server_round)
        return None if number is None else self.losses[number].get(site)

    def server_loss(self, server_round: int) -> float | None:
        """See Teacher: the mean of the sites' stands in for it, as in a run with federated validation."""
        return None

    def soft(self, site: str, server_round: int) -> Array | None:
        """See Teacher."""
        number = self._round(server_round)
        return None if number is None else self.labels[number].get(site)

    def write(self, path: Path) -> None:
        """One npz: `about`, and `round/site/loss|soft` for each; whole or not at all."""
        arrays: dict[str, np.ndarray] = {"about": np.array(json.dumps({"format": FORMAT, **self.about}))}
        for number, sites in self.losses.items():
            for site, loss in sites.items():
                arrays[f"{number}/{site}/loss"] = np.array(loss)
            for site, soft in self.labels.get(number, {}).items():  # also of a site without validation rows
                arrays[f"{number}/{site}/soft"] = soft.astype(np.float32)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.stem}.partial.npz")
        np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]
        partial.replace(path)


def read_recording(path: Path) -> Recording:
    """Read a recording.

    Raises:
        LanguageError: there is none, or it is damaged.
    """
    losses: dict[int, dict[str, float]] = {}
    labels: dict[int, dict[str, Array]] = {}
    try:
        with np.load(path, allow_pickle=False) as data:
            about = json.loads(str(data["about"]))
            if about.pop("format") != FORMAT:
                raise ValueError(f"expected format {FORMAT}")
            for key in data.files:
                if key == "about":
                    continue
                number, site, what = key.split("/")
                if what == "loss":
                    losses.setdefault(int(number), {})[site] = float(data[key])
                else:
                    soft = np.asarray(data[key], np.float64)
                    labels.setdefault(int(number), {})[site] = soft / soft.sum(axis=1, keepdims=True)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise LanguageError(
            f"recording: {path} cannot be read ({type(error).__name__}: {error}); record anew"
        ) from error
    return Recording(losses, {number: labels.get(number, {}) for number in losses}, about)


def check_recording(recording: Recording, rows: Mapping[str, int], classes: int) -> None:
    """Does a recording belong to these sites' rows?

    Args:
        recording: to be used.
        rows: training rows by site.
        classes: C.

    Raises:
        LanguageError: a site is missing, or has other rows or classes.
    """
    for number, sites in recording.labels.items():
        for site, count in rows.items():
            if site not in sites or sites[site].shape != (count, classes):
                got = "nothing" if site not in sites else f"{sites[site].shape}"
                raise LanguageError(
                    f"recording: expected soft labels {(count, classes)} of {site} in round {number}, got {got}; "
                    "it was made for other rows, another deal or another seed"
                )


def stand_in(quality: float, *, every: int = 5, seed: int = 0) -> Callable[[World], Recording]:
    """A linear model on all columns in place of a language model, sharper from language round to language round.

    It says of itself that it is a stand-in; what is learned from it must say so, too.

    Args:
        quality: 1 leaves its logits as they are, 0 makes it guess.
        every: rounds between two language rounds.
        seed: of what it learns from.
    """

    def make(world: World) -> Recording:
        from sklearn.linear_model import LogisticRegression

        from client_app.data import site_rows
        from llm_qfl.federation.settings import NodeSettings

        config = world.opened.config
        settings = [NodeSettings.from_node_config(node) for node in world.nodes.values()]
        order = {name: n for n, name in enumerate(world.opened.setup.class_names)}
        rows = {own.site: site_rows(config, own, own.site) for own in settings}
        pool = next(iter(rows.values())).pool
        y = np.array([order[name] for name in pool.class_names])[pool.y]
        train = np.concatenate([one.parts["train"] for one in rows.values()])
        mean, deviation = pool.x[train].mean(axis=0), pool.x[train].std(axis=0) + 1e-9
        x = (pool.x - mean) / deviation
        some = np.random.default_rng(seed).permutation(train)[: max(len(train) // 2, 20)]
        model = LogisticRegression(C=0.1, max_iter=200).fit(x[some], y[some])
        if len(model.classes_) != len(order):
            raise LanguageError("stand-in: half of the rows lack a class; take another seed")
        logits = np.log(np.maximum(model.predict_proba(x), 1e-12))
        losses: dict[int, dict[str, float]] = {}
        labels: dict[int, dict[str, Array]] = {}
        rounds = range(1, config.server.rounds + 1, every)
        for step, number in enumerate(rounds, start=1):
            soft = _softmax(quality * math.sqrt(step / len(rounds)) * logits)
            labels[number] = {site: soft[one.parts["train"]] for site, one in rows.items()}
            losses[number] = {
                site: float(-np.log(soft[held, y[held]]).mean())
                for site, one in rows.items()
                if len(held := one.parts["validation"])
            }
        return Recording(losses, labels, {"model": f"linear, quality {quality:g}"}, "stand-in")

    return make


def _softmax(logits: Array) -> Array:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))

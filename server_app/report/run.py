"""A run folder as the page reads it: JSON as it is, and a few sums."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llm_qfl.federation.errors import RunFolderError

Json = Mapping[str, Any]

MODELS = {"qnn": "Quantum neural network", "logistic": "Logistic regression", "mlp": "Small neural network"}
SHORT = {"qnn": "quantum", "logistic": "logistic", "mlp": "small network"}


@dataclass(frozen=True)
class Run:
    """What a run folder says.

    Attributes:
        folder: where it lies.
        about: `config.json`; empty for a run that failed before its first round.
        rounds: the lines of `rounds.jsonl`.
        summary: `summary.json`.
        decisions: the lines of `decisions.jsonl`; empty where every round was alike.
    """

    folder: Path
    about: Json
    rounds: Sequence[Json]
    summary: Json
    decisions: Sequence[Json] = ()

    @cached_property
    def sites(self) -> Sequence[Json]:
        """Sites as in `config.json`."""
        return list(self.about.get("sites") or [])

    @cached_property
    def joined(self) -> Mapping[str, int]:
        """Sites that came after the run had begun, in that order, with the first round that they had a part in."""
        return {str(site): int(line["round"]) for line in self.rounds for site in line.get("joined") or []}

    @cached_property
    def members(self) -> Sequence[Json]:
        """All sites: those that joined have the training rows that their replies name, and no classes."""
        rows = {str(one["site"]): one["num_examples"] for line in self.rounds for one in line["clients"]}
        return [*self.sites, *({"site": site, "rows": {"train": rows.get(site)}} for site in self.joined)]

    @cached_property
    def classes(self) -> list[str]:
        """Class names in the order of the outputs."""
        return [str(name) for name in self.about.get("classes") or []]

    @property
    def federated_validation(self) -> bool:
        """Do the sites score? Then the loss on line t is that of the vector sent in t."""
        return self.about.get("validation_source") == "federated"

    def scores(self, model: str) -> Json:
        """Of the summary: `test_accuracy`, `test_loss`, ... of `qnn` or a baseline; empty where unknown."""
        if model == "qnn":
            return {**self.summary, "parameters": (self.about.get("circuit") or {}).get("parameters")}
        found = (self.summary.get("baselines") or {}).get(model)
        return found or {}

    def rows(self, part: str) -> int:
        """Rows of `train`, `validation` or `test` over all sites."""
        return sum(int((site.get("rows") or {}).get(part) or 0) for site in self.sites)

    def curve(self, model: str, what: str) -> list[tuple[int, float | None]]:
        """Validation `loss` or `accuracy` by the number of rounds that the scored vector has been through."""
        shift = 1 if self.federated_validation else 0
        points: list[tuple[int, float | None]] = []
        for line in self.rounds:
            scores = line.get("validation") if model == "qnn" else (line.get("baselines") or {}).get(model)
            points.append((int(line["round"]) - shift, (scores or {}).get(what)))
        if self.federated_validation and points:
            points.append((points[-1][0] + 1, self.scores(model).get(f"validation_{what}")))
        return points


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        RunFolderError: no `summary.json`, or a damaged file.
    """
    summary = _read(folder / "summary.json", required=True)
    about = _read(folder / "config.json", required=summary.get("status") != "failed")
    return Run(folder, about, _lines(folder / "rounds.jsonl"), summary, _lines(folder / "decisions.jsonl"))


def _lines(path: Path) -> list[Json]:
    try:
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: cannot be read ({error}); run again or restore the folder") from error


def _read(path: Path, *, required: bool) -> Json:
    if not required and not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{path}: expected a run folder's {path.name}, it cannot be read ({error}); name a folder that a run wrote"
        ) from error
    if not isinstance(value, dict):
        raise RunFolderError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value

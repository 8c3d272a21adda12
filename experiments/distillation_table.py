"""The distillation table as Markdown, from kept lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.distillation_tasks import ARMS, NONE, TASKS, Arm
from llm_qfl.federation.errors import FederationError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Paired:
    """Differences of an arm to lambda 0 on the same seeds.

    Attributes:
        mean: of the differences.
        low, high: 95% interval (Student's t over the seeds); NaN of fewer than two.
        pairs: how many.
    """

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def text(self) -> str:
        """With a star where the interval leaves out zero."""
        if self.pairs < 2:
            return f"{self.mean:+.3f}"
        star = " *" if self.low > 0 or self.high < 0 else ""
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f}){star}"


def paired(arm: Mapping[int, float], plain: Mapping[int, float]) -> Paired:
    """Compare by seed; seeds that one of the two lacks do not count.

    Raises:
        FederationError: no seed in common.
    """
    from scipy.stats import t

    both = sorted(set(arm) & set(plain))
    if not both:
        raise FederationError("distillation: no seed has both this arm and lambda 0; let the run finish a seed")
    found = np.array([arm[seed] - plain[seed] for seed in both])
    mean, count = float(found.mean()), len(found)
    if count < 2:
        return Paired(mean, math.nan, math.nan, count)
    half = float(t.ppf(0.975, count - 1) * found.std(ddof=1) / math.sqrt(count))
    return Paired(mean, mean - half, mean + half, count)


def by_seed(rows: Sequence[Row], arm: str, metric: str) -> dict[int, float]:
    """Test metric of an arm's lines."""
    return {row["seed"]: row["test"][metric] for row in rows if row["arm"] == arm}


def table_lines(rows: Sequence[Row]) -> list[str]:
    """Markdown: a table for each task.

    Raises:
        FederationError: arms of a task differ in evaluations on the same seed.
    """
    lines: list[str] = []
    for task in TASKS:
        mine = [row for row in rows if row["task"] == task]
        if mine:
            lines += ["", *task_lines(task, mine)]
    return lines


def task_lines(task: str, rows: Sequence[Row]) -> list[str]:
    """One table, with what teachers and student are worth above it."""
    seeds, splits = {row["seed"] for row in rows}, {row["split"] for row in rows}
    lines = [
        f"#### {task} (seeds: {len(seeds)}, splits: {len(splits)})",
        "",
        *standing(rows),
        "",
        f"A run costs {spent(rows)}, the same in every arm.",
        "",
        "| teacher | lambda | test accuracy | macro-recall | NLL, nats | NLL less that of lambda 0 | by split | "
        "NLL less that of the uniform teacher | accuracy less that of lambda 0 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    plain = {metric: by_seed(rows, NONE.name, metric) for metric in ("accuracy", "recall", "nll")}
    for arm in ARMS:
        found = {metric: by_seed(rows, arm.name, metric) for metric in plain}
        if not found["nll"]:
            continue
        cells = [mean_sd(list(values.values())) for values in found.values()]
        apart = [""] * 4
        if arm != NONE:
            smoothed = by_seed(rows, Arm(arm.weight, "uniform").name, "nll")
            apart = [
                paired(found["nll"], plain["nll"]).text,
                by_split(rows, found["nll"], plain["nll"]),
                paired(found["nll"], smoothed).text if smoothed and arm.kind != "uniform" else "",
                paired(found["accuracy"], plain["accuracy"]).text,
            ]
        kind = "none" if arm == NONE else arm.kind
        lines.append(f"| {kind} | {arm.weight:g} | {' | '.join([*cells, *apart])} |")
    return lines


def by_split(rows: Sequence[Row], arm: Mapping[int, float], plain: Mapping[int, float]) -> str:
    """Mean differences split by split: seeds that share a split are not independent."""
    split = {row["seed"]: row["split"] for row in rows}
    found: dict[int, list[float]] = {}
    for seed in sorted(set(arm) & set(plain)):
        found.setdefault(split[seed], []).append(arm[seed] - plain[seed])
    return ", ".join(f"{np.mean(values):+.3f}" for _, values in sorted(found.items()))


def standing(rows: Sequence[Row]) -> list[str]:
    """Teachers and student (lambda 0) on the same rows, as a table."""
    plain = [row for row in rows if row["arm"] == NONE.name]
    lines = ["| who, on which rows | NLL, nats | accuracy | macro-recall |", "|---|---|---|---|"]
    for part, title in (("validation", "the sites' validation rows"), ("test", "the test rows")):
        people = {
            "language models, each site's own": [row["teacher"]["own"][part] for row in plain],
            "language model, averaged": [row["teacher"]["averaged"][part] for row in plain],
            "QNN, lambda 0": [row[part] for row in plain],
        }
        for who, found in people.items():
            cells = [f"{np.mean([one[key] for one in found]):.3f}" for key in ("nll", "accuracy", "recall")]
            lines.append(f"| {who}, {title} | {' | '.join(cells)} |")
    return lines


def spent(rows: Sequence[Row]) -> str:
    """Evaluations and circuits of a run.

    Raises:
        FederationError: two arms of a seed differ.
    """
    for seed in {row["seed"] for row in rows}:
        found = {(row["evaluations"], row["circuits"]) for row in rows if row["seed"] == seed}
        if len(found) > 1:
            raise FederationError(
                f"distillation: expected equal evaluations in all arms, seed {seed} has {sorted(found)}; "
                "delete its lines"
            )
    evaluations = {row["evaluations"] for row in rows}
    if len(evaluations) > 1:
        return f"{min(evaluations):,} to {max(evaluations):,} evaluations over the seeds"
    circuits = np.mean([row["circuits"] for row in rows])
    return f"{evaluations.pop():,} evaluations ({circuits:,.0f} circuits)"


def mean_sd(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"

"""The tweet tables as Markdown, from kept lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.tweets_arms import TABLES

Row = Mapping[str, Any]
ROUTES = {
    "compressed-zero-shot": "compressed, untuned",
    "adap-emu": "AdapEmu",
    "adap-fu": "AdapFu",
    "adap-fu, no labels": "AdapFu, biases matched to a flat prior",
    "adap-fu-calibrated": "AdapFu, calibrated",
    "biases, train labels": "biases and scale fitted to training labels",
    "biases, no labels": "biases matched to a flat prior, no labels",
    "qnn": "QNN",
    "logistic": "logistic regression, federated",
    "logistic-central": "logistic regression, central, balanced",
}
ONE_ROUTE = ("zero-shot", "fedlora-tail", "fedlora-all")
METRIC = {"classification": "recall", "generation": "nll"}


def share(value: float, zero_shot: float, tail: float) -> float:
    """Part of the tail's gain over zero-shot; NaN where the tail gains nothing to speak of."""
    gain = tail - zero_shot
    return (value - zero_shot) / gain if abs(gain) > 1e-6 else float("nan")


def shares(rows: Sequence[Row], table: str, arm: str, route: str) -> list[float]:
    """A share for each seed that has the arm and both marks."""
    metric = METRIC[table]
    by = {(row["arm"], row["seed"]): row for row in rows if row["table"] == table}
    out = []
    for (name, seed), row in sorted(by.items()):
        zero, tail = by.get(("zero-shot", seed)), by.get(("fedlora-tail", seed))
        if name == arm and route in row and zero and tail:
            out.append(share(row[route][metric], zero["adap-fu"][metric], tail["adap-fu"][metric]))
    return out


def mean_sd(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def print_tables(rows: Sequence[Row]) -> None:
    """Both tables, arms in their order."""
    for table in TABLES:
        mine = [row for row in rows if row["table"] == table]
        if mine:
            print(f"\n### Tweets, {table} ({mine[0]['test_rows']} test rows; mean ± sd over seeds)\n")
            for line in table_lines(mine, table):
                print(line)


def table_lines(rows: Sequence[Row], table: str) -> list[str]:
    """Markdown of one table."""
    names = ("accuracy", "recall", "nll") if table == "classification" else ("nll", "text", "end")
    titles = (
        ("accuracy", "macro-recall", "NLL, nats")
        if table == "classification"
        else ("NLL a token", "of the text", "end token")
    )
    lines = [
        f"| arm | model | {' | '.join(titles)} | share of the tail's gain | public text | its labels used | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in TABLES[table]:
        mine = [row for row in rows if row["arm"] == arm.name]
        for route, label in ROUTES.items():
            found = [row[route] for row in mine if route in row]
            if not found:
                continue
            cells = [mean_sd([one[name] for one in found if name in one]) for name in names]
            part = mean_sd([100 * one for one in shares(rows, table, arm.name, route)], 0)
            title = label.replace("AdapFu", "full model") if arm.name in ONE_ROUTE else label
            public = "related" if arm.name in ONE_ROUTE and route.endswith("no labels") else arm.public
            used = "yes" if arm.labels else "no"
            lines.append(
                f"| {arm.name} | {title} | {' | '.join(cells)} | {part + ' %' if part else ''} | {public} | {used} "
                f"| {len(found)} |"
            )
    return lines

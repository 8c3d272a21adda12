"""The priced comparison as Markdown, from kept lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agent.choice import mutual_information
from experiments.priced_arms import PRICED, RULE
from experiments.priced_cells import CELLS, PRICES, ROUNDS
from experiments.priced_figures import BEST, EACH, MOST_FALLBACKS, ONE, QFL, Comparison, Row, comparisons, mean_log
from experiments.priced_ratios import Paired, of_deal, paired, pairs_of, ratio

BY_DEAL = (QFL, ONE, EACH, BEST, "linucb", "trees")


def table_lines(rows: Sequence[Row], static_one: str) -> list[str]:
    """Markdown: what everything comes to first, then cell by cell."""
    found = comparisons(rows, static_one)
    lines = summary_lines(found)
    for (cell, prices), one in found.items():
        seeds = len(one.by[one.qfl])
        splits = len({row["split"] for row in one.by[one.qfl].values()})
        kind = "/".join(sorted({row["teacher"] for row in one.rows}))
        about = f"seeds: {seeds}, on {splits} deals; {ROUNDS} rounds; language model: {kind}"
        lines += ["", f"#### {cell}, {prices} ({about})", ""]
        lines += [
            "| arm | priced cost to the target, full budget of qfl = 1 | never there | test accuracy where it ends |",
            "|---|---|---|---|",
        ]
        for arm in shown(one):
            figures = list(one.figures[arm].values())
            cost = math.exp(mean_log([figure.cost for figure in figures]))
            never = 1 - float(np.mean([figure.reached for figure in figures]))
            test = [figure.test for figure in figures]
            spread = f" ± {np.std(test, ddof=1):.3f}" if len(test) > 1 else ""
            lines.append(f"| {arm}{one.note(arm)} | {cost:.3f} | {never:.0%} | {np.mean(test):.3f}{spread} |")
    return lines


def shown(one: Comparison) -> list[str]:
    """Arms in the table's order."""
    order = [QFL, *RULE, ONE, EACH, *PRICED]
    return [arm for arm in order if arm in one.figures]


def summary_lines(found: Mapping[tuple[str, str], Comparison]) -> list[str]:
    """The policy beside every other arm: over all price lists, at each, and without the plays that are the rule's."""
    lines = [
        "| policy / other arm | prices | ratio of costs, 95% | Wilcoxon p | test accuracy, 95% | values |",
        "|---|---|---|---|---|---|",
    ]
    others = [QFL, ONE, EACH, BEST, *[arm for arm in PRICED if arm != "policy"]]
    for other in others:
        for prices in ("all", *PRICES):
            if pairs := pairs_of(found, other, prices):
                lines.append(f"| {other} | {prices} | {_cells(paired(pairs))} |")
    for other in others[:4]:
        if pairs := pairs_of(found, other, "all", decided=True):
            lines.append(f"| {other}, but for plays that count as the rule's | all | {_cells(paired(pairs))} |")
    return lines + by_deal_lines(found) + by_cell_lines(found) + verdict_lines(found) + information_lines(found)


def _cells(one: Paired) -> str:
    spread = f" ({one.accuracy_low:+.3f} to {one.accuracy_high:+.3f})" if one.values > 1 else ""
    return f"{ratio(one)} | {one.p:.2g} | {one.accuracy:+.3f}{spread} | {one.values}"


def by_deal_lines(found: Mapping[tuple[str, str], Comparison]) -> list[str]:
    """The same ratios on each deal alone: arms and targets as above, all price lists; what a deal moves."""
    splits = sorted({row["split"] for one in found.values() for row in one.by.get("policy", {}).values()})
    if not splits:
        return []
    lines = [
        "",
        f"| policy / other arm, 95% | {' | '.join(f'deal {split}' for split in splits)} |",
        "|---|" + "---|" * len(splits),
    ]
    for other in BY_DEAL:
        if pairs := pairs_of(found, other, "all"):
            there = [of_deal(pairs, split) for split in splits]
            lines.append(f"| {other} | {' | '.join(ratio(paired(one)) if one else '' for one in there)} |")
    return lines


def by_cell_lines(found: Mapping[tuple[str, str], Comparison]) -> list[str]:
    """Policy / static-one cell by cell, deals alike: where the language model wins, and where it loses."""
    lines = []
    for cell in sorted({cell for cell, _ in found}):
        there = [pairs_of({(cell, at): found[cell, at]}, ONE, at) for at in PRICES]
        if all(there):
            lines.append(f"| {cell} | {' | '.join(f'{paired(pairs).ratio:.2f}' for pairs in there)} |")
    if lines:
        lines = ["", f"| policy / static-one | {' | '.join(PRICES)} |", "|---|" + "---|" * len(PRICES), *lines]
    return lines


def verdict_lines(found: Mapping[tuple[str, str], Comparison]) -> list[str]:
    """Is the policy one, by the issue's own measure: do states that are not the run's own make it worse?"""
    pairs = pairs_of(found, "policy, shuffled state", "all")
    if len(pairs) < 2:
        return []
    one = paired({key: [(b, a) for a, b in both] for key, both in pairs.items()})
    word = "it depends on its state" if one.low > 1 else "**static**: nothing shows that its state is of any use to it"
    return ["", f"With shuffled states the policy costs {ratio(one)} times as much: {word}."]


def information_lines(found: Mapping[tuple[str, str], Comparison]) -> list[str]:
    """I(state; option | number of sites) of the policy, its fallbacks, the share of runs that are the rule's."""
    lines: list[str] = []
    for prices in PRICES:
        mine = [one for (_, at), one in found.items() if at == prices]
        rows = [row for one in mine for row in one.by.get("policy", {}).values()]
        if not rows:
            continue
        asked: dict[str, list[tuple[Any, int]]] = {}  # field -> (pi(.|s), sites) of every state
        for row in rows:
            for name, values in row.get("probabilities", {}).items():
                asked.setdefault(name, []).extend((np.array(value), CELLS[row["cell"]].sites) for value in values)
        told = ", ".join(
            f"{name} {mutual_information(*zip(*values, strict=True)):.3f}" for name, values in asked.items() if values
        )
        rates = [row.get("fallback_rate", 0.0) for row in rows]
        lines += [
            "",
            f"{prices}: I(state; option | sites), nats: {told or 'never asked'}. Decisions that the rule took over: "
            f"{np.mean(rates):.0%}; runs with more than a fifth of them, which count as the rule's: "
            f"{np.mean([rate > MOST_FALLBACKS for rate in rates]):.0%} of {len(rates)}.",
        ]
    return lines

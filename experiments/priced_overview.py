"""The priced comparison at a glance: every arm over all cells, before the ratios and the cells one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from experiments.priced_arms import LEARNERS, POLICY, RULE
from experiments.priced_cells import PRICES
from experiments.priced_figures import BEST, EACH, MOST_FALLBACKS, ONE, QFL, Comparison, Figure, best_rule, mean_log
from experiments.priced_ratios import paired, pairs_of, ratio

HINDSIGHT = (EACH, BEST)
"""Marks that no one can choose beforehand: of every cell and price list the best one of it."""


def overview_lines(found: Mapping[tuple[str, str], Comparison]) -> list[str]:
    """Markdown: geometric mean of the cost by price list, share that never got there, test accuracy, seeds.

    Cells count alike. The last column is of the seeds that the arm and the policy both have, as in the ratios below.

    Args:
        found: (cell, prices) -> comparison.
    """
    names = [QFL, ONE, *RULE, *LEARNERS, *POLICY, *HINDSIGHT]
    heads = ["arm", *PRICES, "never there", "test accuracy where it ends", "seeds", "deals", "policy / arm, 95%"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in names:
        cells = {key: figures for key, one in found.items() if (figures := _figures(one, name))}
        if not cells:
            continue
        costs = [_mean([cells[key] for key in cells if key[1] == prices]) for prices in PRICES]
        never = np.mean([np.mean([not one.reached for one in figures]) for figures in cells.values()])
        test = np.mean([np.mean([one.test for one in figures]) for figures in cells.values()])
        mark = " (in hindsight)" if name in HINDSIGHT else ""
        shown = " | ".join("" if cost is None else f"{cost:.3f}" for cost in costs)
        seeds = min(len(figures) for figures in cells.values())
        deals = min(len(_deals(one, name)) for key, one in found.items() if key in cells)
        pairs = {} if name == "policy" else pairs_of(found, name, "all")
        beside = ratio(paired(pairs)) if pairs else ""
        lines.append(f"| {name}{mark} | {shown} | {never:.0%} | {test:.3f} | {seeds} | {deals} | {beside} |")
    return lines


def miss_lines(found: Mapping[tuple[str, str], Comparison]) -> list[str]:
    """How many of the policy's plays miss the target, how near, and how many of them are the rule's."""
    plays = misses = touched = ruled = ruled_misses = 0
    for one in found.values():
        for seed, figure in one.figures.get("policy", {}).items():
            row = one.by["policy"][seed]
            rules = row.get("fallback_rate", 0.0) > MOST_FALLBACKS
            plays, ruled = plays + 1, ruled + rules
            if not figure.reached:
                misses, ruled_misses = misses + 1, ruled_misses + rules
                touched += max(row["accuracies"]) >= one.target(seed)
    if not plays:
        return []
    return [
        "",
        f"Of {plays} plays of the policy {misses} never hold the target for two rounds running; {touched} of them "
        f"touch it. In {ruled} the rule took more than a fifth of the decisions, in {ruled_misses} of those that miss.",
    ]


def _figures(one: Comparison, name: str) -> list[Figure]:
    return list(_by_seed(one, name).values())


def _deals(one: Comparison, name: str) -> set[int]:
    return {one.by[one.qfl][seed]["split"] for seed in _by_seed(one, name)}


def _by_seed(one: Comparison, name: str) -> Mapping[int, Figure]:
    arm = best_rule(one) if name == BEST else name
    return one.figures.get(arm, {}) if arm is not None else {}


def _mean(cells: list[list[Figure]]) -> float | None:
    """Geometric mean over the cells' own geometric means."""
    return math.exp(float(np.mean([mean_log([one.cost for one in cell]) for cell in cells]))) if cells else None

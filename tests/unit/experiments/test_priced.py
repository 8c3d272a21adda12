"""The priced table by hand, and that a killed run of it continues."""

import json
import math

import numpy as np
import pytest

from experiments.priced import FIRST_SEED, jobs, read_rows
from experiments.priced_arms import FREE, PRICED, STATIC, Makers
from experiments.priced_cells import CELLS, PRICES, Cell
from experiments.priced_table import Comparison, Figure, comparisons, paired, table_lines
from llm_qfl.federation.errors import FederationError


def line(arm, seed, accuracies, circuits, prices="any", **more):
    return {
        "cell": "breast-cancer 0.5",
        "seed": seed,
        "arm": arm,
        "prices": prices,
        "teacher": "recorded",
        "unit": [100, 10],
        "accuracies": accuracies,
        "circuits": circuits,
        "bytes": [10] * len(circuits),
        "test": accuracies[-1],
        **more,
    }


ROWS = [
    row
    for seed in (42, 43)
    for row in (
        line("m5 kall", seed, [0.5, 0.9, 1.0, 1.0], [100] * 4),
        line("m10 kall", seed, [0.5, 0.9, 0.9, 0.9], [200] * 4),
        line("m1 k2", seed, [0.5, 0.6, 1.0, 1.0], [4] * 4),
        line("m2 k2", seed, [0.5, 0.6, 0.7, 0.8], [8] * 4),
        line("rule adaptive", seed, [1.0, 1.0, 1.0, 1.0], [100] * 4, grew=0.0),
        *(
            line("policy", seed, [0.5, 1.0, 1.0, 1.0], [10] * 4, prices, probabilities={"budget": [[1, 0], [0, 1]]})
            for prices in PRICES
        ),
    )
]


def test_figures_by_hand():
    one = Comparison(ROWS, "circuits dear", "m2 k2")
    assert one.qfl == "m5 kall"
    assert one.target == pytest.approx(0.98)
    # a round of the plan costs 1: .9 for 100 circuits, .08, .02 for 10 bytes
    full = 4.0
    assert one.figures["m1 k2"][42] == Figure(pytest.approx(4 * (0.9 * 0.04 + 0.1) / full), True, 1.0)
    never = one.figures["m2 k2"][42]
    assert (never.cost, never.reached) == (pytest.approx(1.0), False)
    assert one.figures["static-each"] is one.figures["m1 k2"]
    assert one.figures["static-one"] is one.figures["m2 k2"]
    assert one.note("rule adaptive") == " (inert)"
    policy = one.figures["policy"][42]
    assert policy.cost == pytest.approx(3 * (0.9 * 0.1 + 0.1) / full)


def test_a_table_of_all_price_lists():
    text = "\n".join(table_lines(ROWS, "m1 k2"))
    assert text.count("####") == len(PRICES)
    assert "| static-each (m1 k2) |" in text
    assert "| qfl | " in text
    assert "I(state; option), nats: budget 0.693" in text
    assert "language model: recorded" in text


def test_paired_ratios_by_hand():
    mine = [Figure(cost, True, 0.9) for cost in (1.0, 2.0, 4.0)]
    other = [Figure(2.0, True, 0.8)] * 3
    found = paired(mine, other)
    assert found.ratio == pytest.approx(1.0)
    assert found.accuracy == pytest.approx(0.1)
    half = 4.302652729911275 * math.log(2) / math.sqrt(3)  # Student's t, 2 degrees of freedom
    assert (found.low, found.high) == (pytest.approx(math.exp(-half)), pytest.approx(math.exp(half)))
    same = paired(other, other)
    assert (same.ratio, same.p) == (1.0, 1.0)


def test_every_cell_of_the_issue_is_there():
    assert len(CELLS) == 10
    assert {cell.sites for cell in CELLS.values() if cell.alpha == 0.5} == {10}
    assert Cell("breast-cancer", 0.1).sites == 4
    assert Cell("dna", 0.1).sites == 10
    assert len(STATIC) == 20
    assert {key[0] for key in comparisons(ROWS, "m1 k2")} == {"breast-cancer 0.5"}


def test_arms_without_prices_run_once():
    found = list(jobs(["breast-cancer 0.5"], 1, [*FREE, *PRICED]))
    assert len(found) == len(FREE) + 3 * len(PRICED)
    assert len(set(found)) == len(found)
    assert {key[1] for key in found} == {FIRST_SEED}


def test_a_killed_run_continues(tmp_path):
    keep = tmp_path / "priced.jsonl"
    assert read_rows(keep) == []
    keep.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1])[:30])
    assert [row["arm"] for row in read_rows(keep)] == ["m5 kall"]
    assert keep.read_text().endswith("\n")  # the cut line is gone: the next one stands on its own
    keep.write_text("{\n" + json.dumps(ROWS[0]) + "\n")
    with pytest.raises(FederationError, match="damaged"):
        read_rows(keep)


def test_a_policy_that_is_not_there_is_said(tmp_path):
    makers = Makers(None, tmp_path / "worlds.jsonl", tmp_path)
    with pytest.raises(FederationError, match="needs a policy file"):
        _ = makers.file
    with pytest.raises(FederationError, match="no experience"):
        _ = makers.lines
    with pytest.raises(FederationError, match="no arm"):
        makers.make("magic", None, 0)
    assert callable(makers.make("m1 k2", None, 0))
    assert np.isfinite(len(FREE))

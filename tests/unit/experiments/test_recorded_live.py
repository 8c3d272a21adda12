"""Recorded beside live language models: the table by hand, and that both kinds of play decide by the same keys."""

from pathlib import Path
from types import SimpleNamespace

from agent import SHIPPED
from agent.prices import Prices
from experiments.priced_arms import KEYS
from experiments.recorded_live import CHOSEN, FIRST, differences, live_keys, play_recorded, tables
from llm_qfl.federation.config import RunConfig, default_run_config
from simulation.lines import read_lines
from simulation.policy_arms import Uniform, scored
from simulation.policy_world import Case, open_world

CELL = "breast-cancer 0.5"


def priced(arm, accuracies, circuits):
    return {
        "cell": CELL,
        "seed": 42,
        "split": 42,
        "arm": arm,
        "prices": "any",
        "unit": [100, 10],
        "accuracies": accuracies,
        "circuits": circuits,
        "bytes": [10] * len(circuits),
        "tests": accuracies,
        "static_one": "m5 kall",
    }


def row(kind, steps, accuracies, losses):
    return {
        "cell": CELL,
        "seed": 42,
        "kind": kind,
        "unit": [100, 10],
        "plans": [[[["site-0000", number]], 0.0] for number in steps],
        "circuits": [100] * 4,
        "bytes": [10] * 4,
        "accuracies": accuracies,
        "language": [{"site-0000": loss, "site-0001": None} for loss in losses],
    }


def test_the_table_by_hand():
    fixed = [priced("m5 kall", [0.9, 1.0, 1.0, 1.0], [100] * 4)]
    recorded = row("recorded", [5, 5, 2, 2], [1.0, 1.0, 1.0, 1.0], [0.5, 0.5, 0.4, 0.4])
    live = row("live", [5, 5, 2, 1], [0.5, 0.5, 0.5, 0.75], [0.5, 0.3, 0.4, 0.5])
    line = tables([recorded, live], fixed).splitlines()[-1]
    cells = [part.strip() for part in line.strip("|").split("|")]
    # (0 - .2 + 0 + .1) / 4; two of four rounds of the plan's own price; nobody gets there: the whole budget
    assert cells == [CELL, "-0.025, 0.200", "3 of 4", "0.500", "1.000 (never there)", "1.000", "0.750"]


def test_a_federation_with_one_of_both_has_no_line():
    fixed = [priced("m5 kall", [0.9, 1.0, 1.0, 1.0], [100] * 4)]
    assert len(tables([row("live", [5] * 4, [1.0] * 4, [0.5] * 4)], fixed).splitlines()) == 2


def test_only_losses_that_both_have_are_compared():
    assert differences([{"a": 1.0, "b": None}, {"a": 2.0}], [{"a": 1.5, "b": 3.0}, {"c": 1.0}]) == [0.5]


def test_a_live_run_decides_by_the_keys_of_the_recorded_one():
    """What `scored` gives its decider and what a whole run is told: the same section, the same first budget."""
    prices = Prices(1e-5, 0.5, 1e-6)
    case = Case("breast-cancer", sites=2, alpha=5.0, seed=5, rounds=2)
    decider = scored(Uniform(), prices, first=FIRST, agent=KEYS["policy"])(open_world(case))
    flat = {**default_run_config(), **case.flat(), "language.model": "tiny", **live_keys(prices, SHIPPED)}
    config = RunConfig.from_run_config(flat)
    assert config.agent.policy == str(SHIPPED)
    assert config.agent.model_copy(update={"policy": "embedded"}) == decider.agent
    assert decider.means.first_budget == decider.setting.cost.evaluations(config.training.steps)
    assert decider.setting.prices == prices


def test_a_recorded_play_is_told_whole():
    world = open_world(Case("breast-cancer", sites=2, alpha=5.0, seed=5, rounds=3))
    makers = SimpleNamespace(remembered=Uniform(), file=SimpleNamespace(ranges=None))
    found = play_recorded(world, makers, Prices(1e-5, 0.5, 1e-6))
    assert {len(found[key]) for key in ("plans", "by", "circuits", "bytes", "language", "server", "accuracies")} == {3}
    assert len(dict(found["plans"][0][0])) == 2
    assert sum(found["circuits"]) > 0


def test_the_page_shows_what_the_kept_lines_say():
    project = Path(__file__).resolve().parents[3]
    rows, priced_rows = (
        read_lines(project / "experiments" / "kept" / name) for name in ("recorded-live.jsonl.gz", "priced.jsonl.gz")
    )
    assert {row["cell"] for row in rows} == set(CHOSEN)
    assert len({row["made"] for row in rows}) == len(CHOSEN)  # a recording each, one policy
    readme = (project / "README.md").read_text()
    for line in tables(rows, priced_rows).splitlines():
        assert line in readme

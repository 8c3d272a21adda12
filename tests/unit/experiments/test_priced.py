"""The priced table by hand, and that a killed run of it continues."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest

from agent.actions import Budget
from agent.shield import everything
from experiments import priced, priced_cells
from experiments.priced import Places, jobs, made_with, run_missing, setting_of, tables
from experiments.priced_arms import FREE, KEYS, PRICED, STATIC, Makers
from experiments.priced_cells import CELLS, FIRST_SEED, PRICES, Cell, split_of, unit
from experiments.priced_figures import Comparison, Figure, comparisons
from experiments.priced_overview import miss_lines, overview_lines
from experiments.priced_ratios import paired, pairs_of
from experiments.priced_table import by_cell_lines, by_deal_lines, table_lines, verdict_lines
from llm_qfl.federation.errors import FederationError
from llm_qfl.language.files import file_digest
from simulation.lines import mend, read_lines
from simulation.policy_arms import TRUSTED, Uniform, scored, static
from simulation.policy_states import prices_of
from simulation.policy_world import Case, open_world

STATE = (
    " ".join(["45021211"] * 4) + "\nsites 4 round 1 left 9 loss 6 gap 1 fall 000 distance 2 ratio 0 asked 3 steps 2 "
    "noise 1 queue 0 circuits 4 rounds 4 bytes 4"
)


def line(arm, seed, accuracies, circuits, prices="any", **more):
    return {
        "cell": "breast-cancer 0.5",
        "seed": seed,
        "split": seed,
        "arm": arm,
        "prices": prices,
        "teacher": "recorded",
        "unit": [100, 10],
        "accuracies": accuracies,
        "circuits": circuits,
        "bytes": [10] * len(circuits),
        "tests": [value - 0.01 for value in accuracies],
        "made": "here",
        "recording": None,
        "static_one": "m1 k2",
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


def test_a_cell_without_the_fixed_plan_says_what_to_do():
    with pytest.raises(FederationError, match="no line of mode qfl in this cell; let the run finish"):
        tables([row for row in ROWS if row["arm"] == "policy"])


def test_figures_by_hand():
    one = Comparison(ROWS, "circuits dear", "m2 k2")
    assert one.qfl == "m5 kall"
    assert one.target(42) == pytest.approx(0.98)
    # a round of the plan costs 1: .9 for 100 circuits, .08, .02 for 10 bytes
    full = 4.0
    assert one.figures["m1 k2"][42] == Figure(pytest.approx(4 * (0.9 * 0.04 + 0.1) / full), True, 0.99)
    never = one.figures["m2 k2"][42]
    assert (never.cost, never.reached, never.test) == (pytest.approx(1.0), False, pytest.approx(0.79))
    assert one.figures["static-each"] is one.figures["m1 k2"]
    assert one.figures["static-one"] is one.figures["m2 k2"]
    assert one.note("rule adaptive") == " (raised in 0% of the rounds, inert in 2 of 2 seeds)"
    policy = one.figures["policy"][42]
    assert policy.test == pytest.approx(0.99)  # in the round in which it had held the target, not in the last
    assert policy.cost == pytest.approx(3 * (0.9 * 0.1 + 0.1) / full)


def test_a_deal_has_its_own_target():
    """Validation rows that nobody gets right above .8 are no miss of anybody's."""
    hard = [
        {**row, "seed": 62, "split": 62, "accuracies": [0.8 * value for value in row["accuracies"]]}
        for row in ROWS
        if row["seed"] == 42
    ]
    one = Comparison([*ROWS, *hard], "circuits dear", "m2 k2")
    assert (one.qfl, one.target(42)) == ("m5 kall", pytest.approx(0.98))
    assert one.target(62) == pytest.approx(0.98 * 0.8)
    lacking = [row for row in [*ROWS, *hard] if (row["arm"], row["seed"]) != ("m10 kall", 62)]
    fair = [{**row, "accuracies": [0.5, 0.95, 0.95, 0.95]} if row["arm"] == "m10 kall" else row for row in lacking]
    # over all its seeds m10 has the higher mean, since it lacks the hard deal; over those that both have m5 has
    assert Comparison(fair, "circuits dear", "m2 k2").qfl == "m5 kall"
    assert one.figures["policy"][62].cost == one.figures["policy"][42].cost


def test_arms_are_chosen_as_ratios_weigh_them_a_deal_once():
    """Three seeds of a deal where a is a little cheaper, one of another where b is so by far."""
    seeds = (42, 43, 44, 62)
    rows = [line("m5 kall", seed, [1.0] * 4, [1] * 4, split=max(seed, 44)) for seed in seeds]
    one = Comparison([{**row} for row in rows], "mixed", "")
    a = dict(zip((42, 43, 44, 62), (0.4, 0.4, 0.4, 0.9), strict=True))
    b = dict(zip((42, 43, 44, 62), (0.5, 0.5, 0.5, 0.3), strict=True))
    arms = {
        name: {seed: Figure(cost, True, 1.0) for seed, cost in costs.items()} for name, costs in (("a", a), ("b", b))
    }
    assert one.cheapest(arms) == "b"
    fewer = {name: {seed: figure for seed, figure in found.items() if seed != 62} for name, found in arms.items()}
    assert one.cheapest(fewer) == "a"


def test_a_table_of_all_price_lists():
    text = "\n".join(table_lines(ROWS, "m1 k2"))
    assert text.count("####") == len(PRICES)
    assert "| static-each (m1 k2) |" in text
    assert "| qfl | " in text
    assert "I(state; option | sites), nats: budget 0.693" in text
    assert "language model: recorded" in text


def test_a_run_that_spends_more_than_the_budget_and_misses_counts_what_it_spent():
    rows = [*ROWS, *(line("m20 k2", seed, [0.5] * 4, [900] * 4) for seed in (42, 43))]
    one = Comparison(rows, "circuits dear", "m2 k2")
    assert one.figures["m20 k2"][42].cost == pytest.approx(0.9 * 9 + 0.1)


def test_every_arm_at_a_glance_by_hand():
    """Two cells count alike, whatever their seeds; an arm that is missing has no line."""
    other = [{**row, "cell": "digits 0.5"} for row in ROWS if row["seed"] == 42]
    other = [{**row, "circuits": [40] * 4} if row["arm"] == "policy" else row for row in other]
    lines = overview_lines(comparisons([*ROWS, *other], "m2 k2"))
    policy = next(line for line in lines if line.startswith("| policy |"))
    dear = math.sqrt(3 * (0.9 * 0.1 + 0.1) / 4 * 3 * (0.9 * 0.4 + 0.1) / 4)  # three of four rounds, 10 and 40 circuits
    assert policy.split("|")[2].strip() == f"{dear:.3f}"
    assert policy.split("|")[5].strip() == "0%"
    static = next(line for line in lines if line.startswith("| static-one |"))
    told = [part.strip() for part in static.split("|")[2:]]
    assert told[:7] == ["1.000", "1.000", "1.000", "100%", "0.790", "1", "1"]
    shares = {0.1: (0.19, 0.928, 0.595), 0.4: (0.46, 0.952, 0.73)}  # of a round's price, at 10 and at 40 circuits
    costs = [math.prod(0.75 * share for share in shares[part]) ** (1 / 3) for part in (0.1, 0.1, 0.4)]
    assert told[7].split(" (")[0] == f"{math.prod(costs) ** (1 / 3):.2f}"
    assert policy.split("|")[9].strip() == ""
    assert any(line.startswith("| best rule (in hindsight) |") for line in lines)
    assert not any("linucb" in line for line in lines)


def test_misses_of_the_policy_are_counted():
    """Seed 43 touches the target once and is the rule's; at three price lists."""
    rows = [
        {**row, "accuracies": [0.5, 1.0, 0.9, 0.9], "fallback_rate": 0.5}
        if (row["arm"], row["seed"]) == ("policy", 43)
        else row
        for row in ROWS
    ]
    (_, line) = miss_lines(comparisons(rows, "m1 k2"))
    assert line.startswith(
        "Of 6 plays of the policy 3 never hold the target for two rounds running; 3 of them touch it."
    )
    assert line.endswith("In 3 the rule took more than a fifth of the decisions, in 3 of those that miss.")


def test_paired_ratios_by_hand():
    mine = [Figure(cost, True, 0.9) for cost in (1.0, 2.0, 4.0)]
    other = Figure(2.0, True, 0.8)
    found = paired({("a", seed): [(one, other)] for seed, one in enumerate(mine)})
    assert found.ratio == pytest.approx(1.0)
    assert (found.accuracy, found.accuracy_low) == (pytest.approx(0.1), pytest.approx(0.1))
    half = 4.302652729911275 * math.log(2) / math.sqrt(3)  # Student's t, 2 degrees of freedom
    assert (found.low, found.high) == (pytest.approx(math.exp(-half)), pytest.approx(math.exp(half)))
    same = paired({("a", seed): [(other, other)] for seed in range(3)})
    assert (same.ratio, same.p) == (1.0, 1.0)


def test_a_federation_that_is_priced_three_times_is_one():
    """Copies of a run are no repetition: they change neither the interval nor p nor the count."""
    random = np.random.default_rng(0)
    costs = {("abcd"[n % 4], n): math.exp(0.3 * random.normal()) for n in range(12)}
    once = {key: [(Figure(cost, True, 0.9), Figure(1.0, True, 0.9))] for key, cost in costs.items()}
    thrice = {key: one * 3 for key, one in once.items()}
    assert paired(once) == paired(thrice)
    assert paired(once).values == 4  # cells, whose deals are averaged
    cells = [np.mean([math.log(cost) for (cell, _), cost in costs.items() if cell == name]) for name in "abcd"]
    half = 3.182446305284263 * np.std(cells, ddof=1) / 2  # over cells: Student's t, 3 degrees of freedom
    assert math.log(paired(once).high) == pytest.approx(np.mean(cells) + half)


def test_two_reductions_of_one_data_set_are_one_federation():
    rows = [{**row, "cell": f"tweets-{kind} 0.5"} for kind in ("pca", "discriminant") for row in ROWS]
    found = comparisons(rows, "m1 k2")
    assert set(pairs_of(found, "qfl", "all")) == {("tweets 0.5", 42), ("tweets 0.5", 43)}
    assert {len(both) for both in pairs_of(found, "qfl", "all").values()} == {6}
    assert {len(both) for both in pairs_of(found, "qfl", "mixed").values()} == {2}


@pytest.mark.parametrize(("factor", "word"), [(1.0, "**static**"), (3.0, "it depends on its state")])
def test_a_policy_that_shuffled_states_do_not_hurt_is_called_static(factor, word):
    rows = list(ROWS)
    for seed in (42, 43):
        spent = [int(10 * factor) + seed % 2] * 4
        rows += [line("policy, shuffled state", seed, [0.5, 1, 1, 1], spent, prices) for prices in PRICES]
    assert word in "\n".join(verdict_lines(comparisons(rows, "m1 k2")))


def test_runs_that_the_rule_took_over_are_counted():
    rows = [{**row, "fallback_rate": 0.5 if row["seed"] == 42 else 0.1} for row in ROWS]
    assert "count as the rule's: 50% of 2" in "\n".join(table_lines(rows, "m1 k2"))


def test_a_round_of_the_configured_plan_costs_what_the_unit_says(tmp_path):
    """Batches and all: the price lists divide a round as they say they do."""
    for more in ((), (("training.batch-size", 20),)):
        world = open_world(Case("breast-cancer", 4, 0.5, 0, 2, more))
        played = world.play(static(STATIC["m10 kall"]))
        circuits, transferred = unit(world)
        assert played.circuits == (circuits, circuits)
        assert transferred == pytest.approx(played.bytes[-1], rel=0.15)
        prices = prices_of(PRICES["mixed"], circuits, transferred)
        assert played.costs(prices)[-1] == pytest.approx(1.0, rel=0.02)


KEY = ("breast-cancer 0.5", 42, "policy", "mixed")


def test_lines_of_another_policy_are_refused(tmp_path):
    policy, places = tmp_path / "policy.json", Places(tmp_path, tmp_path)
    policy.write_text("one")
    makers = Makers(policy, tmp_path / "worlds.jsonl", tmp_path)
    assert makers.learned_from("policy")[1:] == [file_digest(policy)]
    assert "stop_plateau" in makers.learned_from("policy")[0]  # and the keys that it is played with
    assert makers.learned_from("m1 k2") == []
    made = made_with(makers.learned_from("policy"), "none")
    keep = tmp_path / "priced.jsonl"
    about = dict(zip(("cell", "seed", "arm", "prices"), KEY, strict=True))
    keep.write_text(json.dumps({**about, "split": 42, "made": made, "recording": None}) + "\n")
    run_missing([KEY], keep, places, makers, "none", 20)  # nothing is missing
    other = (KEY[0], KEY[1] + 1, *KEY[2:])
    keep.write_text(json.dumps({**about, "seed": other[1], "split": 43, "made": made, "recording": None}) + "\n")
    with pytest.raises(FederationError, match="another policy, experience, split"):
        run_missing([other], keep, places, makers, "none", 20)  # seed 43 on the deal of 42
    policy.write_text("two")
    with pytest.raises(FederationError, match="made with another policy"):
        run_missing([other], keep, places, makers, "none", 1)


def test_a_deal_has_so_many_seeds_and_those_of_one_deal_count_once():
    assert [split_of(FIRST_SEED + n, 3) - FIRST_SEED for n in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    assert split_of(FIRST_SEED + 19, 1) == FIRST_SEED + 19
    apart = paired(pairs_of(comparisons(ROWS, "m1 k2"), "m1 k2", "mixed"))
    shared = [{**row, "split": FIRST_SEED} for row in ROWS]
    together = paired(pairs_of(comparisons(shared, "m1 k2"), "m1 k2", "mixed"))
    assert (apart.values, together.values) == (len({row["seed"] for row in ROWS}), 1)
    assert together.ratio == pytest.approx(apart.ratio)


def test_recordings_that_are_missing_are_told_before_anything_is_played(tmp_path):
    makers, keep = Makers(None, tmp_path / "worlds.jsonl", tmp_path), tmp_path / "priced.jsonl"
    wanted = [("digits 0.1", 42, "m1 k2", "any"), ("digits 0.1", 43, "m1 k2", "any")]
    places = Places(tmp_path, tmp_path)
    places.recording(CELLS["digits 0.1"], 42).parent.mkdir()
    places.recording(CELLS["digits 0.1"], 42).write_bytes(b"")
    with pytest.raises(FederationError, match=r"no recording of digits 0.1, deal 43; .*--first 43 --deals 1"):
        run_missing(wanted, keep, places, makers, "recorded", 1)
    assert not keep.exists()


def test_lines_of_another_recording_are_refused_and_those_whose_recording_is_elsewhere_stay(tmp_path):
    policy, places = tmp_path / "policy.json", Places(tmp_path, tmp_path)
    policy.write_text("one")
    makers = Makers(policy, tmp_path / "worlds.jsonl", tmp_path)
    keep = tmp_path / "priced.jsonl"
    about = dict(zip(("cell", "seed", "arm", "prices"), KEY, strict=True))
    made = made_with(makers.learned_from("policy"), "recorded")
    keep.write_text(json.dumps({**about, "split": 42, "made": made, "recording": "0" * 16}) + "\n")
    run_missing([KEY], keep, places, makers, "recorded", 20)  # as in a fresh clone: nothing is played, nothing compared
    recording = places.recording(CELLS[KEY[0]], KEY[1])
    recording.parent.mkdir()
    recording.write_bytes(b"another")
    with pytest.raises(FederationError, match="recording"):
        run_missing([KEY], keep, places, makers, "recorded", 20)


def test_experience_is_known_by_what_it_says_not_by_where_its_tables_lie(tmp_path):
    lines = []
    for folder, accuracy in (("a", 0.5), ("b", 0.5), ("c", 0.6)):
        path = tmp_path / f"{folder}.jsonl"
        case = {"source": f"csv:/{folder}/tables/clusters-0.csv", "seed": 0}
        last = accuracy * (1 + 1e-14 * len(lines))  # machines differ in the last digits
        path.write_text(json.dumps({"case": case, "plays": [{"accuracies": [last]}]}) + "\n")
        lines.append(Makers(None, path, tmp_path).learned_from("linucb"))
    assert lines[0] == lines[1] != lines[2]


def test_trees_are_known_by_their_experience_and_need_no_policy(tmp_path):
    made = []
    for name, cheap in (("a", "1"), ("b", "20")):
        plays = [
            {
                "once": once,
                "options": {"budget": steps, "clients": "all"},
                "accuracies": [0.0, *[0.0] * (0 if steps == cheap else 9), 1.0, 1.0],
                "circuits": [1] * (3 if steps == cheap else 12),
                "bytes": [1] * (3 if steps == cheap else 12),
            }
            for steps in ("1", "20")
            for once in (False, True)
        ]
        first = {
            "by": "first",
            "after": 0,
            "state": STATE,
            "masked": [],
            "plays": [one for one in plays if one["once"]],
        }
        about = {"target": 0.9, "fixed": {"circuits": 1.0, "bytes": 1.0}, "plan": {"circuits": 1, "bytes": 1}}
        about |= {"case": {"rounds": 40, "source": "csv:x"}, "branches": [first]}
        path = tmp_path / f"{name}.jsonl"
        plays = [one for one in plays if not one["once"]]
        path.write_text("".join(json.dumps({"number": n, **about, "plays": plays}) + "\n" for n in range(40)))
        made.append(Makers(None, path, tmp_path))
    steps = [list(Budget)[int(one.trees.probabilities(STATE, everything())["budget"].argmax())].steps for one in made]
    assert steps[0] < steps[1]
    assert made[0].learned_from("trees") != made[1].learned_from("trees")
    assert made[0].learned_from("tpe") == made[1].learned_from("tpe")


def test_packed_lines_are_read_and_never_written(tmp_path):
    keep = tmp_path / "priced.jsonl.gz"
    keep.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    rows = read_lines(keep)
    assert rows == ROWS
    assert setting_of(rows) == "m1 k2"
    with pytest.raises(FederationError, match="only read"):
        run_missing([], keep, Places(tmp_path, tmp_path), Makers(None, tmp_path, tmp_path), "none", 20)
    with pytest.raises(FederationError, match="one static-one"):
        setting_of([*rows, {**rows[0], "static_one": "m2 k2"}])


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
    assert read_lines(keep) == []
    keep.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1])[:30])
    assert [row["arm"] for row in read_lines(keep)] == ["m5 kall"]
    assert not keep.read_text().endswith("\n")  # who only reads, changes nothing: the line may still be written
    mend(keep)
    assert keep.read_text() == json.dumps(ROWS[0]) + "\n"  # the cut line is gone: the next one stands on its own
    keep.write_text("{\n" + json.dumps(ROWS[0]) + "\n")
    with pytest.raises(FederationError, match="damaged"):
        read_lines(keep)


def test_a_policy_that_is_not_there_is_said(tmp_path):
    makers = Makers(None, tmp_path / "worlds.jsonl", tmp_path)
    with pytest.raises(FederationError, match="needs a policy file"):
        _ = makers.file
    with pytest.raises(FederationError, match="no experience"):
        _ = makers.lines
    with pytest.raises(FederationError, match="no arm"):
        makers.make("magic", None, 0)
    assert callable(makers.make("m1 k2", None, 0))


def test_rules_are_not_cut_off_at_a_plateau():
    """Costs are counted to a target: who stops before it would count as never having got there."""
    world = open_world(Case("breast-cancer", 4, 0.5, 0, 12, (("training.learning-rate", 1e-6),)))  # nothing moves
    makers = Makers(None, Path("none"), Path("none"))
    for arm in ("rule adaptive", "rule hybrid, selected"):
        played = world.play(makers.make(arm, prices_of(PRICES["mixed"], *unit(world)), 42))
        assert (len(played.accuracies), played.stop) == (12, None)


ONE_BY_ONE = "| policy / static-one |"


def test_the_pages_are_what_the_kept_lines_say():
    project = Path(__file__).resolve().parents[3]
    text = tables(read_lines(project / "experiments" / "kept" / "priced.jsonl.gz"))
    assert text in (project / "docs" / "priced.md").read_text()
    readme, blocks = (project / "README.md").read_text(), text.split("\n\n")
    shown = [
        block for block in blocks if block.startswith(("| arm | circuits", "| policy / other arm, 95%", ONE_BY_ONE))
    ]
    assert len(shown) == 3
    assert all(block in readme for block in shown)
    ratios = [line.replace(" | all | ", " | ") for line in text.splitlines() if " | all | " in line]
    assert len(ratios) > len(PRICED)
    assert "\n".join(ratios) in readme


def test_plays_that_count_as_the_rules_can_be_left_out():
    rows = [
        {**row, "fallback_rate": 0.5 if row["seed"] == 43 else 0.2} if row["arm"] == "policy" else row for row in ROWS
    ]
    found = comparisons(rows, "m1 k2")
    assert {split for _, split in pairs_of(found, "qfl", "all")} == {42, 43}
    assert {split for _, split in pairs_of(found, "qfl", "all", decided=True)} == {42}
    assert "| qfl, but for plays that count as the rule's | all |" in "\n".join(table_lines(rows, "m1 k2"))


def test_every_deal_has_its_own_ratios_by_hand():
    """One cell: three price lists of a federation are one value, which has no interval."""
    twice = [
        {**row, "circuits": [2 * count for count in row["circuits"]]} if row["seed"] == 43 else row
        for row in ROWS
        if row["arm"] == "policy"
    ]
    rows = [row for row in ROWS if row["arm"] != "policy"] + twice
    found = comparisons(rows, "m1 k2")
    costs = [
        math.exp(
            np.mean(
                [math.log(one.figures["policy"][seed].cost / one.figures["qfl"][seed].cost) for one in found.values()]
            )
        )
        for seed in (42, 43)
    ]
    assert costs[0] < costs[1]
    assert by_deal_lines(found)[1:4] == [
        "| policy / other arm, 95% | deal 42 | deal 43 |",
        "|---|---|---|",
        f"| qfl | {costs[0]:.2f} | {costs[1]:.2f} |",
    ]
    one = found["breast-cancer 0.5", "mixed"].figures
    each = [math.log(one["policy"][seed].cost / one["static-one"][seed].cost) for seed in (42, 43)]
    assert by_cell_lines(found)[1] == "| policy / static-one | circuits dear | rounds dear | mixed |"
    assert by_cell_lines(found)[3].startswith("| breast-cancer 0.5 | ")
    assert by_cell_lines(found)[3].endswith(f" | {math.exp(np.mean(each)):.2f} |")


def test_a_rule_says_how_often_it_raised_a_budget_and_where_it_never_did():
    rows = [{**row, "grew": 0.25 * (row["seed"] == 43)} if row["arm"] == "rule adaptive" else row for row in ROWS]
    one = comparisons(rows, "m1 k2")["breast-cancer 0.5", "mixed"]
    assert one.note("rule adaptive") == " (raised in 12% of the rounds, inert in 1 of 2 seeds)"
    assert one.note("random") == ""


@pytest.fixture
def two_plays(monkeypatch, tmp_path):
    """Two static settings of the smallest cell without a language model, three rounds, by the table's own code."""
    monkeypatch.setattr(priced, "static_one", lambda makers: "m1 k2")
    monkeypatch.setattr(priced_cells, "ROUNDS", 3)
    monkeypatch.setenv("LLM_QFL_THREADS", "1")
    wanted = [("breast-cancer 0.1", 42, arm, "any") for arm in ("m1 k2", "m2 k2")]
    makers = Makers(None, tmp_path / "worlds.jsonl", tmp_path)

    def run(keep):
        run_missing(wanted, keep, Places(tmp_path, tmp_path), makers, "none", 20)
        return [{key: value for key, value in row.items() if key not in TIMES} for row in read_lines(keep)]

    return run


TIMES = ("milliseconds", "cpu_seconds")


def test_a_comparison_that_was_killed_gives_the_lines_of_one_that_was_not(
    two_plays, killed_at_the_second, monkeypatch, tmp_path
):
    whole = two_plays(tmp_path / "whole.jsonl")
    assert [(row["arm"], len(row["accuracies"])) for row in whole] == [("m1 k2", 3), ("m2 k2", 3)]
    assert whole[1]["evaluations"] > whole[0]["evaluations"]  # another setting, not the same line twice
    cut = tmp_path / "cut.jsonl"
    killed_at_the_second(priced, lambda: two_plays(cut))
    assert len(read_lines(cut)) == 1
    with cut.open("a") as file:
        file.write('{"cell": "breast-can')  # killed while it wrote
    assert two_plays(cut) == whole
    monkeypatch.setattr(priced, "run_one", None)  # nothing is played again
    assert two_plays(cut) == whole


def test_what_stays_masked_without_the_shield_is_not_there(monkeypatch):
    """All limits that are keys are open: only more sites than there are, soft labels and shots are left to mask."""
    monkeypatch.setenv("LLM_QFL_THREADS", "1")
    world = open_world(Case("breast-cancer", 4, 0.5, 0, 6, (("training.steps", 1),)))
    found = {}  # from the third round on: before that no loss can have stood still
    for arm in ("policy", "policy, no shield"):
        decider = scored(Uniform(), prices_of(PRICES["mixed"], *unit(world)), agent={**TRUSTED, **KEYS[arm]})
        found[arm] = {why for one in world.play(decider).decisions[2:] for why in one.masked}
    absent = {name for name in found["policy"] if name.startswith(("clients", "weight", "shots"))}
    assert found["policy, no shield"] == absent < found["policy"]


def test_without_the_policy_nothing_is_told_of_it():
    found = comparisons([row for row in ROWS if row["arm"] != "policy"], "m1 k2")
    assert by_deal_lines(found) == by_cell_lines(found) == verdict_lines(found) == []


def test_how_many_sites_there_are_is_no_information_about_the_state():
    """A policy that is blind but for its mask: 4 sites in one cell, 10 in the other."""
    asked = {"breast-cancer 0.1": [0.5, 0.5, 0.0], "breast-cancer 0.5": [0.2, 0.2, 0.6]}
    rows = [
        {**row, "cell": cell, "probabilities": {"clients": [probabilities] * 2}}
        for cell, probabilities in asked.items()
        for row in ROWS
    ]
    assert "clients 0.000" in "\n".join(table_lines(rows, "m1 k2"))

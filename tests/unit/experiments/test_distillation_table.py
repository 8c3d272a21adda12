"""The distillation table by hand: teachers, pairing, equal evaluations; and that lambda and soft labels do arrive."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments import distillation
from experiments.distillation import Places, chosen, jobs, play, run_missing, run_one
from experiments.distillation_table import by_seed, paired, table_lines
from experiments.distillation_tasks import ARMS, AVERAGED, FIRST_SEED, NONE, OWN, TASKS, Arm, Tuning, split_of, taught
from llm_qfl.federation.errors import FederationError
from simulation.lines import read_lines
from simulation.policy_tables import write_table
from simulation.policy_teachers import NoTeacher, Recording, stand_in
from simulation.policy_world import Case, open_world

SOFT = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.5, 0.5]])
RECORDING = Recording({OWN: {"a": 0.4}, AVERAGED: {"a": 0.9}}, {OWN: {"a": SOFT}, AVERAGED: {"a": SOFT[::-1]}})


def test_every_arm_of_the_issue_is_there():
    assert len(ARMS) == 13
    assert {arm.weight for arm in ARMS} == {0.0, 0.1, 0.3, 0.5}
    assert {arm.kind for arm in ARMS if arm != NONE} == {"true", "averaged", "shuffled", "uniform"}


def test_kinds_of_teachers():
    for server_round in (1, 7, 40):  # from the first round on
        np.testing.assert_array_equal(taught(RECORDING, "true", 0).soft("a", server_round), SOFT)
        np.testing.assert_array_equal(taught(RECORDING, "averaged", 0).soft("a", server_round), SOFT[::-1])
    shuffled = taught(RECORDING, "shuffled", 0).soft("a", 1)
    assert sorted(map(tuple, shuffled)) == sorted(map(tuple, SOFT))
    assert any(not np.array_equal(taught(RECORDING, "shuffled", seed).soft("a", 1), shuffled) for seed in (1, 2, 3))
    np.testing.assert_array_equal(taught(RECORDING, "shuffled", 0).soft("a", 9), shuffled)
    np.testing.assert_array_equal(taught(RECORDING, "uniform", 0).soft("a", 1), np.full((4, 2), 0.5))
    assert {taught(RECORDING, kind, 0).loss("a", 1) for kind in ("true", "shuffled", "uniform")} == {0.4}
    with pytest.raises(FederationError, match="uniform, got 'worse'"):
        taught(RECORDING, "worse", 0)


def test_seeds_take_turns_on_splits():
    assert [split_of(FIRST_SEED + n, 3) - FIRST_SEED for n in range(5)] == [0, 1, 2, 0, 1]
    assert split_of(FIRST_SEED + 9, 10) == FIRST_SEED + 9
    found = list(jobs(["breast-cancer"], 2))
    assert len(found) == len(set(found)) == 2 * len(ARMS)


def line(arm, seed, nll, accuracy=0.5, evaluations=100, split=FIRST_SEED, tuning="t"):
    score = {"accuracy": accuracy, "recall": accuracy, "nll": nll}
    return {
        "task": "breast-cancer",
        "seed": seed,
        "split": split,
        "arm": arm.name,
        "tuning": tuning,
        "test": score,
        "validation": score,
        "evaluations": evaluations,
        "circuits": 10 * evaluations,
        "teacher": {
            "own": {"validation": {**score, "nll": 0.55}, "test": {**score, "nll": 0.75}},
            "averaged": {"validation": {**score, "nll": 0.65}, "test": {**score, "nll": 0.45}},
        },
    }


TRUE, UNIFORM = Arm(0.3, "true"), Arm(0.3, "uniform")
ROWS = [
    line(NONE, 42, 0.6),
    line(NONE, 43, 0.7, split=43),
    line(NONE, 44, 0.8),
    line(TRUE, 42, 0.5),
    line(TRUE, 43, 0.9, split=43),
    line(TRUE, 44, 0.7),
    line(UNIFORM, 42, 0.4),
    line(UNIFORM, 43, 0.8, split=43),
    line(UNIFORM, 44, 0.6),
]


def test_pairs_are_of_one_seed():
    found = paired(by_seed(ROWS, TRUE.name, "nll"), by_seed(ROWS, NONE.name, "nll"))
    assert (found.mean, found.pairs) == (pytest.approx(0.0), 3)
    half = 4.302652729911275 * math.sqrt(0.03) / math.sqrt(3)  # Student's t, 2 degrees of freedom
    assert (found.low, found.high) == (pytest.approx(-half), pytest.approx(half))
    assert not found.text.endswith("*")
    clear = paired({1: 0.2, 2: 0.31}, {1: 0.1, 2: 0.2})
    assert clear.text == "+0.105 (+0.041 to +0.169) *"
    assert paired({1: 0.2, 5: 9.0}, {1: 0.1, 7: 9.0}).text == "+0.100"
    with pytest.raises(FederationError, match="no seed"):
        paired({1: 0.2}, {2: 0.1})


def test_the_table_says_who_is_how_good_and_what_a_run_costs():
    text = "\n".join(table_lines(ROWS))
    assert "#### breast-cancer (seeds: 3, splits: 2)" in text
    assert "| language models, each site's own, the sites' validation rows | 0.550 | 0.500 | 0.500 |" in text
    assert "| language model, averaged, the test rows | 0.450 |" in text
    assert "| QNN, lambda 0, the test rows | 0.700 |" in text
    assert "100 evaluations (1,000 circuits), the same in every arm" in text
    true = next(one for one in text.splitlines() if one.startswith("| true | 0.3 |"))
    assert "| -0.100, +0.200 | +0.100 (+0.100 to +0.100) * |" in true  # by split, and beside the uniform teacher
    assert "| none | 0 | 0.500 ± 0.000 | 0.500 ± 0.000 | 0.700 ± 0.100 |" in text


def test_unequal_evaluations_are_no_comparison():
    with pytest.raises(FederationError, match="equal evaluations in all arms, seed 42"):
        table_lines([*ROWS[:3], line(TRUE, 42, 0.5, evaluations=99), *ROWS[4:]])


def test_lines_of_another_tuning_or_deal_stand_apart():
    tuning = Tuning()
    mine = line(NONE, 45, 0.5, split=42, tuning=tuning.name)
    others = [line(NONE, 45, 0.5, split=45, tuning=tuning.name), line(NONE, 45, 0.5, split=42, tuning="x")]
    assert chosen([mine, *others], 3, tuning) == [mine]


def test_tasks_of_the_same_rows_share_their_recordings(tmp_path):
    pca, discriminant = TASKS["tweets, pca"], TASKS["tweets, discriminant"]
    assert pca.recording(42, tmp_path) == discriminant.recording(42, tmp_path)
    assert pca.recording(42, tmp_path) != TASKS["breast-cancer"].recording(42, tmp_path)
    numbers, texts = pca.case(42, tmp_path).config(), pca.text_config(42, tmp_path)
    assert (numbers.data.encoding, texts.data.encoding) == ("auto", "language")
    assert numbers.data.source != texts.data.source
    assert (numbers.server.seed, numbers.data.alpha) == (texts.server.seed, texts.data.alpha)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    source = write_table("gaussian", 11, tmp_path_factory.mktemp("tables"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_QFL_THREADS", "1")
        yield open_world(Case(f"csv:{source}", sites=2, alpha=5.0, seed=3, rounds=1))


def test_soft_labels_reach_the_loss_and_only_with_a_weight(world):
    recording = stand_in(1.0, every=2)(world)
    recording = Recording({OWN: recording.losses[1]}, {OWN: recording.labels[1]})
    found = {arm: run_one(world, recording, arm, 42) for arm in (NONE, TRUE, Arm(0.3, "shuffled"))}
    assert len({one["evaluations"] for one in found.values()}) == 1
    assert len({one["test"]["nll"] for one in found.values()}) == 3
    world.teacher = recording  # a teacher at hand changes nothing where lambda is 0
    with_teacher, _ = play(world, 0.0, 42)
    world.teacher = NoTeacher()
    without, _ = play(world, 0.0, 42)
    np.testing.assert_array_equal(with_teacher.theta, without.theta)
    other, _ = play(world, 0.0, 43)
    assert not np.array_equal(other.theta, without.theta)  # the seed is of the start vector


def test_the_pages_are_what_the_kept_lines_say():
    """The README shows both tasks side by side: cell by cell what the command prints."""
    project = Path(__file__).resolve().parents[3]
    rows = read_lines(project / "experiments" / "kept" / "distillation.jsonl.gz")
    text = "\n".join(table_lines(chosen(rows, 2, Tuning())))
    assert text in (project / "docs" / "distillation.md").read_text()
    printed = [cells_of(line) for line in text.replace(" *", "").splitlines() if re.match(ARM_ROW, line)]
    assert len(printed) == 2 * len(ARMS)
    readme = (project / "README.md").read_text()
    section = readme[readme.index("### Does distillation help?") : readme.index("### Training the policy")]
    shown = [cells_of(line) for line in section.splitlines() if re.match(ARM_ROW, line)]
    tweets, cancer = printed[: len(ARMS)], printed[len(ARMS) :]
    assert shown == [[*a[:6], b[2], b[4], b[5]] for a, b in zip(tweets, cancer, strict=True)]


ARM_ROW = r"\| \w+ \| 0(\.\d)? \|"


def cells_of(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_table_that_was_killed_gives_the_lines_of_one_that_was_not(
    killed_at_the_second, monkeypatch, tmp_path, world
):
    recording = replace(stand_in(1.0, every=2)(world), about={"own": "{}", "averaged": "{}"})
    monkeypatch.setattr(Places, "open", lambda self, name, split: (world, recording))
    wanted = list(jobs(["breast-cancer"], 1))[:3]
    places = Places(tmp_path, tmp_path, Tuning())

    def run(keep):
        run_missing(wanted, keep, places, 1)
        return [{key: value for key, value in row.items() if key != "cpu_seconds"} for row in read_lines(keep)]

    whole = run(tmp_path / "whole.jsonl")
    assert [row["arm"] for row in whole] == [arm.name for arm in ARMS[:3]]
    cut = tmp_path / "cut.jsonl"
    killed_at_the_second(distillation, lambda: run(cut))
    assert len(read_lines(cut)) == 1
    assert run(cut) == whole
    with pytest.raises(FederationError, match="only read"):
        run(tmp_path / "kept.jsonl.gz")

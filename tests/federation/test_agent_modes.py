"""Whole federations in memory in every mode, with a tiny random language model: decisions, stops, soft labels."""

import json

import numpy as np
import pytest

from simulation.run import run_federation

pytestmark = pytest.mark.slow  # whole federations with torch: 5 to 20 s each on a free core

TINY = {
    "data.source": "breast-cancer",
    "server.rounds": 4,
    "quantum.qubits": 2,
    "quantum.layers": 1,
    "training.steps": 2,
    "language.model": "tiny-4",
    "language.adapter-layers": 2,
    "language.beta": 0.0,
    "language.align-first": 0,
    "language.every": 2,
    "language.steps": 1,
    "language.batch-size": 4,
    "language.public-rows": 4,
    "language.dtype": "float32",
    "language.device": "cpu",
    "language.max-tokens": 100,
}


def play(output, **keys):
    flat = {**TINY, **{key.replace("__", ".").replace("_", "-"): value for key, value in keys.items()}}
    return run_federation(flat, sites=3, output=output)


def lines(run, name):
    return [json.loads(line) for line in (run.folder / name).read_text().splitlines()]


@pytest.mark.parametrize("mode", ["llm-qfl-all", "llm-qfl-selected", "policy"])
def test_a_mode_runs_to_its_end_and_says_who_decided(tmp_path, mode):
    run = play(tmp_path, agent__mode=mode, agent__policy="none", agent__stop_plateau=0.0, agent__distill_weight=0.3)
    assert run.summary["mode"] == mode
    assert run.summary["status"] == "finished"
    decisions = lines(run, "decisions.jsonl")
    assert [line["round"] for line in decisions] == [1, 2, 3, 4]
    assert {line["by"] for line in decisions} == {"rule"}
    reasons = [line["fallback"] and line["fallback"]["reason"] for line in decisions]
    assert reasons == (["no history", *["missing model"] * 3] if mode == "policy" else [None] * 4)
    assert run.summary["policy"]["kind"] == ("rule" if mode == "policy" else mode)
    for decision, line in zip(decisions, lines(run, "rounds.jsonl"), strict=True):
        assert line["plan"]["budgets"] == decision["plan"]["budgets"]
        assert sum(line["plan"]["budgets"].values()) >= line["evaluations"]
    assert all(line["regulated"] for line in decisions[1:])
    ratios = [one["ratio"] for line in decisions[1:] for one in line["regulated"].values()]
    assert None not in ratios  # both losses are there, of a site that is first asked between two adapter rounds, too
    weights = [report.distill_weight for summary in run.finished.rounds for report in summary.reports]
    assert set(weights) == {0.3}  # and so are soft labels
    tuned, scored = set(), []
    for line in lines(run, "rounds.jsonl"):
        version = (line["round"] - 1) // 2  # an adapter round every two
        part = line["language"] or {"answers": [], "taught": []}
        tuned |= {(one["site"], version) for one in part["answers"]}
        scored += [(one["site"], version) for one in part["taught"]]
        came = {one["site"] for one in line["clients"]}
        assert came == set(line["language_losses"])
        assert {(site, version) for site in came} <= tuned | set(scored)
    assert len(scored) == len(set(scored))  # once a version
    assert not tuned & set(scored)
    assert bool(scored) == (mode == "llm-qfl-selected")  # the others ask every site in every round


def test_soft_labels_change_the_weights_and_a_weight_of_zero_does_not(tmp_path):
    thetas = {
        weight: play(tmp_path / str(weight), agent__mode="llm-qfl-all", agent__distill_weight=weight).theta
        for weight in (0.0, 0.5)
    }
    assert np.abs(thetas[0.0] - thetas[0.5]).max() > 1e-4


def test_b07_a_stop_ends_the_run_with_its_reason(tmp_path):
    run = play(
        tmp_path, agent__mode="llm-qfl-all", server__rounds=9, agent__stop_plateau=5.0, agent__stop_after=2,
        agent__stop_patience=1, agent__stop_floor=9.0, agent__stop_tolerance=9.0,
    )  # fmt: skip
    assert run.summary["status"] == "stopped"
    assert run.summary["stop_reason"].startswith("plateau: ")
    assert run.summary["rounds"] == 2
    last = lines(run, "decisions.jsonl")[-1]
    assert (last["round"], last["plan"]["stop"]["rule"]) == (3, "plateau")
    assert run.summary["test_accuracy"] is not None


def test_a_budget_is_kept(tmp_path):
    run = play(tmp_path, agent__mode="llm-qfl-all", agent__budget=300, server__rounds=9)
    assert run.summary["stop_reason"].startswith("budget: ")
    assert run.summary["evaluations"] <= 300


def test_mode_qfl_is_as_it_was(tmp_path):
    run = play(tmp_path)
    assert (run.summary["mode"], run.summary["policy"]) == ("qfl", None)
    assert not (run.folder / "decisions.jsonl").exists()


def test_a_language_model_decides_by_its_weights(tmp_path, deciding):
    run = play(tmp_path, **deciding)
    decisions = lines(run, "decisions.jsonl")
    assert [line["by"] for line in decisions] == ["rule", "policy", "policy", "policy"]
    assert run.summary["policy"]["kind"] == "policy"
    assert run.summary["policy"]["fallback_rate"] == 0
    for line in decisions[1:]:
        for name, flags in line["probabilities"].items():
            assert sum(flags.values()) == pytest.approx(1)
            assert all(flags[key.split(" ", 1)[1]] == 0 for key in line["masked"] if key.startswith(f"{name} "))
        assert line["rule"]["budgets"]
    assert decisions[-1]["reward"] is not None

"""Recorded L_i and soft labels are those of a whole run."""

import pytest

from simulation.policy_arms import rule
from simulation.policy_recorder import record
from simulation.policy_teachers import check_recording, read_recording
from simulation.policy_world import Case, open_world
from simulation.run import run_federation

LANGUAGE = {
    "language.model": "tiny-6",
    "language.adapter-layers": 2,
    "language.steps": 2,
    "language.every": 2,
    "language.public-rows": 4,
    "language.dtype": "float32",
}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_recorded_federation_is_replayed_with_its_own_losses(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    monkeypatch.setenv("LLM_QFL_THREADS", "1")
    case = Case("breast-cancer", sites=2, alpha=5.0, seed=5, rounds=3, more=(("training.steps", 1),))
    made = record(case, LANGUAGE)
    assert sorted(made.losses) == sorted(made.labels) == [1, 3]
    made.write(tmp_path / "one.npz")
    back = read_recording(tmp_path / "one.npz")

    def teach(world):
        rows = {site: len(part.train) for site, part in world.partitions.items()}
        check_recording(back, rows, 2)
        return back

    played = open_world(case, teach).play(rule("adaptive"))
    live = run_federation(
        {**case.flat(), **LANGUAGE, "agent.mode": "llm-qfl-all"}, sites=case.sites
    )  # the whole run that the recording stands for
    decider = live.finished.opened.decider
    assert played.losses[1:] == pytest.approx([one.validation.loss for one in live.finished.rounds], abs=1e-4)
    assert [one.budgets for one in played.decisions] == [one.budgets for one in decider.decisions if one.stop is None]

"""`llm-qfl tune`: seeded, on validation rows alone; the test rows decide nothing."""

import shlex

import pytest
from typer.testing import CliRunner

import server_app.session as session
from llm_qfl.cli.main import app
from llm_qfl.cli.tune import KEYS, parse_overrides, run_tuning, search_keys, validate
from llm_qfl.federation.config import RunConfig, default_run_config
from llm_qfl.federation.errors import ConfigError
from simulation.grid import InMemoryGrid
from simulation.run import run_federation

QUICK = {"server.rounds": 2, "training.steps": 2, "quantum.layers": 1}
TEXT = "server.rounds=2 training.steps=2 quantum.layers=1"


@pytest.mark.parametrize("validation", ["federated", "server"])
def test_the_score_is_the_runs_validation_loss(validation):
    keys = {**QUICK, "data.validation": validation}
    outcome, summary = validate(keys, 2), run_federation(keys, sites=2).summary
    assert outcome.loss == pytest.approx(summary["validation_loss"], abs=1e-12)
    assert outcome.accuracy == pytest.approx(summary["validation_accuracy"], abs=1e-12)
    assert outcome.evaluations == summary["evaluations"]


@pytest.mark.parametrize("test", ["server", "federated"])
def test_no_test_row_is_scored(test, monkeypatch):
    rows, push, kinds = session.server_rows, InMemoryGrid.push_messages, set()

    def watched(config, setup, part, *rest):
        assert part != "test"
        return rows(config, setup, part, *rest)

    def recorded(grid, messages):
        messages = list(messages)
        kinds.update(message.metadata.message_type for message in messages)
        return push(grid, messages)

    monkeypatch.setattr(session, "server_rows", watched)
    monkeypatch.setattr(InMemoryGrid, "push_messages", recorded)
    validate({**QUICK, "data.test": test}, 2)
    assert kinds == {"query", "train"}  # test rows are scored by evaluate messages, or on the server


def test_the_same_seed_searches_the_same_and_the_first_trial_is_as_given():
    first, second = [], []
    for said in (first, second):
        search = ["training.learning-rate", "quantum.readout"]
        run_tuning([TEXT], sites=2, trials=3, search=search, say=said.append)
    assert first == second
    given = default_run_config()
    assert f"quantum.readout={given['quantum.readout']}" in first[2]
    assert f"training.learning-rate={given['training.learning-rate']}" in first[2]


def test_the_printed_line_is_a_run_config_that_loads():
    said = []
    command = run_tuning([TEXT], sites=3, trials=2, search=None, say=said.append)
    words = shlex.split(command)
    found = parse_overrides([words[words.index("-c") + 1]])
    config = RunConfig.from_run_config(found)
    assert config.server.rounds == 2
    assert "num-supernodes=3" in command
    assert said[-1] == command
    assert any("not tuned" in line for line in said)


def test_keys_that_have_no_effect_are_not_searched():
    assert search_keys(RunConfig(), None) == KEYS
    qcnn = RunConfig.from_run_config({"quantum.circuit": "qcnn"})
    assert "quantum.layers" not in search_keys(qcnn, None)
    paper = RunConfig.from_run_config({"quantum.readout": "parity"})
    assert "quantum.readout" not in search_keys(paper, None)
    with pytest.raises(ConfigError, match=r"quantum\.qubits has no range"):
        search_keys(RunConfig(), ["quantum.qubits"])


def test_a_given_value_outside_the_range_is_kept():
    said = []
    search = ["quantum.layers", "training.l2", "training.learning-rate"]
    text = "server.rounds=1 training.steps=1 quantum.layers=7 training.l2=0.003 training.learning-rate=0.51234"
    run_tuning([text], sites=2, trials=1, search=search, say=said.append)
    assert "quantum.layers=7" in said[2]
    assert "training.l2=0.003" in said[2]
    assert "0.51234" in said[-1]


def test_wrong_keys_and_pairs():
    result = CliRunner().invoke(app, ["tune", "-c", "quantum.layer=3"])
    assert result.exit_code == 2
    assert "did you mean quantum.layers?" in result.output
    with pytest.raises(ConfigError, match="expected pairs"):
        parse_overrides(["nothing here"])
    assert parse_overrides(["data.k=3", "data.classes='0,1'"]) == {"data.k": 3, "data.classes": "0,1"}


def test_a_search_on_a_device_that_is_paid_for_is_refused():
    with pytest.raises(ConfigError, match="would be paid for each"):
        run_tuning(['quantum.backend="ibm:least-busy"'], sites=2, trials=1, search=None, say=print)

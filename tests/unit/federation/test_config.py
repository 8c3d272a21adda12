import pytest

from llm_qfl.federation.config import NOT_NUMBERS, QuantumConfig, RunConfig, default_run_config
from llm_qfl.federation.config_checks import readout_problems
from llm_qfl.federation.errors import ConfigError


def test_the_defaults_are_a_valid_config_and_survive_the_round_trip():
    found = RunConfig.from_run_config(default_run_config())
    assert {**found.flat(), "agent.mode": "auto"} == default_run_config()  # `auto` is what it stands for by then
    assert RunConfig.from_run_config(found.flat()) == found


def test_every_problem_is_reported_at_once_and_a_near_key_is_offered():
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_run_config(
            {"data.sorce": "x", "server.rounds": "three", "quantum.qubits": 0, "training.optimizer": "sgd"}
        )
    text = str(caught.value)
    assert len(caught.value.problems) == 4
    assert "data.sorce: no such key; did you mean data.source?" in text
    assert "server.rounds" in text
    assert "'three'" in text
    assert "quantum.qubits" in text
    assert "training.optimizer" in text


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"data.source": "iris"}, "data.source"),
        ({"data.source": "csv:"}, "data.source"),
        ({"data.test": "nowhere"}, "data.test"),
        ({"data.validation": "file:"}, "data.validation"),
        ({"data.classes": "0"}, "data.classes"),
        ({"data.classes": "0,0"}, "data.classes"),
        ({"data.partitioner": "column"}, "data.partition-column"),
        ({"quantum.circuit": "qcnn", "quantum.qubits": 6}, "quantum.qubits"),
        ({"quantum.qubits": 1}, "quantum.qubits"),
        ({"quantum.backend": "moon"}, "quantum.backend"),
        ({"data.classes": "a,b,c", "quantum.readout": "parity"}, "quantum.readout"),
        ({"data.classes": "a,b,c,d,e", "quantum.readout": "scale"}, "quantum.readout"),
        ({"training.optimizer": "cobyla", "training.batch-size": 8}, "training.batch-size"),
        ({"server.rounds": True}, "server.rounds"),
        ({"server.fraction": 0.0}, "server.fraction"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(changes, where):
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_run_config(changes)
    assert [line for line in caught.value.problems if line.startswith(where + ":")]


def test_an_integer_is_taken_for_a_float_but_not_the_other_way():
    assert RunConfig.from_run_config({"data.alpha": 1}).data.alpha == 1.0
    with pytest.raises(ConfigError, match=r"server\.rounds"):
        RunConfig.from_run_config({"server.rounds": 2.5})


def test_the_digest_changes_with_what_changes_numbers_and_with_nothing_else():
    digest = RunConfig.from_run_config({}).digest()
    for key, value in default_run_config().items():
        other = {str: "other", int: 13, float: 0.321, bool: not value}[type(value)]
        try:
            changed = RunConfig.from_run_config({key: other})
        except ConfigError:
            continue  # a closed choice: covered by the keys that are free
        assert (changed.digest() == digest) == (key in NOT_NUMBERS), key


def test_readouts_that_cannot_tell_the_classes_apart():
    quantum = RunConfig.from_run_config({"quantum.circuit": "qcnn", "quantum.readout": "scale"}).quantum
    assert readout_problems(quantum, 2) == []
    assert "quantum.readout" in readout_problems(quantum, 3)[0]


@pytest.mark.parametrize(
    ("run", "site", "trains", "scores"),
    [
        (("exact", "same"), (None, None), "exact", "exact"),
        (("exact", "ibm:a"), (None, None), "exact", "ibm:a"),
        (("ibm:a", "ibm:b"), ("exact", None), "exact", "exact"),  # who chose a simulator pays nothing
        (("exact", "same"), ("aer", "ibm:a"), "aer", "ibm:a"),
        (("aer", "ibm:a"), (None, "exact"), "aer", "exact"),
    ],
)
def test_a_sites_own_backends_win(run, site, trains, scores):
    quantum = QuantumConfig(backend=run[0], evaluation_backend=run[1]).at_site(*site)
    assert (quantum.backend, quantum.scoring.backend) == (trains, scores)

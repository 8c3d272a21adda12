"""A task's batch or session ends with the task, whatever the service says to that."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from ibm_service.loopback import Fault, LoopbackService

from llm_qfl.federation.config import QuantumConfig
from llm_qfl.quantum.model import QNNModel
from llm_qfl.quantum.scope import Place, Scope


@pytest.fixture
def loopback(monkeypatch):
    service = LoopbackService()
    for name, value in service.environment().items():
        monkeypatch.setenv(name, value)
    with service.running():
        yield service
    assert service.errors == []


def model(folder, mode):
    config = QuantumConfig(backend="ibm:loop_ideal", mode=mode, qubits=2, layers=1, shots=64)
    return QNNModel(config, 2, place=Place(folder)).at(Scope(purpose="task", shots=64))


def score(qnn):
    return qnn.loss(np.full(qnn.num_parameters, 0.1), np.zeros((3, 2)), np.array([0, 1, 0]))


@pytest.mark.parametrize("mode", ["batch", "session"])
def test_the_end_of_a_task_closes_what_it_opened(loopback, tmp_path, mode):
    with closing(model(tmp_path, mode)) as qnn:
        score(qnn)
        score(qnn)
    (session,) = loopback.sessions.values()
    assert not session["accepting_jobs"]
    assert {job.session for job in loopback.jobs.values()} == set(loopback.sessions)
    assert len(loopback.jobs) == 2


def test_a_task_that_failed_leaves_no_session_open(loopback, tmp_path):
    def fails():
        with closing(model(tmp_path, "session")) as qnn:
            score(qnn)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    (session,) = loopback.sessions.values()
    assert not session["accepting_jobs"]


def test_a_service_that_does_not_close_does_not_cost_the_task_its_report(loopback, tmp_path, caplog):
    with closing(model(tmp_path, "session")) as qnn:
        loss = score(qnn)
        loopback.faults.extend(Fault("PATCH", "/session0", 400) for _ in range(8))
    assert np.isfinite(loss)
    assert "session was not closed" in caplog.text

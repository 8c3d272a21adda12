"""IBM Quantum behind the shift rule: a batch or a whole gradient is one PUB of one job."""

from __future__ import annotations

import logging
from typing import Any

from llm_qfl.federation.config import QuantumConfig
from llm_qfl.federation.types import Array, Spent
from llm_qfl.quantum.circuits import ModelCircuit
from llm_qfl.quantum.ibm.budget import Budgets
from llm_qfl.quantum.ibm.errors import IbmError
from llm_qfl.quantum.ibm.options import IbmOptions
from llm_qfl.quantum.ibm.runner import Step, Work, make_runner
from llm_qfl.quantum.ibm.submission import Patience
from llm_qfl.quantum.sampled.angles import AngleCircuit
from llm_qfl.quantum.sampled.shift import Drawn
from llm_qfl.quantum.scope import Place, Scope

_LOG = logging.getLogger(__name__)
RESILIENCE = {"none": 0, "readout": 1, "zne": 2}


class IbmPointRunner:
    """A PointRunner over the site's jobs on IBM Quantum, or over IBM's client in its local mode.

    Args:
        config: backend, mode, mitigation and limits.
        angles: the circuit.
        model: its observables, and the digest that names it in the ledger.
        place: the site's folder, which holds the ledger of jobs, and its own limit of QPU seconds.
    """

    def __init__(self, config: QuantumConfig, angles: AngleCircuit, model: ModelCircuit, place: Place) -> None:
        self.name, self._config, self._angles, self._model, self._place = config.backend, config, angles, model, place
        self._runners: dict[int, Any] = {}

    def draw(self, points: Array, scope: Scope, call: int) -> Drawn:
        """See PointRunner.

        Raises:
            IbmError: refused before anything was spent, or a job that ended without a result.
        """
        step = Step(scope.run, scope.site, scope.server_round, f"{scope.purpose}/{call}")
        outcome = self.runner(scope.shots).expectations(step, self.work(points), seed=scope.seed_at(call))
        metrics = outcome.metrics
        spent = Spent(
            shots=int(metrics["executions"]),
            jobs=int(metrics["jobs"]),
            qpu_seconds=metrics.get("qpu_seconds", 0.0),
            queue_seconds=metrics.get("queue_seconds", 0.0),
            qpu_seconds_estimated=metrics.get("qpu_seconds_estimated", 0.0),
        )
        return Drawn(outcome.values, spent)

    def close(self) -> None:
        """See PointRunner. A batch or session that cannot be closed now is closed by the service when it is idle."""
        for runner in self._runners.values():
            try:
                runner.close()
            except IbmError as error:  # what the task has paid for must still be reported
                _LOG.warning("%s: the %s was not closed: %s", self.name, self._config.mode, error)

    def work(self, points: Array) -> Work:
        """The circuit at these points (M, A)."""
        return Work(self._model.digest(), self._angles.circuit, self._angles.angles, points, self._model.observables)

    def runner(self, shots: int) -> Any:  # noqa: ANN401
        """Of the site's ledger, with these shots."""
        if shots not in self._runners:
            config, place = self._config, self._place
            self._runners[shots] = make_runner(
                config.backend,
                place.folder,
                options=IbmOptions(
                    mode=config.mode,
                    shots=shots,
                    resilience_level=RESILIENCE[config.mitigation],  # type: ignore[arg-type]
                    dynamical_decoupling=config.dynamical_decoupling,
                    twirling=config.twirling,
                ),
                budgets=Budgets(run=config.qpu_seconds, site=place.qpu_seconds),
                patience=Patience(job=config.job_patience),
            )
        return self._runners[shots]

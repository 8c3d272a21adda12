"""IBM's client in its local mode: the same estimator and options on a fake device, no account, nothing paid."""

from __future__ import annotations

from pathlib import Path

from llm_qfl.quantum.ibm.answers import arrays_of, quiet
from llm_qfl.quantum.ibm.budget import device_width_problem
from llm_qfl.quantum.ibm.errors import PreflightError
from llm_qfl.quantum.ibm.options import IbmOptions
from llm_qfl.quantum.ibm.work import Outcome, Step, Work
from llm_qfl.quantum.isa import IsaCache
from llm_qfl.quantum.sampled.noise import calibration_key, load_fake_device


class LocalRunner:
    """Expectation values from qiskit-ibm-runtime's simulator of a fake device.

    Args:
        backend: `ibm-local:<fake device>`.
        folder: of the node: circuits are kept in its `transpiled`.
        options: how circuits are run; the mode does not matter.

    Raises:
        BackendError: no such fake device, or qiskit-ibm-runtime is not installed.
    """

    def __init__(self, backend: str, folder: Path, *, options: IbmOptions | None = None) -> None:
        self._device = load_fake_device(backend.removeprefix("ibm-local:"))
        self._options, self._isas = options or IbmOptions(), IsaCache(folder / "transpiled")

    def expectations(self, step: Step, work: Work, *, seed: int = 0) -> Outcome:
        """(N, K) expectation values.

        Args:
            step: nothing is kept under its name here.
            work: what.
            seed: of the simulator's shots.

        Raises:
            PreflightError: the circuit is too wide for the device.
        """
        self._check(work)
        isa = self._isas.get(
            work.circuit, work.digest, self._device, key=calibration_key(self._device),
            optimization_level=self._options.optimization_level, seed=self._options.seed,
        )  # fmt: skip
        estimator = self._options.estimator(self._device, None, seed)
        with quiet():
            arrays = arrays_of(estimator.run([work.pub(isa)]).result()[0].data)
        row, fixed = self._options.executions(work.observables)
        metrics = {
            "jobs": 0.0,
            "pubs": 1.0,
            "circuits": float(self._options.circuits(work.observables, len(work.points), 1)),
            "shots": float(self._options.shots),
            "executions": float(len(work.points) * row + fixed),
            "queue_seconds": 0.0,
            "qpu_seconds": 0.0,
            "qpu_seconds_estimated": 0.0,
        }
        return Outcome(arrays["evs"].T, arrays["stds"].T, (), metrics)

    def preflight(self, work: Work | None = None, run: str | None = None, site: str | None = None) -> list[str]:
        """Which device is simulated.

        Raises:
            PreflightError: the circuit is too wide for it.
        """
        if work is not None:
            self._check(work)
        return [f"device: {self._device.name}, {self._device.num_qubits} qubits, simulated; nothing is paid"]

    def close(self) -> None:
        """Nothing is open."""

    def _check(self, work: Work) -> None:
        work.check()
        if problem := device_width_problem(self._device, work.circuit.num_qubits):
            raise PreflightError(f"{problem}; nothing was spent")

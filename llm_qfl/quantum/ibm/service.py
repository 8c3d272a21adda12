"""The real service behind `submission.JobService`: qiskit-ibm-runtime's client, its errors put into our kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from llm_qfl.federation.types import Array
from llm_qfl.quantum.ibm import transport
from llm_qfl.quantum.ibm.account import Account
from llm_qfl.quantum.ibm.answers import arrays_of, first_line, quiet, reading, state_of, submission_error
from llm_qfl.quantum.ibm.errors import (
    CredentialsError,
    IbmError,
    SubmissionRefusedError,
    SubmissionUncertainError,
)
from llm_qfl.quantum.ibm.ledger import Entry
from llm_qfl.quantum.ibm.submission import JobState
from llm_qfl.quantum.ibm.transport import send_once


@dataclass(frozen=True)
class SessionUsage:
    """What a session has cost, its jobs included.

    Attributes:
        seconds: of the QPU, from its first job on.
        final: it is closed, and costs no more.
    """

    seconds: float
    final: bool


class IbmService:
    """A connection of one site.

    Args:
        account: where to log in.

    Raises:
        CredentialsError: no account, wrong token, or no access to the instance.
        ServiceUnavailableError: nobody answers.
        IbmError: qiskit-ibm-runtime is not installed.
    """

    def __init__(self, account: Account) -> None:
        self.account = account
        try:
            from qiskit_ibm_runtime import QiskitRuntimeService
        except ImportError as error:
            raise IbmError("quantum.backend ibm: install the extra, pip install 'llm-qfl[ibm]'") from error
        from qiskit_ibm_runtime.exceptions import IBMError

        with reading(f"log in with {account.source}"):
            try:
                self._client = QiskitRuntimeService(**account.arguments())
            except (IBMError, ValueError) as error:
                raise CredentialsError(
                    f"IBM Quantum: cannot log in with {account.source} ({first_line(error)}); set QISKIT_IBM_TOKEN "
                    "and QISKIT_IBM_INSTANCE, a token file or a saved account on this site; nothing was spent"
                ) from error

    @property
    def client(self) -> Any:  # noqa: ANN401
        """IBM's client, whose connections give up when nothing comes: a client for each instance, made when needed."""
        for api in (self._client._get_api_client(), *self._client._get_api_clients().values()):
            api._session._timeout = transport.TIMEOUT
        return self._client

    def device(self, name: str, qubits: int) -> Any:  # noqa: ANN401
        """The IBMBackend of this name, or the least busy one that is wide enough.

        Args:
            name: `least-busy`, or the device's.
            qubits: of the circuit.

        Raises:
            PreflightError: no such device.
        """
        with reading(f"look for the device {name}"):
            if name == "least-busy":
                return self.client.least_busy(min_num_qubits=qubits)
            return self.client.backend(name)

    def usage_problem(self, device: Any) -> str | None:  # noqa: ANN401
        """Why the device's instance would not run a job now, or None."""
        with reading("ask for the usage of the instance"):
            usage = self.client._get_api_client(device._instance).cloud_usage()
        return "the instance has used up its QPU time" if usage.get("usage_limit_reached") else None

    def find(self, tag: str, instance: str | None) -> list[str]:
        """Ids of the jobs with this tag, oldest first."""
        with reading("list jobs by tag"):
            return [job.job_id() for job in self.client.jobs(job_tags=[tag], instance=instance, descending=False)]

    def state(self, job_id: str) -> JobState | None:
        """See submission.JobService."""
        from qiskit_ibm_runtime.exceptions import RuntimeJobNotFound

        with reading(f"ask for job {job_id}"):
            try:
                job = self.client.job(job_id)
                status = str(job.status())
                message = (job.error_message() if status == "ERROR" else getattr(job, "_reason", None)) or ""
                code = getattr(job, "_reason_code", None)
            except RuntimeJobNotFound:
                return None
        return JobState(state_of(status, code, message), " ".join(message.split())[:300] or None)

    def metrics(self, job_id: str) -> dict[str, float]:
        """queue_seconds and qpu_seconds, as far as the service tells them and they are final."""
        with reading(f"ask for the metrics of job {job_id}"):
            raw = self.client.job(job_id).metrics()
        found: dict[str, float] = {}
        stamps, usage = raw.get("timestamps") or {}, raw.get("usage") or {}
        if stamps.get("created") and stamps.get("running"):
            created, running = (datetime.fromisoformat(stamps[key]) for key in ("created", "running"))
            found["queue_seconds"] = (running - created).total_seconds()
        seconds = usage.get("qpu_charge_time_seconds", usage.get("quantum_seconds"))
        if seconds is not None and usage.get("status", "pending") != "pending":
            found["qpu_seconds"] = float(seconds)
        elif stamps.get("finished") and not stamps.get("running"):
            found["qpu_seconds"] = 0.0  # it ended in the queue
        return found

    def result(self, job_id: str) -> dict[str, Array]:
        """`evs` and `stds` (K, N)."""
        with reading(f"fetch the result of job {job_id}"):
            data = self.client.job(job_id).result()[0].data
        return arrays_of(data)

    def session(self, mode: str, session_id: str) -> Any | None:  # noqa: ANN401
        """The batch or session with this id, or None where it takes no more jobs."""
        from qiskit_ibm_runtime import Batch, Session
        from qiskit_ibm_runtime.exceptions import IBMInputValueError

        with reading(f"look for the {mode} {session_id}"):
            try:
                found = (Batch if mode == "batch" else Session).from_id(session_id, self.client)
                accepting = (found.details() or {}).get("accepting_jobs")
            except IBMInputValueError:
                return None
        return found if accepting else None

    def close_session(self, session_id: str, instance: str | None) -> None:
        """Let a batch or session take no more jobs; one that the service does not know any more is closed."""
        with reading(f"close the session {session_id}"):
            self._api(instance).close_session(session_id)

    def session_usage(self, session_id: str, instance: str | None) -> SessionUsage | None:
        """What a session has cost so far, or None where the service does not tell."""
        from qiskit_ibm_runtime.api.exceptions import RequestsApiError

        with reading(f"ask for the usage of the session {session_id}"):
            try:
                details = self._api(instance).session_details(session_id)
            except RequestsApiError as error:
                if error.status_code != 404:
                    raise
                return None
        seconds = details.get("elapsed_time")
        return None if seconds is None else SessionUsage(float(seconds), details.get("state") == "closed")

    def _api(self, instance: str | None) -> Any:  # noqa: ANN401
        clients = self.client._get_api_clients()
        return clients[instance] if instance in clients else self.client._get_api_client()

    def cancel(self, job_id: str) -> None:
        """Ask the service to stop a job.

        Raises:
            IbmError: it has ended already.
        """
        from qiskit_ibm_runtime.exceptions import RuntimeInvalidStateError

        with reading(f"cancel job {job_id}"):
            try:
                self.client.job(job_id).cancel()
            except RuntimeInvalidStateError as error:
                raise IbmError(f"job {job_id} cannot be cancelled: {first_line(error)}") from error


class BoundJobs:
    """`submission.JobService` for one entry: the service, and how to submit its circuits.

    Args:
        connect: the service, logged in to when the first question is asked: a result on disk needs none.
        instance: that holds the entry's job, or None while no device is chosen.
        prepare: what must be so before an entry is submitted, and the call that posts its job; once per attempt.
    """

    def __init__(
        self,
        connect: Callable[[], IbmService],
        instance: str | None,
        prepare: Callable[[Entry], tuple[Entry, Callable[[], Any]]],
    ) -> None:
        self._connect, self._instance, self._prepare = connect, instance, prepare
        self._ready: Callable[[], Any] | None = None

    def prepare(self, entry: Entry) -> Entry:
        """The entry as it is submitted next. Spends nothing; raises where it cannot be submitted."""
        entry, self._ready = self._prepare(entry)
        return entry

    def submit(self, tag: str) -> str:
        """See submission.JobService."""
        ready, self._ready = self._ready, None
        if ready is None:
            raise SubmissionRefusedError(f"{tag}: prepare comes before submit; nothing was spent")
        return str(ready().job_id())

    def find(self, tag: str) -> list[str]:
        """See submission.JobService."""
        return self._connect().find(tag, self._instance)

    def state(self, job_id: str) -> JobState | None:
        """See submission.JobService."""
        return self._connect().state(job_id)

    def result(self, job_id: str) -> dict[str, Array]:
        """See submission.JobService."""
        return self._connect().result(job_id)

    def metrics(self, job_id: str) -> dict[str, float]:
        """See submission.JobService."""
        return self._connect().metrics(job_id)


def open_once(mode: str, backend: Any, seconds: int | None = None) -> Any:  # noqa: ANN401
    """Open a batch or session, asking once.

    Args:
        mode: which of them.
        backend: an IBMBackend.
        seconds: after which the service shall close a session; a batch is paid by its jobs alone.

    Raises:
        SubmissionRefusedError: there is none, or nobody knows; no job was submitted.
    """
    from qiskit_ibm_runtime import Batch, Session

    try:
        if mode == "batch":
            return submit_once(backend, lambda: Batch(backend=backend))
        return submit_once(backend, lambda: Session(backend=backend, max_time=seconds))
    except SubmissionUncertainError as error:
        raise SubmissionRefusedError(
            f"not submitted: the {mode} may be open or not ({error}); an empty one costs nothing and is closed when "
            "idle; try again; nothing was spent",
            unfinished=True,
        ) from error


def submit_once(backend: Any, run: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Call `run`, which posts a job to this backend, with the client's repeats switched off.

    Raises:
        SubmissionRefusedError: the service answered that it took nothing, or nothing was sent.
        SubmissionUncertainError: anything else that is not a job.
    """
    from qiskit_ibm_runtime.exceptions import IBMError
    from requests import RequestException

    guard = send_once(backend)
    guard.last = None
    try:
        with quiet():
            return run()
    except (IBMError, RequestException, ValueError, KeyError, TypeError, OSError) as error:
        raise submission_error(guard.last, error) from error

"""The real service behind `submission.JobService`: qiskit-ibm-runtime's client, its errors put into our kinds."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from llm_qfl.federation.types import Array
from llm_qfl.quantum.ibm import transport
from llm_qfl.quantum.ibm.account import Account
from llm_qfl.quantum.ibm.errors import (
    CredentialsError,
    IbmError,
    PreflightError,
    ServiceUnavailableError,
    SessionClosedError,
    SubmissionRefusedError,
    SubmissionUncertainError,
)
from llm_qfl.quantum.ibm.ledger import Entry, State
from llm_qfl.quantum.ibm.submission import JobState
from llm_qfl.quantum.ibm.transport import Answer, send_once

SESSION_CLOSED_CODE = 1217
RAN_TOO_LONG = 1305
_ENDED_WITH_SESSION = re.compile(r"\b(expired|session|ttl)\b", re.IGNORECASE)


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

        with _reading(f"log in with {account.source}"):
            try:
                self._client = QiskitRuntimeService(**account.arguments())
            except (IBMError, ValueError) as error:
                raise CredentialsError(
                    f"IBM Quantum: cannot log in with {account.source} ({_first_line(error)}); set QISKIT_IBM_TOKEN "
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
        with _reading(f"look for the device {name}"):
            if name == "least-busy":
                return self.client.least_busy(min_num_qubits=qubits)
            return self.client.backend(name)

    def usage_problem(self, device: Any) -> str | None:  # noqa: ANN401
        """Why the device's instance would not run a job now, or None."""
        with _reading("ask for the usage of the instance"):
            usage = self.client._get_api_client(device._instance).cloud_usage()
        return "the instance has used up its QPU time" if usage.get("usage_limit_reached") else None

    def find(self, tag: str, instance: str | None) -> list[str]:
        """Ids of the jobs with this tag, oldest first."""
        with _reading("list jobs by tag"):
            return [job.job_id() for job in self.client.jobs(job_tags=[tag], instance=instance, descending=False)]

    def state(self, job_id: str) -> JobState | None:
        """See submission.JobService."""
        from qiskit_ibm_runtime.exceptions import RuntimeJobNotFound

        with _reading(f"ask for job {job_id}"):
            try:
                job = self.client.job(job_id)
                status = str(job.status())
                message = (job.error_message() if status == "ERROR" else getattr(job, "_reason", None)) or ""
                code = getattr(job, "_reason_code", None)
            except RuntimeJobNotFound:
                return None
        return JobState(_state_of(status, code, message), " ".join(message.split())[:300] or None)

    def metrics(self, job_id: str) -> dict[str, float]:
        """queue_seconds and qpu_seconds, as far as the service tells them and they are final."""
        with _reading(f"ask for the metrics of job {job_id}"):
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
        with _reading(f"fetch the result of job {job_id}"):
            data = self.client.job(job_id).result()[0].data
        return arrays_of(data)

    def session(self, mode: str, session_id: str) -> Any | None:  # noqa: ANN401
        """The batch or session with this id, or None where it takes no more jobs."""
        from qiskit_ibm_runtime import Batch, Session
        from qiskit_ibm_runtime.exceptions import IBMInputValueError

        with _reading(f"look for the {mode} {session_id}"):
            try:
                found = (Batch if mode == "batch" else Session).from_id(session_id, self.client)
                accepting = (found.details() or {}).get("accepting_jobs")
            except IBMInputValueError:
                return None
        return found if accepting else None

    def close_session(self, session_id: str, instance: str | None) -> None:
        """Let a batch or session take no more jobs; one that the service does not know any more is closed."""
        with _reading(f"close the session {session_id}"):
            self._api(instance).close_session(session_id)

    def session_usage(self, session_id: str, instance: str | None) -> SessionUsage | None:
        """What a session has cost so far, or None where the service does not tell."""
        from qiskit_ibm_runtime.api.exceptions import RequestsApiError

        with _reading(f"ask for the usage of the session {session_id}"):
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

        with _reading(f"cancel job {job_id}"):
            try:
                self.client.job(job_id).cancel()
            except RuntimeInvalidStateError as error:
                raise IbmError(f"job {job_id} cannot be cancelled: {_first_line(error)}") from error


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
        raise _submission_error(guard.last, error) from error


def arrays_of(data: Any) -> dict[str, Array]:  # noqa: ANN401
    """`evs` and `stds` (K, N) of one PUB's data bin."""
    evs, stds = np.asarray(data.evs, dtype=float), np.asarray(data.stds, dtype=float)
    return {"evs": evs.reshape(len(evs), -1), "stds": stds.reshape(len(stds), -1)}


def _submission_error(answer: Answer | None, error: Exception) -> IbmError:
    from qiskit_ibm_runtime.exceptions import IBMNotAuthorizedError

    if answer is None:  # the post itself was never made
        if isinstance(error, IBMNotAuthorizedError) or _status_of(error) in (401, 403):
            return CredentialsError(f"IBM Quantum: {_first_line(error)}; check the site's token; nothing was spent")
        return SubmissionRefusedError(
            f"not submitted: {_first_line(error)}; nothing was spent", transient=_passing(error)
        )
    said = f"{answer.message or _first_line(error)} (HTTP {answer.status}, code {answer.code})"
    if answer.code == SESSION_CLOSED_CODE:
        return SessionClosedError(f"the session is closed: {said}; it took no job, earlier ones are kept; try again")
    if answer.status in (401, 403):
        return SubmissionRefusedError(f"not submitted, the site's account may not: {said}; nothing was spent")
    if answer.status == 429:
        return SubmissionRefusedError(f"not submitted, too many requests: {said}", transient=True)
    if answer.status is not None and 400 <= answer.status < 500 and answer.status not in (408, 409):
        return SubmissionRefusedError(f"not submitted: {said}; nothing was spent")
    return SubmissionUncertainError(f"no clear answer to the submission: {said}")


def _state_of(status: str, code: int | None, message: str) -> State:
    if status == "DONE":
        return "done"
    if code == RAN_TOO_LONG and status in ("ERROR", "CANCELLED"):
        return "timed-out"
    if status == "ERROR":
        return "failed"
    if status == "CANCELLED":
        return "expired" if _ENDED_WITH_SESSION.search(message) else "cancelled"
    return "submitted"


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Errors of calls that cost nothing."""
    from qiskit.providers.exceptions import QiskitBackendNotFoundError
    from qiskit_ibm_runtime.exceptions import IBMError, IBMNotAuthorizedError
    from requests import RequestException

    try:
        with quiet():
            yield
    except IBMNotAuthorizedError as error:
        raise CredentialsError(
            f"IBM Quantum: cannot {what}, the token is not accepted ({_first_line(error)}); renew it; no job was made"
        ) from error
    except QiskitBackendNotFoundError as error:
        raise PreflightError(
            f"IBM Quantum: cannot {what}: expected a device of this account ({_first_line(error)}); see "
            "QiskitRuntimeService().backends(); nothing was spent"
        ) from error
    except (IBMError, RequestException) as error:
        raise ServiceUnavailableError(f"IBM Quantum: cannot {what} ({_first_line(error)})") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of what preflight has checked, and of using the API key while IAM is away."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unable to retrieve IBM Cloud access token")
        warnings.filterwarnings("ignore", message=".*instance.*usage limit")
        warnings.filterwarnings("ignore", message="The backend .* currently has a status of")
        # Extrapolation of terms that cannot vary, the identity.
        warnings.filterwarnings("ignore", message="No positive, finite standard errors were found")
        yield


def _status_of(error: BaseException | None) -> int:
    while error is not None:
        if (status := getattr(error, "status_code", None)) is not None:
            return int(status)
        error = error.__cause__ or error.__context__
    return -1


def _passing(error: Exception) -> bool:
    from qiskit_ibm_runtime.api.exceptions import RequestsApiError
    from requests import RequestException

    return isinstance(error, RequestsApiError | RequestException) and _status_of(error) in (-1, 429, 500, 502, 503, 504)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

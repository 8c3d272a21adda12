"""What IBM's client and its service answer, in our words: arrays, states, kinds of errors."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from llm_qfl.federation.types import Array
from llm_qfl.quantum.ibm.errors import (
    CredentialsError,
    IbmError,
    PreflightError,
    ServiceUnavailableError,
    SessionClosedError,
    SubmissionRefusedError,
    SubmissionUncertainError,
)
from llm_qfl.quantum.ibm.ledger import State
from llm_qfl.quantum.ibm.transport import Answer

SESSION_CLOSED_CODE = 1217
RAN_TOO_LONG = 1305
_ENDED_WITH_SESSION = re.compile(r"\b(expired|session|ttl)\b", re.IGNORECASE)


def arrays_of(data: Any) -> dict[str, Array]:  # noqa: ANN401
    """`evs` and `stds` (K, N) of one PUB's data bin."""
    evs, stds = np.asarray(data.evs, dtype=float), np.asarray(data.stds, dtype=float)
    return {"evs": evs.reshape(len(evs), -1), "stds": stds.reshape(len(stds), -1)}


def submission_error(answer: Answer | None, error: Exception) -> IbmError:
    """Does a job exist now? By what came back for the post, or by the error where none was made.

    Args:
        answer: to the post, None where none was made.
        error: that the client raised.
    """
    from qiskit_ibm_runtime.exceptions import IBMNotAuthorizedError

    if answer is None:  # the post itself was never made
        if isinstance(error, IBMNotAuthorizedError) or _status_of(error) in (401, 403):
            return CredentialsError(f"IBM Quantum: {first_line(error)}; check the site's token; nothing was spent")
        return SubmissionRefusedError(
            f"not submitted: {first_line(error)}; nothing was spent", transient=_passing(error)
        )
    said = f"{answer.message or first_line(error)} (HTTP {answer.status}, code {answer.code})"
    if answer.code == SESSION_CLOSED_CODE:
        return SessionClosedError(f"the session is closed: {said}; it took no job, earlier ones are kept; try again")
    if answer.status in (401, 403):
        return SubmissionRefusedError(f"not submitted, the site's account may not: {said}; nothing was spent")
    if answer.status == 429:
        return SubmissionRefusedError(f"not submitted, too many requests: {said}", transient=True)
    if answer.status is not None and 400 <= answer.status < 500 and answer.status not in (408, 409):
        return SubmissionRefusedError(f"not submitted: {said}; nothing was spent")
    return SubmissionUncertainError(f"no clear answer to the submission: {said}")


def state_of(status: str, code: int | None, message: str) -> State:
    """How a job stands.

    Args:
        status: as the client calls it.
        code: of the reason, in the service's registry.
        message: the reason in words.
    """
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
def reading(what: str) -> Iterator[None]:
    """Errors of calls that cost nothing."""
    from qiskit.providers.exceptions import QiskitBackendNotFoundError
    from qiskit_ibm_runtime.exceptions import IBMError, IBMNotAuthorizedError
    from requests import RequestException

    try:
        with quiet():
            yield
    except IBMNotAuthorizedError as error:
        raise CredentialsError(
            f"IBM Quantum: cannot {what}, the token is not accepted ({first_line(error)}); renew it; no job was made"
        ) from error
    except QiskitBackendNotFoundError as error:
        raise PreflightError(
            f"IBM Quantum: cannot {what}: expected a device of this account ({first_line(error)}); see "
            "QiskitRuntimeService().backends(); nothing was spent"
        ) from error
    except (IBMError, RequestException) as error:
        raise ServiceUnavailableError(f"IBM Quantum: cannot {what} ({first_line(error)})") from error


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


def first_line(error: BaseException) -> str:
    """What an error says, for a message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

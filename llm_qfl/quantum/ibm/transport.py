"""No blind repeats: the one place that reaches below qiskit-ibm-runtime's public surface.

Its HTTP session repeats a POST up to five times on 500, 502 to 504, 520 to 522 and 524 (`api/session.py`), below any
ledger: a job that was taken before the gateway gave up would be paid again. Here the calls that make something, and
only these, go through an adapter that sends once; reading and cancelling keep the client's retries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from requests import PreparedRequest, RequestException, Response
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3.util.retry import Retry

from llm_qfl.quantum.ibm.errors import IbmError

TIMEOUT = (5.0, 60.0)
"""Seconds to connect, and of silence before an answer is given up; the client has no limit for the second."""


@dataclass(frozen=True)
class Answer:
    """What came back for the last call that makes something.

    Attributes:
        status: of HTTP, or None where the connection ended without an answer.
        code: IBM's error code, 0 where there is none.
        message: IBM's words.
    """

    status: int | None
    code: int = 0
    message: str = ""


class SendOnce(BaseAdapter):
    """POST to `/jobs` and `/sessions` once, everything else as before.

    Args:
        usual: the adapter that the client mounted.
    """

    def __init__(self, usual: BaseAdapter) -> None:
        super().__init__()
        self._usual = usual
        self._once = HTTPAdapter(max_retries=Retry(total=0, redirect=False, status=0, other=0, read=False))
        self.last: Answer | None = None

    def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:  # noqa: ANN401
        """See requests."""
        if kwargs.get("timeout") is None:  # behind a proxy, the client sets none
            kwargs["timeout"] = TIMEOUT
        path = urlsplit(request.url or "").path
        if request.method != "POST" or not str(path).endswith(("/jobs", "/sessions")):
            return self._usual.send(request, *args, **kwargs)
        self.last = Answer(None)
        try:
            response = self._once.send(request, *args, **kwargs)
        except RequestException as error:
            self.last = Answer(None, message=type(error).__name__)
            raise
        self.last = Answer(response.status_code, *_error_of(response))
        return response

    def close(self) -> None:
        """See requests."""
        self._once.close()
        self._usual.close()


def send_once(backend: Any) -> SendOnce:  # noqa: ANN401
    """Guard the session that this backend's jobs are submitted through.

    Args:
        backend: an IBMBackend.

    Raises:
        IbmError: this release of qiskit-ibm-runtime keeps its session elsewhere; nothing is submitted then.
    """
    try:
        session = backend.service._get_api_client(backend._instance)._session
        mounted = dict(session.adapters)
    except AttributeError as error:
        raise IbmError(
            f"qiskit-ibm-runtime: expected release 0.51, got one that keeps its HTTP session elsewhere ({error}); "
            "its repeats cannot be switched off, so nothing is submitted"
        ) from error
    guards = [adapter for adapter in mounted.values() if isinstance(adapter, SendOnce)]
    guard = guards[0] if guards else SendOnce(mounted["https://"])
    for prefix in mounted:
        session.mount(prefix, guard)
    return guard


def _error_of(response: Response) -> tuple[int, str]:
    if response.ok:
        return 0, ""
    try:
        errors = response.json()
        error = errors["errors"][0] if errors.get("errors") else errors["error"]
        return int(error["code"]), str(error["message"])[:300]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return 0, response.text[:300]

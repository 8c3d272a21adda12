"""Jobs on their own, in a batch or in a session; the open one's id is kept on disk beside the ledger.

To open one is a POST that cannot be looked up afterwards. It is sent once, after a note on disk that says so. A process
that dies in between leaves, at worst, one that nobody uses: without a job it costs nothing and the service closes it
when it has been idle.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from llm_qfl.quantum.ibm.errors import LedgerError, SubmissionRefusedError
from llm_qfl.quantum.ibm.ledger import Ledger
from llm_qfl.quantum.ibm.service import IbmService, open_once

Mode = Literal["job", "batch", "session"]
_LOG = logging.getLogger(__name__)


class Modes:
    """The site's open batch or session of each device.

    Args:
        mode: of all jobs.
        ledger: of the site; the ids are files in its folder.
    """

    def __init__(self, mode: Mode, ledger: Ledger) -> None:
        self._mode, self._ledger = mode, ledger
        self._open: dict[str, Any] = {}

    def of(self, device: Any, service: IbmService) -> Any:  # noqa: ANN401
        """What the primitive takes as its mode: the device, or its open batch or session.

        Args:
            device: an IBMBackend.
            service: connected.

        Raises:
            SubmissionRefusedError: none is open and the service opens none; no job was submitted.
            LedgerError: the file with the id is damaged.
        """
        if self._mode == "job":
            return device
        if device.name not in self._open:
            with self._ledger.lock(f"{self._mode}-{device.name}", wait=True):
                self._open[device.name] = self._found(device, service) or self._made(device)
        return self._open[device.name]

    def forget(self, device: Any) -> None:  # noqa: ANN401
        """The service has closed it: the next job opens another."""
        self._open.pop(device.name, None)
        self._path(device.name).unlink(missing_ok=True)

    def close(self, connect: Callable[[], IbmService]) -> None:
        """Close whatever is open, also what a process before this one had opened; jobs in it run to their end.

        Args:
            connect: called only if there is something to close.
        """
        if self._mode == "job":
            return
        for path in sorted(self._ledger.folder.glob(f"{self._mode}-*.open")):
            if (session_id := _read(path)) is not None:
                connect().close_session(session_id)
            path.unlink(missing_ok=True)
        self._open.clear()

    def _found(self, device: Any, service: IbmService) -> Any | None:  # noqa: ANN401
        path = self._path(device.name)
        if not path.exists():
            return None
        session_id = _read(path)
        if session_id is None:
            _LOG.warning(
                "%s: the process died while a %s was being opened; if the service opened it, it is empty, costs "
                "nothing and is closed when idle; another one is opened now",
                device.name,
                self._mode,
            )
            return None
        found = service.session(self._mode, session_id)
        if found is None:
            _LOG.warning("%s %s is closed; another one is opened for the next job", self._mode, session_id)
        return found

    def _made(self, device: Any) -> Any:  # noqa: ANN401
        self._ledger.write(self._path(device.name), json.dumps({"id": None}).encode())
        try:
            made = open_once(self._mode, device)
        except SubmissionRefusedError:
            self._path(device.name).unlink(missing_ok=True)
            raise
        self._ledger.write(self._path(device.name), json.dumps({"id": made.session_id}).encode())
        return made

    def _path(self, device: str) -> Path:
        return self._ledger.folder / f"{self._mode}-{device}.open"


def _read(path: Path) -> str | None:
    try:
        session_id = json.loads(path.read_bytes())["id"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LedgerError(
            f"ledger: {path} is damaged ({error}); remove it: the next job opens another batch or session; "
            "nothing was submitted"
        ) from error
    return None if session_id is None else str(session_id)

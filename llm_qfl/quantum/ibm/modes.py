"""Jobs on their own, in a batch or in a session; the open one's id is kept on disk beside the ledger.

To open one is a POST that cannot be looked up afterwards. It is sent once, after a note on disk that says so. A process
that dies in between leaves, at worst, one that nobody uses: without a job it costs nothing and the service closes it
when it has been idle.

A batch or session belongs to one run of one site: the end of a task closes no other one's. A session is paid from its
first job to its closing. What that is beside its jobs is booked as an entry of the ledger, which grows while the
session is open and stays when it is closed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from llm_qfl.quantum.ibm.errors import LedgerError, ServiceUnavailableError, SubmissionRefusedError
from llm_qfl.quantum.ibm.ledger import Entry, Intent, Ledger, digest
from llm_qfl.quantum.ibm.service import IbmService, open_once

Mode = Literal["job", "batch", "session"]
_LOG = logging.getLogger(__name__)
_LOCK = "sessions"


class Modes:
    """The site's open batch or session of each device.

    Args:
        mode: of all jobs.
        ledger: of the site; the ids are files in its folder.
    """

    def __init__(self, mode: Mode, ledger: Ledger) -> None:
        self._mode, self._ledger = mode, ledger
        self._open: dict[Path, Any] = {}
        self._owners: set[str] = set()

    def works_for(self, run: str, site: str) -> None:
        """What is open for this site in this run is closed at the end, also if a process before this one opened it."""
        self._owners.add(_owner(run, site))

    def of(self, device: Any, service: IbmService, intent: Intent, seconds: float | None) -> Any:  # noqa: ANN401
        """What the primitive takes as its mode: the device, or its open batch or session.

        Args:
            device: an IBMBackend.
            service: connected.
            intent: whose run and site it is for.
            seconds: after which the service shall close a session that is opened now, or None.

        Raises:
            SubmissionRefusedError: none is open and the service opens none; no job was submitted.
            LedgerError: the file with the id is damaged.
        """
        if self._mode == "job":
            return device
        path = self._path(device.name, intent)
        if path not in self._open:
            with self._ledger.lock(_LOCK, wait=True):
                self._open[path] = self._found(path, service) or self._made(path, device, intent, seconds)
        return self._open[path]

    def forget(self, device: Any, intent: Intent) -> None:  # noqa: ANN401
        """The service has closed it: the next job opens another."""
        path = self._path(device.name, intent)
        self._open.pop(path, None)
        with self._ledger.lock(_LOCK, wait=True):
            self._ended(path)

    def close(self, connect: Callable[[], IbmService]) -> None:
        """Close what is open for whom this process works; jobs in it run to their end.

        Args:
            connect: called only if there is something to close.
        """
        for owner in sorted(self._owners if self._mode != "job" else ()):
            with self._ledger.lock(_LOCK, wait=True):
                for path in sorted(self._ledger.folder.glob(f"{self._mode}-*-{owner}.open")):
                    if (note := _read(path))["id"] is not None:
                        connect().close_session(note["id"], note["instance"])
                    self._ended(path)
        self._open.clear()
        self.settle(connect)

    def settle(self, connect: Callable[[], IbmService]) -> None:
        """Book what the sessions in this folder have cost beside their jobs, so far or in the end.

        Args:
            connect: called only if there are any.
        """
        if not self._sessions():
            return
        with self._ledger.lock(_LOCK, wait=True):
            for path in self._sessions():
                if (note := _read(path))["id"] is not None:
                    self._ask(path, note, connect)

    def _sessions(self) -> list[Path]:
        folder = self._ledger.folder
        return sorted([*folder.glob("session-*.open"), *folder.glob("session-*.ended")])

    def _ask(self, path: Path, note: dict[str, Any], connect: Callable[[], IbmService]) -> None:
        try:
            usage = connect().session_usage(note["id"], note["instance"])
        except ServiceUnavailableError as error:
            _LOG.warning("session %s: what it costs beside its jobs is not known now: %s", note["id"], error)
            return
        if usage is None:
            _LOG.warning(
                "session %s: the service does not tell what it cost beside its jobs; look it up in the account, the "
                "budgets do not know it",
                note["id"],
            )
        else:
            self._book(note, usage.seconds)
        if path.suffix == ".ended" and (usage is None or usage.final):
            path.unlink()

    def _book(self, note: dict[str, Any], seconds: float) -> None:
        step = f"session {note['id']}"
        intent = Intent(note["run"], note["site"], 0, step, "session", "", "", note["backend"])
        jobs = [entry for entry in self._ledger.entries() if entry.session == note["id"]]
        beside = max(0.0, seconds - sum(entry.held for entry in jobs))
        metrics = {"qpu_seconds": beside}
        entry = Entry(intent, "done", instance=note["instance"], device=note["device"], metrics=metrics)
        if self._ledger.get(intent.key) != entry:
            self._ledger.put(entry)

    def _found(self, path: Path, service: IbmService) -> Any | None:  # noqa: ANN401
        if not path.exists():
            return None
        note = _read(path)
        if note["id"] is None:
            _LOG.warning(
                "%s: the process died while a %s was being opened; if the service opened it, it is empty, costs "
                "nothing and is closed when idle; another one is opened now",
                note["device"],
                self._mode,
            )
            return None
        found = service.session(self._mode, note["id"])
        if found is None:
            _LOG.warning("%s %s is closed; another one is opened for the next job", self._mode, note["id"])
            self._ended(path)
        return found

    def _made(self, path: Path, device: Any, intent: Intent, seconds: float | None) -> Any:  # noqa: ANN401
        note = {
            "id": None, "run": intent.run, "site": intent.site, "backend": intent.backend, "device": device.name,
            "instance": device._instance,
        }  # fmt: skip
        self._ledger.write(path, json.dumps(note).encode())
        try:
            made = open_once(self._mode, device, None if seconds is None else int(seconds))
        except SubmissionRefusedError:
            path.unlink(missing_ok=True)
            raise
        self._ledger.write(path, json.dumps(note | {"id": made.session_id}).encode())
        return made

    def _ended(self, path: Path) -> None:
        """It takes no more jobs; what a session cost is still to be asked for."""
        if not path.exists():
            return
        session_id = _read(path)["id"]
        if self._mode == "session" and session_id is not None:
            path.rename(path.with_name(f"session-{digest(session_id)[:12]}.ended"))
        else:
            path.unlink()

    def _path(self, device: str, intent: Intent) -> Path:
        return self._ledger.folder / f"{self._mode}-{device}-{_owner(intent.run, intent.site)}.open"


def _owner(run: str, site: str) -> str:
    return digest([run, site])[:12]


def _read(path: Path) -> dict[str, Any]:
    try:
        note: dict[str, Any] = json.loads(path.read_bytes())
        if not {"id", "run", "site", "backend", "device", "instance"} <= set(note):
            raise KeyError("fields")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LedgerError(
            f"ledger: {path} is damaged ({error}); remove it: the next job opens another batch or session; "
            "nothing was submitted"
        ) from error
    return note

"""The site's ledger of IBM Quantum jobs: what is meant to be submitted is on disk before it is.

One JSON file per intent, named by its key; results beside it as `.npz` (no pickle). Every write goes to a temporary
file, is synced, renamed and its folder synced, so that a reader sees the old entry or the new one and nothing between.
A file whose checksum does not match is an error and never a reason to submit.

States: `intent` (nothing has left this machine) -> `submitting` (the call may have reached the service) ->
`submitted` (the job's id is known) -> `done`, `failed`, `cancelled`, `expired` or `timed-out`.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from llm_qfl.federation.types import Array
from llm_qfl.quantum.ibm.entry import (
    ENDED_BADLY,
    Entry,
    Intent,
    State,
    decode,
    digest,
    digest_array,
    encode,
)
from llm_qfl.quantum.ibm.errors import LedgerBusyError, LedgerError

__all__ = ["ENDED_BADLY", "Entry", "Intent", "Ledger", "State", "digest", "digest_array"]

_KEY = re.compile(r"[0-9a-f]{40}")


class Ledger:
    """The entries of one site.

    Args:
        folder: on a disk that survives the process; made if missing.

    Raises:
        LedgerError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise LedgerError(f"ledger: cannot make {folder} ({error}); nothing was submitted") from error

    def get(self, key: str) -> Entry | None:
        """The entry of this key, or None.

        Raises:
            LedgerError: the file is damaged.
        """
        path = self._path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LedgerError(f"ledger: cannot read {path} ({error}); nothing was submitted") from error
        return decode(data, path)

    def put(self, entry: Entry) -> Entry:
        """Write, durably, and return the entry.

        Raises:
            LedgerError: the disk does not take it.
        """
        self.write(self._path(entry.intent.key), encode(entry))
        return entry

    def entries(self) -> list[Entry]:
        """All of them, by key.

        Raises:
            LedgerError: one is damaged.
        """
        paths = sorted(path for path in self.folder.glob("*.json") if _KEY.fullmatch(path.stem))
        return [entry for path in paths if (entry := self.get(path.stem)) is not None]

    def spent(self, run: str | None = None, own: Collection[str] = (), site: str | None = None) -> float:
        """QPU seconds of this run and site, or of all: known ones, and the most that what is under way may take.

        An intent is under way while a process holds its lock.

        Args:
            run: or None for all.
            own: keys of intents that are not counted.
            site: or None for all.
        """
        total = 0.0
        for entry in self.entries():
            intent = entry.intent
            if (run is not None and intent.run != run) or (site is not None and intent.site != site):
                continue
            reserved = entry.state == "intent" and intent.key not in own and self._is_held(intent.key)
            total += entry.held + (entry.reserved if reserved else 0.0)
        return total

    def put_result(self, entry: Entry, arrays: Mapping[str, Array], metrics: Mapping[str, float]) -> Entry:
        """Result first, then the state: `done` means that the arrays are on disk.

        Args:
            entry: with its job's id.
            arrays: named arrays.
            metrics: numbers that the service told.
        """
        plain = {name: np.asarray(values, dtype=np.float64) for name, values in arrays.items()}
        buffer = io.BytesIO()
        np.savez(buffer, **plain)  # type: ignore[arg-type]  # the stub takes any keyword for allow_pickle
        data = buffer.getvalue()
        self.write(self._result_path(entry), hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
        return self.put(replace(entry, state="done", reason=None, metrics=dict(metrics)))

    def result(self, entry: Entry) -> dict[str, Array] | None:
        """The arrays of a job that is done; None where the file is gone or damaged: fetch them again."""
        try:
            head, _, data = self._result_path(entry).read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LedgerError(f"ledger: cannot read {self._result_path(entry)} ({error})") from error
        if hashlib.sha256(data).hexdigest().encode() != head:
            return None
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return dict(arrays)

    def again(self, key: str) -> Entry:
        """A person decided that a job that ended badly, or is lost, shall be run again: a new attempt with a new tag.

        Raises:
            LedgerError: there is no such entry, or it neither ended badly nor is lost.
        """
        entry = self.get(key)
        if entry is None or not entry.needs_person:
            state = "no such entry" if entry is None else f"its state is {entry.state}"
            raise LedgerError(f"ledger: {key} cannot be run again, expected one of {ENDED_BADLY}: {state}")
        previous = (*entry.previous, *([entry.job_id] if entry.job_id else []), *entry.others)
        estimate, seconds = entry.estimate, entry.seconds
        return self.put(Entry(entry.intent, "intent", estimate, entry.attempt + 1, None, previous=previous,
                              previous_seconds=seconds))  # fmt: skip

    @contextmanager
    def lock(self, name: str, *, wait: bool | float = False) -> Iterator[None]:
        """Only one process at a time; the system lets go of it when the holder dies.

        Args:
            name: an entry's key, or of what else is not for two.
            wait: until the other lets go, or for so many seconds.

        Raises:
            LedgerBusyError: another process holds it.
            LedgerError: the file cannot be made.
        """
        path = self.folder / f"{name}.lock"
        try:
            file = path.open("a")
        except OSError as error:
            raise LedgerError(f"ledger: cannot make {path} ({error}); nothing was submitted") from error
        with file:
            _flock(file, name, wait=wait)
            yield

    def _is_held(self, key: str) -> bool:
        try:
            with (self.folder / f"{key}.lock").open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _result_path(self, entry: Entry) -> Path:
        return self.folder / f"{entry.intent.key}-{entry.attempt}.npz"

    def write(self, path: Path, data: bytes) -> None:
        """Write a file of the ledger's folder, durably: all of it or nothing.

        Raises:
            LedgerError: the disk does not take it.
        """
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise LedgerError(f"ledger: cannot write {path} ({error}); free the disk or mend its rights") from error


def _flock(file: IO[str], name: str, *, wait: bool | float) -> None:
    if wait is True:
        return fcntl.flock(file, fcntl.LOCK_EX)
    # Without waiting, a few looks all the same: for a moment, the holder may be a look from `spent`.
    pause, until = (0.01, time.monotonic() + 0.2) if wait is False else (0.25, time.monotonic() + wait)
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= until:
                raise LedgerBusyError(
                    f"ledger: another process works on {name}; wait for it, nothing was submitted"
                ) from error
        time.sleep(pause)

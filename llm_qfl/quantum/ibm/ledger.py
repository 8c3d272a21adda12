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
import json
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np

from llm_qfl.federation.types import Array
from llm_qfl.quantum.ibm.errors import LedgerError

State = Literal["intent", "submitting", "submitted", "done", "failed", "cancelled", "expired", "timed-out"]
ENDED_BADLY: tuple[State, ...] = ("failed", "cancelled", "expired", "timed-out")
TAG_PREFIX = "llm-qfl-"
_LOCK_ATTEMPTS = 20
_KEY = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Intent:
    """What shall be run, and for whom. Equal intents are the same job.

    The device is the one *asked for* (`ibm:least-busy`, say), and the circuit the logical one: what the service
    answers next time, or tomorrow's calibration, must not turn a paid job into a new one.

    Attributes:
        run: of the federation.
        site: name of the site.
        round: of the federation.
        step: within the round, unique there (`train/3/gradient`).
        circuit: digest of circuit and observables.
        parameters: digest of the parameter values.
        options: digest of shots, mitigation and the like.
        backend: as configured.
    """

    run: str
    site: str
    round: int
    step: str
    circuit: str
    parameters: str
    options: str
    backend: str

    @property
    def key(self) -> str:
        """Forty hexadecimal digits: the file's name and the core of the job's tag."""
        return digest(asdict(self))[:40]


@dataclass(frozen=True)
class Entry:
    """One intent and what became of it.

    Attributes:
        intent: what shall be run.
        state: see the module.
        estimate: QPU seconds that it was thought to cost when it was let through.
        attempt: 0, and one more each time that a person had a job that ended badly run again.
        job_id: at the service, once known.
        instance: the service's instance that holds it.
        device: the one chosen.
        calibration: of the chosen physical qubits when it was let through.
        reason: why it ended badly.
        metrics: queue_seconds, qpu_seconds, ... as the service told.
        previous: ids of the jobs of earlier attempts.
        previous_seconds: QPU seconds that these cost.
    """

    intent: Intent
    state: State = "intent"
    estimate: float = 0.0
    attempt: int = 0
    job_id: str | None = None
    instance: str | None = None
    device: str | None = None
    calibration: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    previous: tuple[str, ...] = ()
    previous_seconds: float = 0.0

    @property
    def tag(self) -> str:
        """What the job carries at the service."""
        return f"{TAG_PREFIX}{self.intent.key}-{self.attempt}"

    @property
    def seconds(self) -> float:
        """QPU seconds that count against a budget: what the service told, else the estimate."""
        pending = 0.0 if self.state == "intent" else self.estimate
        return self.previous_seconds + self.metrics.get("qpu_seconds", pending)


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
        return _decode(data, path)

    def put(self, entry: Entry) -> Entry:
        """Write, durably, and return the entry.

        Raises:
            LedgerError: the disk does not take it.
        """
        self.write(self._path(entry.intent.key), _encode(entry))
        return entry

    def entries(self) -> list[Entry]:
        """All of them, by key.

        Raises:
            LedgerError: one is damaged.
        """
        paths = sorted(path for path in self.folder.glob("*.json") if _KEY.fullmatch(path.stem))
        return [entry for path in paths if (entry := self.get(path.stem)) is not None]

    def spent(self, run: str | None = None, own: Collection[str] = ()) -> float:
        """QPU seconds of this run, or of all runs: known ones, and the estimates of what is under way.

        An intent is under way while a process holds its lock.

        Args:
            run: or None for all.
            own: keys of intents that are not counted.
        """
        total = 0.0
        for entry in self.entries():
            if run is not None and entry.intent.run != run:
                continue
            key = entry.intent.key
            reserved = entry.state == "intent" and key not in own and self._is_held(key)
            total += entry.seconds + (entry.estimate if reserved else 0.0)
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
        return self.put(replace(entry, state="done", metrics=dict(metrics)))

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
        """A person decided that a job that ended badly shall be run again: a new attempt with a new tag.

        Raises:
            LedgerError: there is no such entry, or it did not end badly.
        """
        entry = self.get(key)
        if entry is None or entry.state not in ENDED_BADLY:
            state = "no such entry" if entry is None else f"its state is {entry.state}"
            raise LedgerError(f"ledger: {key} cannot be run again, expected one of {ENDED_BADLY}: {state}")
        previous = (*entry.previous, *([entry.job_id] if entry.job_id else []))
        estimate, seconds = entry.estimate, entry.seconds
        return self.put(Entry(entry.intent, "intent", estimate, entry.attempt + 1, None, previous=previous,
                              previous_seconds=seconds))  # fmt: skip

    @contextmanager
    def lock(self, name: str, *, wait: bool = False) -> Iterator[None]:
        """Only one process at a time; the system lets go of it when the holder dies.

        Args:
            name: an entry's key, or of what else is not for two.
            wait: until the other lets go.

        Raises:
            LedgerError: another process holds it, or the file cannot be made.
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


def digest(value: object) -> str:
    """SHA-256 of a value as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def digest_array(values: Array) -> str:
    """SHA-256 of dtype, shape and bytes, the same on every machine."""
    plain = np.ascontiguousarray(values, dtype="<f8")
    return hashlib.sha256(f"{plain.shape}".encode() + plain.tobytes()).hexdigest()


def _flock(file: IO[str], name: str, *, wait: bool) -> None:
    for attempt in range(_LOCK_ATTEMPTS):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:  # for a moment, it may be a look from `spent`
            if attempt == _LOCK_ATTEMPTS - 1:
                raise LedgerError(
                    f"ledger: another process works on {name}; wait for it, nothing was submitted"
                ) from error
            time.sleep(0.01)
    return None


def _encode(entry: Entry) -> bytes:
    body = asdict(entry)
    return json.dumps({"version": 1, "checksum": digest(body), "entry": body}, sort_keys=True, indent=1).encode()


def _decode(data: bytes, path: Path) -> Entry:
    what = "move the file away only if you know that no job of it exists at the service; nothing was submitted"
    try:
        outer = json.loads(data)
        body: dict[str, Any] = outer["entry"]
        if outer["version"] != 1 or outer["checksum"] != digest(body) or body["state"] not in get_args(State):
            raise ValueError("checksum, version or state")
        intent = Intent(**body.pop("intent"))
        if set(body) != {item.name for item in fields(Entry)} - {"intent"} or intent.key != path.stem:
            raise ValueError("fields or file name")
        return Entry(intent, **(body | {"previous": tuple(body["previous"])}))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LedgerError(f"ledger: {path} is damaged ({error}); restore it from a copy, or {what}") from error

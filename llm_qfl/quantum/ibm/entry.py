"""What the ledger keeps: an intent, what became of it, and how that is written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from llm_qfl.federation.types import Array
from llm_qfl.quantum.ibm.errors import LedgerError

State = Literal["intent", "submitting", "submitted", "done", "failed", "cancelled", "expired", "timed-out"]
ENDED_BADLY: tuple[State, ...] = ("failed", "cancelled", "expired", "timed-out")
TAG_PREFIX = "llm-qfl-"
_LATER = {"cap", "circuits", "shots", "submitted", "session", "others"}  # not in files of the first release


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
        reason: why it ended badly, or why a person must look although it did not.
        metrics: queue_seconds, qpu_seconds, ... as the service told.
        previous: ids of the jobs of earlier attempts.
        previous_seconds: QPU seconds that these cost, and the most that `others` may.
        cap: most QPU seconds that the job may take, as the service was told; None where there was no limit.
        circuits: before twirling, calibration included.
        shots: of each.
        submitted: when it was last about to be sent, in ISO 8601.
        session: at the service, that it runs in.
        others: ids of further jobs that the service lists with the same tag.
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
    cap: int | None = None
    circuits: int = 0
    shots: int = 0
    submitted: str | None = None
    session: str | None = None
    others: tuple[str, ...] = ()

    @property
    def tag(self) -> str:
        """What the job carries at the service."""
        return f"{TAG_PREFIX}{self.intent.key}-{self.attempt}"

    @property
    def seconds(self) -> float:
        """QPU seconds that it cost: what the service told, else the estimate."""
        pending = 0.0 if self.state == "intent" else self.estimate
        return self.previous_seconds + self.metrics.get("qpu_seconds", pending)

    @property
    def reserved(self) -> float:
        """QPU seconds that a job may take which the service has told nothing of yet."""
        return self.estimate if self.cap is None else float(self.cap)

    @property
    def held(self) -> float:
        """QPU seconds that count against a budget: what the service told, else the most that the job may take."""
        pending = 0.0 if self.state == "intent" else self.reserved
        return self.previous_seconds + self.metrics.get("qpu_seconds", pending)

    @property
    def needs_person(self) -> bool:
        """It ended without a result, or the service or the disk has lost it; it is not replaced on its own."""
        return self.state in ENDED_BADLY or (self.state in ("submitted", "done") and self.reason is not None)


def digest(value: object) -> str:
    """SHA-256 of a value as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def digest_array(values: Array) -> str:
    """SHA-256 of dtype, shape and bytes, the same on every machine."""
    plain = np.ascontiguousarray(values, dtype="<f8")
    return hashlib.sha256(f"{plain.shape}".encode() + plain.tobytes()).hexdigest()


def encode(entry: Entry) -> bytes:
    """As the file's content, with a checksum."""
    body = asdict(entry)
    return json.dumps({"version": 1, "checksum": digest(body), "entry": body}, sort_keys=True, indent=1).encode()


def decode(data: bytes, path: Path) -> Entry:
    """From a file's content.

    Args:
        data: the content.
        path: the file's, whose name is the key.

    Raises:
        LedgerError: it is damaged.
    """
    what = "move the file away only if you know that no job of it exists at the service; nothing was submitted"
    try:
        outer = json.loads(data)
        body: dict[str, Any] = outer["entry"]
        if outer["version"] != 1 or outer["checksum"] != digest(body) or body["state"] not in get_args(State):
            raise ValueError("checksum, version or state")
        intent = Intent(**body.pop("intent"))
        known = {item.name for item in fields(Entry)} - {"intent"}
        if not known - _LATER <= set(body) <= known or intent.key != path.stem:
            raise ValueError("fields or file name")
        return Entry(intent, **(body | {"previous": tuple(body["previous"]), "others": tuple(body.get("others", ()))}))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LedgerError(f"ledger: {path} is damaged ({error}); restore it from a copy, or {what}") from error

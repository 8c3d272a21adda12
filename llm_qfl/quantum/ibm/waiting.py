"""What a submission asks of a service, and how long it waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from llm_qfl.federation.types import Array
from llm_qfl.quantum.ibm.ledger import State


@dataclass(frozen=True)
class JobState:
    """What the service says of a job.

    Attributes:
        state: `submitted` while it is queued or runs, else how it ended.
        reason: in the service's words.
        metrics: numbers of the service: queue_seconds, qpu_seconds.
    """

    state: State
    reason: str | None = None
    metrics: Mapping[str, float] | None = None


class JobService(Protocol):
    """What submission needs of a service. Each call raises ServiceUnavailableError where it does not answer."""

    def submit(self, tag: str) -> str:
        """Submit once, repeating nothing; the job's id.

        Raises:
            SubmissionRefusedError: no job exists.
            SubmissionUncertainError: one may exist.
        """

    def find(self, tag: str) -> list[str]:
        """Ids of the jobs with this tag, oldest first."""

    def state(self, job_id: str) -> JobState | None:
        """None where the service does not know the job."""

    def result(self, job_id: str) -> dict[str, Array]:
        """Arrays of a job that is done."""

    def metrics(self, job_id: str) -> dict[str, float]:
        """Numbers of a job that has ended."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for what, in seconds.

    Attributes:
        listing_bound: after which a job that the service accepted is listed by its tag, request included.
        attempts: submissions, or calls of one kind, before giving up.
        backoff: before the second attempt, doubled each time.
        longest: between two attempts or polls.
        poll: first interval between two looks at a job.
        job: for a job to end; then JobWaitError, and the job stays in the ledger.
    """

    listing_bound: float = 120.0
    attempts: int = 5
    backoff: float = 1.0
    longest: float = 60.0
    poll: float = 2.0
    job: float = 86_400.0


@dataclass(frozen=True)
class Clock:
    """Time as the tests may replace it."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

"""From an intent to exactly one job and its result, whenever the process dies.

The only call that costs is `JobService.submit`. It is made once the entry says `submitting` on disk, and again only
where the service is known to hold no job with the entry's tag: because it refused, or because the tag is still
unlisted after the *listing bound*, the longest time that the service takes to list what it has accepted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from llm_qfl.federation.types import Array
from llm_qfl.quantum.ibm.errors import (
    JobCancelledError,
    JobError,
    JobExpiredError,
    JobFailedError,
    JobTimedOutError,
    JobWaitError,
    ServiceUnavailableError,
    SubmissionRefusedError,
    SubmissionUncertainError,
)
from llm_qfl.quantum.ibm.ledger import Entry, Ledger, State

_T = TypeVar("_T")
_ERRORS: Mapping[State, type[JobError]] = {
    "failed": JobFailedError,
    "cancelled": JobCancelledError,
    "expired": JobExpiredError,
    "timed-out": JobTimedOutError,
}


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


class Submission:
    """One entry, one service.

    Args:
        ledger: of the site.
        service: bound to the circuits of this entry.
        patience: how long to wait.
        clock: monotonic time.
    """

    def __init__(
        self, ledger: Ledger, service: JobService, patience: Patience | None = None, clock: Clock | None = None
    ) -> None:
        self._ledger, self._service = ledger, service
        self._patience, self._clock = patience or Patience(), clock or Clock()

    def ensure_job(self, entry: Entry) -> Entry:
        """The entry with its job's id: looked up if one may exist, submitted if none does.

        Raises:
            SubmissionRefusedError: the service takes no such job.
            ServiceUnavailableError: it does not answer; the entry says what is known.
        """
        if entry.job_id is None and entry.state == "submitting":
            entry = self._look_up(entry)
        for attempt in range(self._patience.attempts):
            if entry.job_id is not None:
                return entry
            if attempt:
                self._clock.sleep(self._pause(attempt))
            entry = self._submit(entry)
        if entry.job_id is not None:
            return entry
        raise ServiceUnavailableError(
            f"IBM Quantum took no job in {self._patience.attempts} attempts (tag {entry.tag}); try again later"
        )

    def collect(self, entry: Entry) -> tuple[Entry, dict[str, Array]]:
        """Wait for the job and store its result.

        Args:
            entry: with its job's id.

        Returns:
            The entry and the arrays.

        Raises:
            JobError: it ended without a result, now or when it was looked at before.
            JobWaitError: it has not ended within `Patience.job`.
        """
        if entry.state == "done" and (arrays := self._ledger.result(entry)) is not None:
            return entry, arrays
        if entry.state in _ERRORS:
            raise self._error(entry)
        if entry.job_id is None:
            raise JobWaitError(f"no job yet for {entry.tag}, its state is {entry.state}; submit first")
        job_id = entry.job_id
        ended = self._wait(job_id)
        metrics = dict(ended.metrics or {}) or self._retry(lambda: self._service.metrics(job_id), default={})
        if ended.state != "done":
            entry = self._ledger.put(replace(entry, state=ended.state, reason=ended.reason, metrics=metrics))
            raise self._error(entry)
        arrays = self._retry(lambda: self._service.result(job_id))
        return self._ledger.put_result(entry, arrays, metrics), arrays

    def _submit(self, entry: Entry) -> Entry:
        entry = self._ledger.put(replace(entry, state="submitting"))
        try:
            job_id = self._service.submit(entry.tag)
        except SubmissionRefusedError as refusal:
            entry = self._ledger.put(replace(entry, state="intent"))
            if not refusal.transient:
                raise
            return entry
        except SubmissionUncertainError:
            return self._look_up(entry)
        return self._ledger.put(replace(entry, state="submitted", job_id=job_id))

    def _look_up(self, entry: Entry) -> Entry:
        """With the job's id, or as `intent` once the bound has passed and no job has the tag."""
        started = self._clock.now()
        while True:
            asked = self._clock.now() - started
            found = self._retry(lambda: self._service.find(entry.tag))
            if found:
                return self._ledger.put(replace(entry, state="submitted", job_id=found[0]))
            if asked >= self._patience.listing_bound:
                return self._ledger.put(replace(entry, state="intent"))
            self._clock.sleep(min(self._patience.poll, max(self._patience.listing_bound - asked, 0.01)))

    def _wait(self, job_id: str) -> JobState:
        started, looks = self._clock.now(), 0
        while True:
            waited = self._clock.now() - started
            state = self._retry(lambda: self._service.state(job_id))
            if state is None and waited >= self._patience.listing_bound:
                return JobState("expired", "the service does not know this job any more", {})
            if state is not None and state.state != "submitted":
                return state
            if waited >= self._patience.job:
                raise JobWaitError(
                    f"job {job_id} has not ended after {waited:.0f} s; it stays in the ledger and is found again"
                )
            self._clock.sleep(min(self._patience.poll * 1.5 ** min(looks, 20), self._patience.longest))
            looks += 1

    def _retry(self, call: Callable[[], _T], default: _T | None = None) -> _T:
        """For calls that cost nothing; a default makes the last failure harmless."""
        for attempt in range(1, self._patience.attempts + 1):
            try:
                return call()
            except ServiceUnavailableError:
                if attempt == self._patience.attempts:
                    if default is None:
                        raise
                    return default
                self._clock.sleep(self._pause(attempt))
        raise AssertionError("attempts is at least 1")

    def _pause(self, attempt: int) -> float:
        return min(self._patience.backoff * 2.0 ** (attempt - 1), self._patience.longest)

    def _error(self, entry: Entry) -> JobError:
        job_id = entry.job_id or "?"
        return _ERRORS[entry.state](
            f"job {job_id} of {entry.intent.site}, round {entry.intent.round}, {entry.intent.step}: {entry.state} "
            f"({entry.reason or 'no reason given'}); it is not replaced on its own. To pay for another attempt: "
            f"Ledger.again({entry.intent.key!r})",
            job_id,
        )

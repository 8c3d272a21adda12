"""From an intent to exactly one job and its result, whenever the process dies.

The only call that costs is `JobService.submit`. It is made once the entry says `submitting` on disk, and again only
where the service is known to hold no job with the entry's tag: because it refused, or because the tag is still
unlisted after the *listing bound*, the longest time that the service takes to list what it has accepted.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

from llm_qfl.federation.types import Array
from llm_qfl.quantum.ibm.errors import (
    IbmError,
    JobCancelledError,
    JobError,
    JobExpiredError,
    JobFailedError,
    JobTimedOutError,
    JobUnknownError,
    JobWaitError,
    LedgerError,
    ResultGoneError,
    ServiceUnavailableError,
    SubmissionRefusedError,
    SubmissionUncertainError,
)
from llm_qfl.quantum.ibm.ledger import Entry, Ledger, State
from llm_qfl.quantum.ibm.waiting import Clock, JobService, JobState, Patience

__all__ = ["Clock", "JobService", "JobState", "Patience", "Submission"]

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")
_ERRORS: Mapping[State, type[JobError]] = {
    "failed": JobFailedError,
    "cancelled": JobCancelledError,
    "expired": JobExpiredError,
    "timed-out": JobTimedOutError,
}


class Submission:
    """One entry, one service.

    Args:
        ledger: of the site.
        service: bound to the circuits of this entry.
        patience: how long to wait.
        clock: monotonic time.
        prepare: called before anything is sent, while the entry says `intent`; it gives back the entry as it shall be
            written, or raises, and then nothing has left this machine.
        account: in words, for messages.
    """

    def __init__(
        self,
        ledger: Ledger,
        service: JobService,
        patience: Patience | None = None,
        clock: Clock | None = None,
        *,
        prepare: Callable[[Entry], Entry] = lambda entry: entry,
        account: Callable[[], str] = lambda: "the site's account",
    ) -> None:
        self._ledger, self._service, self._prepare, self._account = ledger, service, prepare, account
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
            JobUnknownError: the service does not know it.
            ServiceUnavailableError: it does not answer.
        """
        if entry.state == "done" and (arrays := self._ledger.result(entry)) is not None:
            return self.settle(entry), arrays
        if entry.state in _ERRORS:
            raise self._error(entry)
        if entry.job_id is None:
            raise JobWaitError(f"no job yet for {entry.tag}, its state is {entry.state}; submit first")
        job_id = entry.job_id
        ended = self._wait(entry, job_id)
        if ended is None or (entry.state == "done" and ended.state != "done"):
            raise self._lost(entry)
        found = dict(ended.metrics or {}) or self._retry(lambda: self._service.metrics(job_id), default={})
        metrics = entry.metrics | found
        if ended.state != "done":
            entry = self._ledger.put(replace(entry, state=ended.state, reason=ended.reason, metrics=metrics))
            raise self._error(entry)
        arrays = self._retry(lambda: self._service.result(job_id))
        return self._ledger.put_result(entry, arrays, metrics), arrays

    def settle(self, entry: Entry) -> Entry:
        """Ask once more what an ended job has cost, if that is not known; the entry as it is where nobody tells."""
        if entry.job_id is None or "qpu_seconds" in entry.metrics:
            return entry
        try:
            state = self._service.state(entry.job_id)
            if state is None or state.state == "submitted":
                return entry
            found = dict(self._service.metrics(entry.job_id))
        except LedgerError:
            raise
        except IbmError as error:
            _LOG.warning("job %s: its QPU seconds stay an estimate for now: %s", entry.job_id, error)
            return entry
        return self._ledger.put(replace(entry, metrics=entry.metrics | found)) if found else entry

    def _submit(self, entry: Entry) -> Entry:
        try:
            entry = self._prepare(entry)
        except SubmissionRefusedError as refusal:
            if not refusal.transient:
                raise
            return entry
        now = datetime.now(UTC).isoformat(timespec="seconds")
        entry = self._ledger.put(replace(entry, state="submitting", submitted=now))
        try:
            job_id = self._service.submit(entry.tag)
        except SubmissionUncertainError:
            return self._look_up(entry)
        except IbmError as refusal:  # every other one is raised where no job was made
            entry = self._ledger.put(replace(entry, state="intent", submitted=None))
            if not (isinstance(refusal, SubmissionRefusedError) and refusal.transient):
                raise
            return entry
        return self._ledger.put(replace(entry, state="submitted", job_id=job_id))

    def _look_up(self, entry: Entry) -> Entry:
        """With the job's id, or as `intent` once the bound has passed and no job has the tag."""
        started = self._clock.now()
        while True:
            asked = self._clock.now() - started
            found = self._retry(lambda: self._service.find(entry.tag))
            if found:
                return self._found(entry, found)
            if asked >= self._patience.listing_bound:
                return self._ledger.put(replace(entry, state="intent", submitted=None))
            self._clock.sleep(min(self._patience.poll, max(self._patience.listing_bound - asked, 0.01)))

    def _found(self, entry: Entry, found: list[str]) -> Entry:
        """The oldest job is the entry's; that there are more should not happen and is told, and counted as paid."""
        others = tuple(found[1:])
        if others:
            _LOG.error(
                "%s: the service lists %d jobs with this tag, expected one; %s is used, the cost of the others (%s) "
                "is counted with the most that they may take: look at them in the account",
                entry.tag, len(found), found[0], ", ".join(others),
            )  # fmt: skip
        more = entry.previous_seconds + entry.reserved * len(others)
        return self._ledger.put(
            replace(entry, state="submitted", job_id=found[0], others=others, previous_seconds=more)
        )

    def _wait(self, entry: Entry, job_id: str) -> JobState | None:
        """How the job ended; None where the service has not known it for the listing bound.

        An outage of the service ends nothing: the job is at the service, and is asked for until `Patience.job`.
        """
        started, looks, away, unknown = self._clock.now(), 0, False, None
        while True:
            now = self._clock.now()
            try:
                state = self._service.state(job_id)
            except ServiceUnavailableError as error:
                if now - started >= self._patience.job:
                    raise
                if not away:
                    _LOG.warning("job %s of %s is asked for again: %s", job_id, entry.tag, error)
                away = True
            else:
                away, unknown = False, (now if unknown is None else unknown) if state is None else None
                if unknown is not None and now - unknown >= self._patience.listing_bound:
                    return None
                if state is not None and entry.reason is not None:  # it is known again
                    entry = self._ledger.put(replace(entry, reason=None))
                if state is not None and state.state != "submitted":
                    return state
                if now - started >= self._patience.job and state is not None:
                    raise JobWaitError(
                        f"job {job_id} has not ended after {now - started:.0f} s; it stays in the ledger and is found "
                        "again"
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

    def _lost(self, entry: Entry) -> IbmError:
        """Notes why a person must look, and keeps the state: what was paid stays paid."""
        where = f"{self._account()}, instance {entry.instance or 'unknown'}"
        job = f"job {entry.job_id} of {entry.intent.site}, round {entry.intent.round}, {entry.intent.step}"
        if entry.state == "done":
            self._ledger.put(
                replace(entry, reason="the result is gone from this disk, and the service has it no longer")
            )
            return ResultGoneError(
                f"{job} was done, but its result is gone from {self._ledger.folder}, and the service has it no longer "
                f"({where}); restore the file {entry.intent.key}-{entry.attempt}.npz from a copy, or pay for another "
                f"attempt: {self._again(entry)}",
                entry.job_id or "?",
            )
        self._ledger.put(replace(entry, reason=f"the service does not know it ({where})"))
        return JobUnknownError(
            f"{job}: the service does not know it ({where}). Is this the account that it was submitted with? The entry "
            f"stays as it is. If the service has dropped the job, pay for another attempt: {self._again(entry)}"
        )

    def _error(self, entry: Entry) -> JobError:
        job_id = entry.job_id or "?"
        return _ERRORS[entry.state](
            f"job {job_id} of {entry.intent.site}, round {entry.intent.round}, {entry.intent.step}: {entry.state} "
            f"({entry.reason or 'no reason given'}); it is not replaced on its own. To pay for another attempt: "
            f"{self._again(entry)}",
            job_id,
        )

    def _again(self, entry: Entry) -> str:
        return f"llm-qfl jobs --again {entry.intent.key[:12]} {shlex.quote(str(self._ledger.folder))}"

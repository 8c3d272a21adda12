"""What can go wrong with IBM Quantum, told apart by what the reader has to do.

BackendError
└── IbmError
    ├── CredentialsError     no account, wrong token, instance not accessible (nothing was spent)
    ├── PreflightError       device unknown, down or too small; limits of a job (nothing was spent)
    │   └── BudgetError      over the QPU seconds of the run or the site (nothing was spent)
    ├── LedgerError          the ledger cannot be read or written (nothing was spent)
    │   └── LedgerBusyError  another process works on the same step
    ├── SubmissionRefusedError    the service said no: it took no job
    │   └── SessionClosedError
    ├── SubmissionUncertainError  no answer, or an error after which the job may exist; the ledger looks for it
    ├── ServiceUnavailableError   the service does not answer; whatever was submitted stays in the ledger
    ├── JobWaitError         not finished within the site's patience; it stays in the ledger
    ├── JobUnknownError      the service does not know the job that the ledger holds; it stays there
    └── JobError             the job ended without a result; it may have cost QPU seconds
        ├── JobFailedError   JobCancelledError   JobTimedOutError
        └── JobExpiredError
            └── ResultGoneError    it was done, but the result is gone from this disk and from the service

`unfinished` errors leave a task that goes on where it stopped when it is sent again.
"""

from llm_qfl.federation.errors import BackendError


class IbmError(BackendError):
    """Base of the errors of IBM Quantum."""


class CredentialsError(IbmError):
    """No account, a wrong token, or an instance that the account may not use; nothing was spent."""


class PreflightError(IbmError):
    """The device cannot take the job; nothing was spent."""


class BudgetError(PreflightError):
    """The job would cost more QPU seconds than are left; nothing was spent."""


class LedgerError(IbmError):
    """The ledger on the site's disk cannot be read or written; nothing was submitted."""


class LedgerBusyError(LedgerError):
    """Another process works on the same step; what it gets is on the disk then."""

    unfinished = True


class SubmissionRefusedError(IbmError):
    """The service refused the submission: it took no job.

    Args:
        message: what came, and what to do.
        transient: worth another try (too many requests).
        unfinished: worth another task like this one.
    """

    def __init__(self, message: str, *, transient: bool = False, unfinished: bool | None = None) -> None:
        super().__init__(message)
        self.transient = transient
        self.unfinished = transient if unfinished is None else unfinished


class SessionClosedError(SubmissionRefusedError):
    """The session or batch accepts no more jobs; what was submitted before is kept.

    Args:
        message: what came, and what to do.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, unfinished=True)


class SubmissionUncertainError(IbmError):
    """The submission may have reached the service; whether a job exists must be looked up."""

    unfinished = True


class ServiceUnavailableError(IbmError):
    """The service did not answer within the retries; submitted jobs stay in the ledger."""

    unfinished = True


class JobWaitError(IbmError):
    """The job did not finish within the site's patience; it stays in the ledger and is found again."""

    unfinished = True


class JobUnknownError(IbmError):
    """The service does not know the job that the ledger holds: another account or instance, or it was dropped."""

    unfinished = True


class JobError(IbmError):
    """The job ended without a result; it may have cost QPU seconds and is not replaced on its own.

    Args:
        message: what came, and what to do.
        job_id: at the service.
    """

    def __init__(self, message: str, job_id: str) -> None:
        super().__init__(message)
        self.job_id = job_id


class JobFailedError(JobError):
    """It ended in an error."""


class JobCancelledError(JobError):
    """Somebody cancelled it."""


class JobExpiredError(JobError):
    """The service dropped it: its session ended before it ran, or it keeps the result no longer."""


class ResultGoneError(JobExpiredError):
    """It was done and paid; the result is gone from this disk, and the service keeps it no longer."""


class JobTimedOutError(JobError):
    """It ran longer than its maximum execution time."""

"""Every branch from an intent to one job, with a clock that the tests turn."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_qfl.quantum.ibm.errors import (
    BudgetError,
    CredentialsError,
    IbmError,
    JobCancelledError,
    JobExpiredError,
    JobFailedError,
    JobTimedOutError,
    JobUnknownError,
    JobWaitError,
    LedgerError,
    PreflightError,
    ResultGoneError,
    ServiceUnavailableError,
    SubmissionRefusedError,
    SubmissionUncertainError,
)
from llm_qfl.quantum.ibm.ledger import Entry, Intent, Ledger
from llm_qfl.quantum.ibm.submission import Clock, JobState, Patience, Submission

INTENT = Intent("run", "site", 1, "train/0", "c", "p", "o", "ibm:x")
BOUND = 100.0
PATIENCE = Patience(listing_bound=BOUND, attempts=3, backoff=1.0, longest=8.0, poll=2.0, job=500.0)


@dataclass
class Fake:
    """A service: `script` says what each submission does: ok, taken, lost, refused, busy."""

    script: list
    delay: float = 50.0
    ends: float = 30.0
    state_at_end: JobState = field(default_factory=lambda: JobState("done"))
    stumbles: int = 0
    time: float = 0.0
    jobs: list = field(default_factory=list)
    posts: int = 0

    def clock(self):
        return Clock(lambda: self.time, self.sleep)

    def sleep(self, seconds):
        assert seconds > 0
        self.time += seconds

    def submit(self, tag):
        self.posts += 1
        what = self.script.pop(0)
        if what in ("ok", "taken"):
            self.jobs.append((f"job{self.posts}", tag, self.time + self.delay, self.time + self.ends))
        if what == "ok":
            return f"job{self.posts}"
        if what in ("refused", "busy"):
            raise SubmissionRefusedError(what, transient=what == "busy")
        raise SubmissionUncertainError(what)

    def _stumble(self):
        if self.stumbles:
            self.stumbles -= 1
            raise ServiceUnavailableError("away")

    def find(self, tag):
        self._stumble()
        return [job for job, its, listed, _ in self.jobs if its == tag and listed <= self.time]

    def state(self, job_id):
        self._stumble()
        ends = {job: end for job, _, _, end in self.jobs}
        if job_id not in ends:
            return None
        return self.state_at_end if self.time >= ends[job_id] else JobState("submitted")

    def result(self, job_id):
        self._stumble()
        return {"evs": np.ones((1, 2)), "stds": np.zeros((1, 2))}

    def metrics(self, job_id):
        self._stumble()
        return {"qpu_seconds": 4.0}


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path)


def submission(ledger, fake, **more):
    return Submission(ledger, fake, PATIENCE, fake.clock(), **more)


def test_intent_to_result(ledger):
    fake = Fake(["ok"])
    one = submission(ledger, fake)
    entry = one.ensure_job(ledger.put(Entry(INTENT)))
    assert ledger.get(INTENT.key) == entry
    assert (entry.state, entry.job_id) == ("submitted", "job1")
    entry, arrays = one.collect(entry)
    assert (entry.state, entry.metrics) == ("done", {"qpu_seconds": 4.0})
    again, kept = one.collect(ledger.get(INTENT.key))
    np.testing.assert_array_equal(kept["evs"], arrays["evs"])
    assert again == entry


def test_the_disk_says_submitting_before_anything_is_sent(ledger):
    fake = Fake(["ok"])
    seen = []
    submit = fake.submit
    fake.submit = lambda tag: (seen.append(ledger.get(INTENT.key).state), submit(tag))[1]
    submission(ledger, fake).ensure_job(ledger.put(Entry(INTENT)))
    assert seen == ["submitting"]


@pytest.mark.parametrize("delay", [0.0, 50.0, 99.9])
def test_a_job_that_was_taken_without_an_answer_is_found_by_its_tag(ledger, delay):
    fake = Fake(["taken"], delay=delay)
    entry = submission(ledger, fake).ensure_job(ledger.put(Entry(INTENT)))
    assert (entry.job_id, fake.posts) == ("job1", 1)


def test_a_lost_submission_is_repeated_only_after_the_listing_bound(ledger):
    fake = Fake(["lost", "ok"])
    entry = submission(ledger, fake).ensure_job(ledger.put(Entry(INTENT)))
    assert (entry.job_id, fake.posts) == ("job2", 2)
    assert fake.time >= BOUND


@pytest.mark.parametrize("taken", [True, False])
def test_a_process_that_comes_back_looks_before_it_submits(ledger, taken):
    entry = ledger.put(Entry(INTENT, "submitting"))
    fake = Fake(["ok"])
    if taken:
        fake.jobs.append(("job0", entry.tag, 90.0, 95.0))
    found = submission(ledger, fake).ensure_job(entry)
    assert (found.job_id, fake.posts) == (("job0", 0) if taken else ("job1", 1))


def test_a_refusal_leaves_an_intent_and_a_busy_service_is_asked_again(ledger):
    fake = Fake(["busy", "refused", "ok"])
    with pytest.raises(SubmissionRefusedError, match="refused"):
        submission(ledger, fake).ensure_job(ledger.put(Entry(INTENT)))
    assert ledger.get(INTENT.key).state == "intent"
    assert submission(ledger, fake).ensure_job(ledger.get(INTENT.key)).job_id == "job3"


def test_a_service_that_stays_busy_is_given_up(ledger):
    fake = Fake(["busy"] * 9)
    with pytest.raises(ServiceUnavailableError, match="3 attempts"):
        submission(ledger, fake).ensure_job(ledger.put(Entry(INTENT)))
    assert fake.posts == 3
    assert fake.time == 1.0 + 2.0


@pytest.mark.parametrize(("stumbles", "fails"), [(2, False), (3, True)])
def test_while_the_service_cannot_be_asked_nothing_is_submitted(ledger, stumbles, fails):
    fake = Fake(["ok"], stumbles=stumbles)
    entry = ledger.put(Entry(INTENT, "submitting"))
    if fails:
        with pytest.raises(ServiceUnavailableError):
            submission(ledger, fake).ensure_job(entry)
        assert ledger.get(INTENT.key).state == "submitting"
    else:
        submission(ledger, fake).ensure_job(entry)
    assert fake.posts == (0 if fails else 1)


@pytest.mark.parametrize(
    ("state", "kind"),
    [("failed", JobFailedError), ("cancelled", JobCancelledError), ("expired", JobExpiredError),
     ("timed-out", JobTimedOutError)],
)  # fmt: skip
def test_bad_ends_are_kept_and_raised_each_time(ledger, state, kind):
    fake = Fake(["ok"], state_at_end=JobState(state, "why"))
    one = submission(ledger, fake)
    entry = one.ensure_job(ledger.put(Entry(INTENT)))
    for _ in range(2):
        with pytest.raises(kind, match=r"job1 .*why.*not replaced"):
            one.collect(entry)
        entry = ledger.get(INTENT.key)
    assert entry.metrics == {"qpu_seconds": 4.0}
    assert fake.posts == 1


def test_a_job_that_the_service_does_not_know_stays_in_the_ledger_and_may_be_found_again(ledger):
    """It may be another account or instance that is asked."""
    fake = Fake(["ok"], ends=0.0)
    one = submission(ledger, fake, account=lambda: "the token file")
    entry = one.ensure_job(ledger.put(Entry(INTENT, instance="crn:1")))
    jobs, fake.jobs = fake.jobs, []
    with pytest.raises(JobUnknownError, match=r"job1 .*the token file, instance crn:1.*jobs --again") as caught:
        one.collect(entry)
    assert caught.value.unfinished
    assert fake.time >= BOUND
    entry = ledger.get(INTENT.key)
    assert (entry.state, entry.needs_person) == ("submitted", True)
    fake.jobs = jobs
    entry, _ = one.collect(entry)
    assert (entry.state, entry.needs_person, entry.reason) == ("done", False, None)


def test_a_job_that_is_known_again_is_not_one_for_a_person(ledger):
    fake = Fake(["ok"], ends=1e6)
    one = submission(ledger, fake)
    entry = one.ensure_job(ledger.put(Entry(INTENT)))
    entry = ledger.put(replace(entry, reason="the service does not know it"))
    with pytest.raises(JobWaitError):
        one.collect(entry)
    with pytest.raises(LedgerError, match="its state is submitted"):
        ledger.again(INTENT.key)


def test_a_job_that_is_lost_is_run_again_when_a_person_says_so(ledger):
    ledger.put(Entry(INTENT, "submitted", 3.0, job_id="gone"))
    with pytest.raises(LedgerError, match="its state is submitted"):
        ledger.again(INTENT.key)
    with pytest.raises(JobUnknownError):
        submission(ledger, Fake([])).collect(ledger.get(INTENT.key))
    entry = ledger.again(INTENT.key)
    assert (entry.state, entry.previous, entry.previous_seconds) == ("intent", ("gone",), 3.0)


def test_a_result_that_is_gone_everywhere_stays_done_and_paid(ledger):
    fake = Fake(["ok"])
    one = submission(ledger, fake)
    entry, arrays = one.collect(one.ensure_job(ledger.put(Entry(INTENT, estimate=2.0))))
    (ledger.folder / f"{INTENT.key}-0.npz").unlink()
    jobs, fake.jobs = fake.jobs, []
    with pytest.raises(ResultGoneError, match=r"was done.*restore the file.*llm-qfl jobs --again") as caught:
        one.collect(entry)
    assert not caught.value.unfinished
    entry = ledger.get(INTENT.key)
    assert (entry.state, entry.metrics, ledger.spent()) == ("done", {"qpu_seconds": 4.0}, 4.0)
    fake.jobs = jobs  # the service has it after all
    entry, again = one.collect(entry)
    np.testing.assert_array_equal(again["evs"], arrays["evs"])
    assert entry.reason is None


def test_an_outage_of_an_hour_ends_no_job(ledger):
    fake = Fake(["ok"], ends=3600.0)
    one = Submission(ledger, fake, Patience(), fake.clock())
    entry = one.ensure_job(ledger.put(Entry(INTENT)))
    state = fake.state
    fake.state = lambda job: away() if 600 <= fake.time < 4200 else state(job)
    assert one.collect(entry)[0].state == "done"
    assert 4200 <= fake.time < 4300


def away():
    raise ServiceUnavailableError("away")


def test_an_outage_longer_than_patience_leaves_an_unfinished_task(ledger):
    fake = Fake(["ok"])
    one = submission(ledger, fake)
    entry = one.ensure_job(ledger.put(Entry(INTENT)))
    fake.state = lambda job: away()
    with pytest.raises(ServiceUnavailableError) as caught:
        one.collect(entry)
    assert caught.value.unfinished
    assert fake.time >= PATIENCE.job
    assert ledger.get(INTENT.key) == entry


@pytest.mark.parametrize(
    "error",
    [CredentialsError("token"), PreflightError("down"), LedgerError("disk"), IbmError("release"), BudgetError("sum")],
)
def test_what_is_raised_before_anything_is_sent_leaves_an_intent_that_reserves_nothing(ledger, error):
    def fail(_):
        raise error

    for prepare in (True, False):
        fake = Fake(["ok"])
        one = submission(ledger, fake, prepare=fail) if prepare else submission(ledger, fake)
        fake.submit = fake.submit if prepare else fail
        with pytest.raises(type(error)):
            one.ensure_job(ledger.put(Entry(INTENT, estimate=3.0)))
        entry = ledger.get(INTENT.key)
        assert (entry.state, entry.submitted, ledger.spent(), fake.posts) == ("intent", None, 0.0, 0)


def test_a_second_job_with_the_tag_is_told_kept_and_counted(ledger, caplog):
    entry = ledger.put(Entry(INTENT, "submitting", 3.0, cap=10))
    fake = Fake([], jobs=[(f"job{n}", entry.tag, 0.0, 0.0) for n in range(3)])
    one = submission(ledger, fake)
    entry, _ = one.collect(one.ensure_job(entry))
    assert (entry.job_id, entry.others) == ("job0", ("job1", "job2"))
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "job1, job2" in record.getMessage()
    assert ledger.spent() == 4.0 + 2 * 10


def test_seconds_that_the_service_tells_late_are_asked_for_when_the_job_is_next_seen(ledger):
    fake = Fake(["ok"])
    metrics, fake.metrics = fake.metrics, lambda job: {}
    one = submission(ledger, fake)
    entry, _ = one.collect(one.ensure_job(ledger.put(Entry(INTENT, estimate=3.0, cap=9))))
    assert (entry.seconds, ledger.spent()) == (3.0, 9.0)
    fake.state = lambda job: away()
    assert one.collect(entry)[0] == entry  # the result is on disk: an outage is no reason not to have it
    del fake.state
    fake.metrics = metrics
    entry, _ = one.collect(entry)
    assert entry.seconds == ledger.get(INTENT.key).seconds == ledger.spent() == 4.0


def test_patience_ends_and_the_job_stays(ledger):
    fake = Fake(["ok"], ends=1e6)
    one = submission(ledger, fake)
    entry = one.ensure_job(ledger.put(Entry(INTENT)))
    with pytest.raises(JobWaitError, match="found again"):
        one.collect(entry)
    assert ledger.get(INTENT.key).state == "submitted"
    fake.ends = 0.0
    fake.jobs = [("job1", entry.tag, 0.0, 0.0)]
    assert one.collect(entry)[0].state == "done"


def test_a_result_gone_from_the_disk_is_fetched_again(ledger):
    fake = Fake(["ok"])
    one = submission(ledger, fake)
    entry, _ = one.collect(one.ensure_job(ledger.put(Entry(INTENT))))
    (ledger.folder / f"{INTENT.key}-0.npz").unlink()
    assert one.collect(entry)[1]["evs"].shape == (1, 2)
    assert fake.posts == 1


@settings(max_examples=60)
@given(
    script=st.lists(st.sampled_from(["taken", "lost", "busy", "refused"]), max_size=6),
    delay=st.floats(0, BOUND),
    stumbles=st.integers(0, 8),
)
def test_whatever_happens_there_is_one_job_in_the_end(tmp_path_factory, script, delay, stumbles):
    ledger = Ledger(tmp_path_factory.mktemp("ledger"))
    fake = Fake([*script, *["ok"] * 20], delay=delay, stumbles=stumbles)
    ledger.put(Entry(INTENT))
    for _ in range(30):
        try:
            entry = submission(ledger, fake).ensure_job(ledger.get(INTENT.key))
            break
        except (SubmissionRefusedError, ServiceUnavailableError):
            continue
    assert [job[0] for job in fake.jobs] == [entry.job_id]

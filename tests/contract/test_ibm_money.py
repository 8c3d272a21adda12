"""What may go wrong with IBM Quantum once something may have been paid: limits, outages, sessions, two processes."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from ibm_service.loopback import Fault, LoopbackService
from ibm_service.samples import STEP, small_work

from llm_qfl.quantum.ibm import errors, transport
from llm_qfl.quantum.ibm import runner as runner_module
from llm_qfl.quantum.ibm.budget import Budgets, Limits
from llm_qfl.quantum.ibm.options import IbmOptions
from llm_qfl.quantum.ibm.runner import IbmRunner
from llm_qfl.quantum.ibm.submission import Patience, Submission

QUICK = Patience(listing_bound=0.5, attempts=3, backoff=0.02, longest=0.05, poll=0.02, job=20.0)
BRIEF = replace(QUICK, job=0.05)


@pytest.fixture
def loopback(monkeypatch):
    service = LoopbackService()
    for name, value in service.environment().items():
        monkeypatch.setenv(name, value)
    with service.running():
        yield service
    assert service.errors == []


@pytest.fixture
def runner(tmp_path):
    def made(backend="ibm:loop_ideal", **more):
        options = IbmOptions(**({"shots": 1024, "resilience_level": 0} | more.pop("options", {})))
        return IbmRunner(backend, tmp_path, options=options, **({"patience": QUICK} | more))

    return made


def entry_of(runner):
    (entry,) = runner.ledger.entries()
    return entry


# -- budgets --------------------------------------------------------------------------------------------------------


def test_jobs_in_flight_together_cannot_pass_the_limit(loopback, runner):
    one = runner(budgets=Budgets(site=60.2), limits=Limits(executions=2 * 1024))
    one.expectations(STEP, small_work(5))
    caps = [job.cost for job in loopback.jobs.values()]
    assert len(caps) == 3
    assert 55 < sum(caps) <= 60
    assert sorted(caps) == sorted(entry.cap for entry in one.ledger.entries())


def test_a_job_in_flight_counts_with_the_most_that_it_may_take(loopback, runner):
    loopback.queue = 60.0
    with pytest.raises(errors.JobWaitError):
        runner(budgets=Budgets(site=60.2), patience=BRIEF).expectations(STEP, small_work())
    other = replace(STEP, run="run-2")
    with pytest.raises(errors.BudgetError, match=r"60\.0 s spent or under way"):
        runner(budgets=Budgets(site=60.2)).expectations(other, small_work())
    (job,) = loopback.jobs.values()
    job.starts = job.ends = loopback.queue = 0.0  # it ends, and nobody has looked at it since
    runner(budgets=Budgets(site=60.2)).expectations(other, small_work())
    first, second = loopback.jobs.values()
    assert (first.cost, second.cost) == (60, 58)


def interrupted(runner, work, monkeypatch):
    """A process that dies in the call, before the service has it."""

    def dies(self, entry):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Submission, "_look_up", dies)
        with pytest.raises(KeyboardInterrupt):
            runner.expectations(STEP, work)
    assert entry_of(runner).state == "submitting"


@pytest.mark.parametrize("limit", [0.0, 2.0])
def test_what_a_dead_process_did_not_submit_is_within_the_budget_or_not_submitted(loopback, runner, monkeypatch, limit):
    loopback.faults.append(Fault("POST", "/jobs", None))
    one = runner()
    interrupted(one, small_work(), monkeypatch)
    with pytest.raises(errors.BudgetError, match="nothing was spent"):
        runner(budgets=Budgets(site=limit)).expectations(STEP, small_work())
    assert loopback.jobs == {}
    assert (entry_of(one).state, one.ledger.spent()) == ("intent", 0.0)
    runner(budgets=Budgets(site=10.0)).expectations(STEP, small_work())
    assert [job.cost for job in loopback.jobs.values()] == [10]


def test_the_budget_is_the_sites_also_where_sites_share_a_folder(loopback, runner):
    runner().expectations(STEP, small_work())
    for site, budgets in (("site-b", Budgets(site=4.5)), ("site-c", Budgets(run=4.5))):
        runner(budgets=budgets).expectations(replace(STEP, site=site), small_work())
        with pytest.raises(errors.BudgetError, match=r"2\.0 s spent"):
            runner(budgets=budgets).expectations(replace(STEP, name="train/1"), small_work())
    assert [job.cost for job in loopback.jobs.values()] == [None, 4, 4]


def test_seconds_told_late_are_not_reported_as_measured_for_ever(loopback, runner):
    loopback.usage_is_pending = True
    first = runner().expectations(STEP, small_work())
    estimate = first.metrics["qpu_seconds"]
    assert first.metrics["qpu_seconds_estimated"] == estimate > 2.0
    loopback.usage_is_pending = False
    again = runner().expectations(STEP, small_work())
    assert (again.metrics["qpu_seconds"], again.metrics["qpu_seconds_estimated"]) == (2.0, 0.0)
    np.testing.assert_array_equal(again.values, first.values)


def test_the_entry_tells_what_was_sent_and_when(loopback, runner):
    one = runner(options={"shots": 256})
    one.expectations(STEP, small_work())
    entry = entry_of(one)
    assert (entry.circuits, entry.shots, entry.cap) == (3, 256, None)
    assert entry.submitted.startswith("20")


# -- outages --------------------------------------------------------------------------------------------------------


def test_an_outage_while_a_job_waits_is_waited_out(loopback, runner):
    loopback.queue = 1.0
    one = runner()
    start = time.monotonic()

    def outage():
        while not loopback.jobs:
            time.sleep(0.01)
        (job,) = loopback.jobs
        loopback.faults.append(Fault("GET", job, None, times=10**6))
        time.sleep(2.0)
        loopback.faults.clear()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(outage)
        one.expectations(STEP, small_work())
    assert time.monotonic() - start > 2.0
    assert len(loopback.jobs) == 1


@pytest.mark.parametrize("token", ["wrong-token", "loopback-token"])
def test_a_token_that_is_refused_while_a_job_waits_leaves_an_unfinished_task(loopback, runner, monkeypatch, token):
    loopback.queue = 60.0
    with pytest.raises(errors.JobWaitError):
        runner(patience=BRIEF).expectations(STEP, small_work())
    monkeypatch.setenv("QISKIT_IBM_TOKEN", token)
    if token == "loopback-token":
        loopback.faults.append(Fault("GET", next(iter(loopback.jobs)), 401, times=9))
    with pytest.raises(errors.CredentialsError) as caught:
        runner().expectations(STEP, small_work())
    assert caught.value.unfinished
    assert entry_of(runner()).state == "submitted"


def test_a_wrong_token_before_anything_was_paid_is_final(loopback, runner, monkeypatch):
    monkeypatch.setenv("QISKIT_IBM_TOKEN", "wrong-token")
    with pytest.raises(errors.CredentialsError) as caught:
        runner().expectations(STEP, small_work())
    assert not caught.value.unfinished


def test_what_the_service_says_no_to_in_passing_leaves_an_unfinished_task(loopback, runner):
    loopback.faults.append(Fault("POST", "/jobs", 429, times=9))
    with pytest.raises(errors.ServiceUnavailableError) as caught:
        runner().expectations(STEP, small_work())
    assert caught.value.unfinished
    assert errors.SessionClosedError("closed").unfinished
    assert errors.SubmissionUncertainError("no answer").unfinished
    assert not errors.SubmissionRefusedError("no such program").unfinished
    assert not errors.BudgetError("sum").unfinished


def test_a_job_that_another_account_submitted_is_kept(loopback, runner):
    loopback.queue = 60.0
    with pytest.raises(errors.JobWaitError):
        runner(patience=BRIEF).expectations(STEP, small_work())
    (job,) = loopback.jobs.values()
    job.forgotten = True
    one = runner()
    with pytest.raises(errors.JobUnknownError, match="QISKIT_IBM_TOKEN, instance crn:"):
        one.expectations(STEP, small_work())
    assert entry_of(one).state == "submitted"
    job.forgotten, job.starts, job.ends = False, 0.0, 0.0
    runner().expectations(STEP, small_work())
    assert loopback.posts() == 1


@pytest.mark.parametrize("taken", [True, False])
def test_a_submission_that_hangs_is_given_up_and_looked_up(loopback, runner, monkeypatch, taken):
    monkeypatch.setattr(transport, "TIMEOUT", (5.0, 0.5))
    loopback.faults.append(Fault("POST", "/jobs", 502, taken=taken, hang=1.5))
    runner().expectations(STEP, small_work())
    assert len(loopback.jobs) == 1
    assert loopback.posts() == (1 if taken else 2)


def test_a_look_that_hangs_is_given_up(loopback, runner, monkeypatch):
    monkeypatch.setattr(transport, "TIMEOUT", (5.0, 0.3))
    loopback.faults.append(Fault("GET", "/metrics", 502, times=1, hang=1.0))
    assert runner().expectations(STEP, small_work()).metrics["qpu_seconds"] == 2.0


# -- two processes --------------------------------------------------------------------------------------------------


def test_a_task_sent_again_while_its_first_process_waits_pays_nothing(loopback, runner):
    loopback.queue = 1.5
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(runner().expectations, STEP, small_work())
        while not loopback.jobs:
            time.sleep(0.02)
        again = runner().expectations(STEP, small_work())
        np.testing.assert_array_equal(again.values, first.result(20).values)
    assert loopback.posts() == 1


def test_waiting_for_another_process_ends_with_the_patience_for_jobs(loopback, runner):
    one = runner(patience=replace(QUICK, job=0.3))
    intent, _ = one._parts(STEP, small_work())[0]
    with one.ledger.lock(intent.key), pytest.raises(errors.LedgerBusyError, match="another process") as caught:
        one.expectations(STEP, small_work())
    assert caught.value.unfinished
    assert loopback.posts() == 0


def test_what_fails_before_the_post_reserves_nothing(loopback, runner, monkeypatch):
    def refuse(error):
        def submit(device, call):
            raise error

        monkeypatch.setattr(runner_module, "submit_once", submit)
        one = runner()
        with pytest.raises(type(error)):
            one.expectations(STEP, small_work())
        assert (entry_of(one).state, one.ledger.spent()) == ("intent", 0.0)

    for error in (errors.CredentialsError("token"), errors.IbmError("release")):
        refuse(error)
    monkeypatch.undo()
    assert loopback.posts() == 0


# -- sessions -------------------------------------------------------------------------------------------------------


def session_of(loopback):
    (session,) = loopback.sessions.values()
    return session


def test_the_end_of_a_task_closes_no_other_tasks_session(loopback, runner):
    one, two = (runner(options={"mode": "session"}) for _ in range(2))
    other = replace(STEP, run="run-2", site="site-b")
    one.expectations(STEP, small_work())
    two.expectations(other, small_work())
    one.close()
    two.expectations(replace(other, name="train/1"), small_work(seed=1))
    assert [session["accepting_jobs"] for session in loopback.sessions.values()] == [False, True]
    two.close()
    assert [session["accepting_jobs"] for session in loopback.sessions.values()] == [False, False]


def test_a_damaged_note_of_a_session_leaves_an_intent(loopback, runner):
    one = runner(options={"mode": "session"})
    one.expectations(STEP, small_work())
    (path,) = one.ledger.folder.glob("*.open")
    path.write_text("{}")
    step = replace(STEP, name="train/1")
    with pytest.raises(errors.LedgerError, match="damaged"):
        runner(options={"mode": "session"}).expectations(step, small_work())
    assert sorted(entry.state for entry in one.ledger.entries()) == ["done", "intent"]
    assert one.ledger.spent() == 2.0


def test_what_a_session_costs_beside_its_jobs_is_booked(loopback, runner):
    one = runner(options={"mode": "session"}, budgets=Budgets(site=100.0))
    one.expectations(STEP, small_work())
    assert session_of(loopback)["max_ttl"] == 100
    session_of(loopback)["elapsed_time"] = 30.0
    one.close()
    one.close()
    assert one.ledger.spent() == one.ledger.spent("run-1", site="site-a") == 30.0
    assert one.ledger.spent(site="site-b") == 0.0
    assert not list(one.ledger.folder.glob("*.open")) + list(one.ledger.folder.glob("*.ended"))
    with pytest.raises(errors.BudgetError, match=r"30\.0 s spent"):
        runner(budgets=Budgets(site=31.0)).expectations(replace(STEP, name="train/1"), small_work())


def test_an_open_session_counts_before_each_job_and_in_the_end(loopback, runner):
    """It was left open by a process that died, runs on, and is closed by the service."""
    runner(options={"mode": "session"}, budgets=Budgets(site=100.0)).expectations(STEP, small_work())
    session_of(loopback)["elapsed_time"] = 50.0
    one = runner(options={"mode": "session"}, budgets=Budgets(site=100.0))
    one.expectations(replace(STEP, name="train/1"), small_work())
    assert [job.cost for job in loopback.jobs.values()] == [100, 50]
    assert one.ledger.spent() == 50.0 + 2.0  # as long as nobody asks the service again
    session_of(loopback).update(accepting_jobs=False, state="active", elapsed_time=60.0)
    with pytest.raises(errors.SessionClosedError):
        one.expectations(replace(STEP, name="train/2"), small_work())
    session_of(loopback).update(state="closed", elapsed_time=70.0)
    one.close()
    assert one.ledger.spent() == 70.0


def test_a_session_is_booked_once_whoever_looks(loopback, runner):
    one = runner(options={"mode": "session"}, budgets=Budgets(site=100.0))
    one.expectations(STEP, small_work())
    session_of(loopback)["elapsed_time"] = 20.0
    other = runner("ibm:least-busy", budgets=Budgets(site=100.0))
    other.expectations(replace(STEP, name="train/1"), small_work())
    one.close()
    assert one.ledger.spent() == 20.0 + 2.0
    assert {job.cost for job in loopback.jobs.values()} == {100, 80}


def test_a_session_of_which_the_service_tells_nothing_is_said(loopback, runner, caplog):
    one = runner(options={"mode": "session"})
    one.expectations(STEP, small_work())
    session_of(loopback)["elapsed_time"] = None
    with caplog.at_level(logging.WARNING):
        one.close()
    assert "the service does not tell what it cost" in caplog.text
    assert one.ledger.spent() == 2.0


def test_preflight_says_how_a_session_is_billed(loopback, runner):
    assert "mode session: the service bills" in runner(options={"mode": "session"}).preflight()[-1]
    assert "mode session" not in runner().preflight()[-1]

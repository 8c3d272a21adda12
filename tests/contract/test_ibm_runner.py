"""IbmRunner with the real qiskit-ibm-runtime client against the loopback service: one PUB, one job, one bill."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from ibm_service.loopback import Fault, LoopbackService
from ibm_service.samples import STEP, exact, small_work

from llm_qfl.quantum.ibm import errors
from llm_qfl.quantum.ibm.budget import Budgets, Limits
from llm_qfl.quantum.ibm.options import IbmOptions
from llm_qfl.quantum.ibm.runner import IbmRunner, make_runner
from llm_qfl.quantum.ibm.submission import Patience

QUICK = Patience(listing_bound=0.5, attempts=3, backoff=0.02, longest=0.05, poll=0.02, job=20.0)


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


def test_a_batch_is_one_pub_of_one_job_and_near_the_exact_values(loopback, runner):
    one, work = runner(), small_work()
    outcome = one.expectations(STEP, work)
    np.testing.assert_allclose(outcome.values, exact(work), atol=6 / np.sqrt(1024))
    assert outcome.errors.shape == outcome.values.shape == (3, 2)
    assert loopback.posts() == len(loopback.jobs) == 1
    assert outcome.jobs == tuple(loopback.jobs)
    assert outcome.metrics == {
        "jobs": 1, "pubs": 1, "circuits": 3, "shots": 1024, "executions": 3072, "queue_seconds": 0.0,
        "qpu_seconds": 2.0, "qpu_seconds_estimated": 0.0,
    }  # fmt: skip
    entry = entry_of(one)
    assert entry.state == "done"
    assert entry.calibration["time"].startswith("20")
    assert len(entry.calibration["layout"]) == 2
    for about in entry.calibration["qubits"].values():
        assert about["t1"] > 0
        assert 0 < about["readout_error"] < 1
    (error,) = entry.calibration["two_qubit_errors"].values()
    assert 0 < error < 1


def test_asked_again_the_result_is_read_from_disk_without_the_service(loopback, runner, monkeypatch):
    first = runner().expectations(STEP, small_work())
    monkeypatch.setenv("QISKIT_IBM_TOKEN", "gone")
    asked = len(loopback.requests)
    again = runner().expectations(STEP, small_work())
    np.testing.assert_array_equal(again.values, first.values)
    assert again.metrics == first.metrics
    assert len(loopback.requests) == asked


@pytest.mark.parametrize("level", [1, 2])
def test_mitigation_runs_and_costs_what_is_said(loopback, runner, level):
    work = small_work(2)
    outcome = runner("ibm:loop_manila", options={"resilience_level": level}).expectations(STEP, work)
    np.testing.assert_allclose(outcome.values, exact(work), atol=0.4)
    (job,) = loopback.jobs.values()
    assert executions_of(job) == outcome.metrics["executions"]


def executions_of(job):
    from ibm_quantum_schemas.executor.version_2_0 import ParamsModel
    from qiskit_ibm_runtime.quantum_program.converters.converters_2_0 import quantum_program_from_2_0

    program, _ = quantum_program_from_2_0(ParamsModel.model_validate(job.params))
    return program.shots * sum(item.size() for item in program.items)


def session_of(loopback):
    (session,) = loopback.sessions.values()
    return session


@pytest.mark.parametrize("mode", ["batch", "session"])
def test_batch_and_session_hold_all_jobs_and_survive_the_process(loopback, runner, mode):
    one = runner(options={"mode": mode})
    one.expectations(STEP, small_work())
    runner(options={"mode": mode}).expectations(STEP, small_work(seed=1))  # as a process that comes back
    assert len(loopback.sessions) == 1
    assert {job.session for job in loopback.jobs.values()} == set(loopback.sessions)
    assert session_of(loopback)["accepting_jobs"]
    last = runner(options={"mode": mode})
    last.expectations(STEP, small_work())  # from the disk
    last.close()
    (session,) = loopback.sessions.values()
    assert not session["accepting_jobs"]
    assert session["mode"] == {"batch": "batch", "session": "dedicated"}[mode]


def test_a_session_closed_by_the_service_is_told_and_forgotten(loopback, runner):
    one = runner(options={"mode": "session"})
    one.expectations(STEP, small_work())
    (session,) = loopback.sessions.values()
    session["accepting_jobs"] = False
    with pytest.raises(errors.SessionClosedError, match="session is closed"):
        one.expectations(STEP, small_work(seed=1))
    assert len(loopback.jobs) == 1
    one.expectations(STEP, small_work(seed=1))
    assert len(loopback.jobs) == len(loopback.sessions) == 2


def test_a_session_that_may_be_open_is_not_opened_twice_blindly(loopback, runner):
    loopback.faults.append(Fault("POST", "/sessions", 502, taken=True))
    with pytest.raises(errors.SubmissionRefusedError, match="may be open or not"):
        runner(options={"mode": "session"}).expectations(STEP, small_work())
    assert len(loopback.sessions) == 1
    assert loopback.posts() == 0


@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("status", [500, 502, 503, 504, 520, 524, 409, None])
def test_a_submission_without_a_clear_answer_makes_exactly_one_job(loopback, runner, status, taken):
    loopback.faults.append(Fault("POST", "/jobs", status, taken=taken))
    outcome = runner().expectations(STEP, small_work())
    assert len(loopback.jobs) == 1
    assert loopback.posts() == (1 if taken else 2)
    assert outcome.jobs == tuple(loopback.jobs)


def test_too_many_requests_is_tried_again_later(loopback, runner):
    loopback.faults.append(Fault("POST", "/jobs", 429, times=2))
    runner().expectations(STEP, small_work())
    assert loopback.posts() == 3
    assert len(loopback.jobs) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refused_submission_is_not_repeated_and_spends_nothing(loopback, runner, status):
    one = runner()
    loopback.faults.append(Fault("POST", "/jobs", status))
    with pytest.raises(errors.SubmissionRefusedError, match="not submitted"):
        one.expectations(STEP, small_work())
    assert loopback.posts() == 1
    assert loopback.jobs == {}
    assert one.ledger.spent() == 0
    one.expectations(STEP, small_work())
    assert len(loopback.jobs) == 1


@pytest.mark.parametrize(
    ("spoil", "kind", "state"),
    [
        ({"failed": "Error code 8011; device broke"}, errors.JobFailedError, "failed"),
        ({"failed": "ran too long", "reason_code": 1305}, errors.JobTimedOutError, "timed-out"),
        ({"cancelled": 1.0}, errors.JobCancelledError, "cancelled"),
        ({"cancelled": 1.0, "reason_code": 1306, "failed": "session ttl expired"}, errors.JobExpiredError, "expired"),
        ({"cancelled": 1.0, "reason_code": 1300, "failed": "it is settled"}, errors.JobCancelledError, "cancelled"),
        ({"cancelled": 1.0, "reason_code": 1305, "failed": "too long"}, errors.JobTimedOutError, "timed-out"),
        ({"failed": "device 13050 broke"}, errors.JobFailedError, "failed"),
    ],
)
def test_bad_ends_are_told_apart_and_not_replaced(loopback, runner, spoil, kind, state):
    loopback.queue = 60.0
    one = runner(patience=Patience(0.5, 3, 0.02, 0.05, 0.02, job=0.05))
    with pytest.raises(errors.JobWaitError):
        one.expectations(STEP, small_work())
    (job,) = loopback.jobs.values()
    job.starts = job.ends = 0.0
    for name, value in spoil.items():
        setattr(job, name, value)
    for _ in range(2):
        with pytest.raises(kind, match="not replaced"):
            runner().expectations(STEP, small_work())
    assert entry_of(one).state == state
    assert loopback.posts() == 1
    one.ledger.again(entry_of(one).intent.key)
    loopback.queue = 0.0
    runner().expectations(STEP, small_work())
    assert loopback.posts() == 2
    assert entry_of(one).previous == (job.id,)


def test_a_long_queue_ends_in_a_message_and_the_job_is_found_again(loopback, runner):
    loopback.queue = 60.0
    with pytest.raises(errors.JobWaitError, match="stays in the ledger"):
        runner(patience=Patience(0.5, 3, 0.02, 0.05, 0.02, job=0.1)).expectations(STEP, small_work())
    (job,) = loopback.jobs.values()
    job.starts = job.ends = job.created + 0.5
    outcome = runner().expectations(STEP, small_work())
    assert loopback.posts() == 1
    assert outcome.metrics["queue_seconds"] == pytest.approx(0.5, abs=0.01)


def test_reading_is_tried_again_when_the_service_stumbles(loopback, runner):
    loopback.faults.append(Fault("GET", "/metrics", None, times=2))
    assert runner().expectations(STEP, small_work()).metrics["qpu_seconds"] == 2.0
    assert loopback.posts() == 1


def refused(loopback, call, kind, match):
    with pytest.raises(kind, match=match):
        call()
    assert loopback.posts() == 0


def test_over_the_budget_of_run_or_site_is_refused_with_the_sum(loopback, runner):
    for whose in ("run", "site"):
        one = runner(budgets=Budgets(**{whose: 1.0}))
        refused(loopback, lambda: one.expectations(STEP, small_work()), errors.BudgetError,  # noqa: B023
                rf"budget of the {whose}: 0\.0 s .* \+ 2\.\d s estimated = 2\.\d s, more than 1\.0 s")  # fmt: skip
        refused(loopback, lambda: one.preflight(small_work(), "run-1"), errors.BudgetError, whose)  # noqa: B023
    assert one.ledger.entries() == []


def test_what_was_spent_counts_against_the_next(loopback, runner):
    runner().expectations(STEP, small_work())
    with pytest.raises(errors.BudgetError, match=r"2\.0 s spent"):
        runner(budgets=Budgets(site=4.0)).expectations(STEP, small_work(seed=1))
    assert loopback.posts() == 1


def test_wrong_token_unknown_device_too_wide_offline_paused_used_up(loopback, runner, monkeypatch):
    def run(backend="ibm:loop_ideal", qubits=2):
        return lambda: runner(backend).expectations(STEP, small_work(qubits=qubits))

    refused(loopback, run("ibm:loop_nowhere"), errors.PreflightError, "loop_nowhere")
    refused(loopback, run(qubits=6), errors.PreflightError, "6 qubits, loop_ideal has 5")
    refused(loopback, run("ibm:least-busy", qubits=6), errors.PreflightError, "least-busy")
    ideal = loopback.device("loop_ideal")
    ideal.status = "internal"
    refused(loopback, run(), errors.PreflightError, "not running jobs")
    ideal.status, ideal.online = "active", False
    refused(loopback, run(), errors.PreflightError, "not running jobs")
    ideal.online = True
    loopback.usage["usage_limit_reached"] = True
    refused(loopback, run(), errors.PreflightError, "used up")
    loopback.usage["usage_limit_reached"] = False
    monkeypatch.setenv("QISKIT_IBM_TOKEN", "wrong-token")
    refused(loopback, run(), errors.CredentialsError, "QISKIT_IBM_TOKEN")


def test_too_many_shots_for_the_device(loopback, runner):
    refused(loopback, lambda: runner(options={"shots": 10**6}).expectations(STEP, small_work()),
            errors.PreflightError, "1000000 shots")  # fmt: skip


def test_a_damaged_ledger_file_is_an_error_and_never_a_submission(loopback, runner):
    one = runner()
    one.expectations(STEP, small_work())
    (path,) = one.ledger.folder.glob("*.json")
    path.write_bytes(path.read_bytes().replace(b'"done"', b'"intent"'))
    with pytest.raises(errors.LedgerError, match="damaged"):
        runner().expectations(STEP, small_work())
    assert loopback.posts() == 1


def test_more_executions_than_a_job_takes_make_the_fewest_jobs(loopback, runner):
    one, work = runner(limits=Limits(executions=2 * 1024)), small_work(5)
    outcome = one.expectations(STEP, work)
    np.testing.assert_allclose(outcome.values, exact(work), atol=6 / np.sqrt(1024))
    assert loopback.posts() == outcome.metrics["jobs"] == 3
    assert len(one.ledger.entries()) == 3


def test_least_busy_and_the_longest_execution_time_reach_the_service(loopback, runner):
    one = runner("ibm:least-busy", options={"max_execution_time": 77})
    one.expectations(STEP, small_work())
    assert entry_of(one).device == "loop_ideal"
    (job,) = loopback.jobs.values()
    assert job.cost == 77
    assert job.tags == [entry_of(one).tag]


def test_a_job_is_stopped_when_the_sites_limit_is_reached(loopback, runner):
    """The estimate may be wrong: what is left of the smaller budget goes along, and the service stops the job."""
    one = runner(budgets=Budgets(run=500.0, site=60.2))
    one.expectations(STEP, small_work())
    key = entry_of(one).intent.key
    one.expectations(replace(STEP, name="second"), small_work())
    first, second = loopback.jobs.values()
    assert first.cost == 60  # 60.2 rounded down
    assert second.cost == math.floor(60.2 - one.ledger.get(key).seconds) == 58


def test_preflight_tells_and_spends_nothing(loopback, runner):
    text = "\n".join(runner(budgets=Budgets(site=100.0)).preflight(small_work(), "run-1"))
    for part in ("QISKIT_IBM_TOKEN is accepted", "loop_ideal, 5 qubits", "1 job(s) for 3 rows, 3072", "limit 100.0 s"):
        assert part in text
    assert loopback.posts() == 0


def test_local_mode_is_seeded_and_pays_nothing(tmp_path):
    one = make_runner("ibm-local:FakeManilaV2", tmp_path, options=IbmOptions(shots=2048, resilience_level=1))
    work = small_work()
    first, again, other = (one.expectations(STEP, work, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.values, again.values)
    assert np.any(first.values != other.values)
    np.testing.assert_allclose(first.values, exact(work), atol=0.15)
    assert first.metrics["qpu_seconds"] == 0
    assert first.jobs == ()
    with pytest.raises(errors.PreflightError, match="6 qubits"):
        one.expectations(STEP, small_work(qubits=6))


def test_what_another_process_is_at_is_waited_for(loopback, runner):
    """A client that outlives its node, and the one that comes after it with the same task."""
    first, second = runner(), runner()
    intent, _ = first._parts(STEP, small_work())[0]
    with ThreadPoolExecutor(1) as pool:
        with first.ledger.lock(intent.key):
            later = pool.submit(second.expectations, STEP, small_work())
            time.sleep(0.5)
            assert not later.done()
            assert loopback.posts() == 0
        assert later.result(20).jobs == tuple(loopback.jobs)

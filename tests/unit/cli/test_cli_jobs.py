"""`llm-qfl jobs`: the ledger as a person reads it, and the one thing that a person may change in it."""

import json
from dataclasses import replace

import pytest
from ibm_service.loopback import LoopbackService
from ibm_service.samples import STEP, small_work
from rich.console import Console
from typer.testing import CliRunner

from llm_qfl.cli import jobs
from llm_qfl.cli.main import app
from llm_qfl.quantum.ibm.ledger import Entry, Intent, Ledger, digest
from llm_qfl.quantum.ibm.options import IbmOptions
from llm_qfl.quantum.ibm.runner import IbmRunner
from llm_qfl.quantum.ibm.submission import Patience

QUICK = Patience(listing_bound=0.5, attempts=3, backoff=0.02, longest=0.05, poll=0.02, job=20.0)
STATES = ("done", "failed", "submitted", "submitting", "intent", "timed-out", "cancelled", "expired")


def call(*arguments, code=0):
    result = CliRunner().invoke(app, ["jobs", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def write(folder, states=STATES, run="5870812345678901234"):
    ledger, keys = Ledger(folder / "jobs"), {}
    for number, state in enumerate(states):
        intent = Intent(run, "lab", 1 + number // 4, f"train/{number}", "c", "p", "o", "ibm:least-busy")
        known = {"qpu_seconds": 10.0, "queue_seconds": 5400.0} if state == "done" else {}
        job = None if state in ("intent", "submitting") else f"d2k9v8qq5l1c73f0ab{number:02d}"
        reason = "device broke" if state == "failed" else None
        sent = {"circuits": 876, "shots": 1024, "submitted": "2026-11-21T10:30:00+00:00"} if job else {}
        ledger.put(Entry(intent, state, 2.5, 0, job, None, "ibm_torino", reason=reason, metrics=known, **sent))
        keys[state] = intent.key
    return keys


@pytest.fixture
def ledger(tmp_path):
    return write(tmp_path)


def test_every_job_with_totals_of_each_run(tmp_path, ledger):
    write(tmp_path, ("done", "done"), run="2")
    found = json.loads(call(tmp_path, "--json").stdout)
    assert len(found["jobs"]) == 10
    assert found["damaged"] == []
    one = next(job for job in found["jobs"] if job["key"] == ledger["done"])
    assert (one["run"], one["round"], one["step"], one["state"]) == ("5870812345678901234", 1, "train/0", "done")
    assert (one["job_id"], one["device"], one["qpu_seconds"], one["qpu_seconds_known"]) == (
        "d2k9v8qq5l1c73f0ab00", "ibm_torino", 10.0, True,
    )  # fmt: skip
    assert (one["circuits"], one["shots"], one["submitted"]) == (876, 1024, "2026-11-21T10:30:00+00:00")
    assert {job["state"] for job in found["jobs"] if job["needs_person"]} == {
        "failed", "cancelled", "expired", "timed-out",
    }  # fmt: skip
    first, second = found["runs"]["5870812345678901234"], found["runs"]["2"]
    assert first["jobs"] == 8
    assert first["qpu_seconds"] == 10.0 + 6 * 2.5  # an intent has cost nothing
    assert first["qpu_seconds_estimated"] == 6 * 2.5
    assert second["qpu_seconds"] == 20.0
    assert second["qpu_seconds_estimated"] == 0


def test_the_folder_may_be_the_nodes_or_the_ledgers_or_the_default(tmp_path, ledger, monkeypatch):
    expected = json.loads(call(tmp_path, "--json").stdout)["jobs"]
    assert json.loads(call(tmp_path / "jobs", "--json").stdout)["jobs"] == expected
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    write(tmp_path / "home" / "llm-qfl", ("done",))
    assert len(json.loads(call("--json").stdout)["jobs"]) == 1


def test_no_ledger_is_no_error_and_none_is_made(tmp_path):
    assert "no jobs" in call(tmp_path / "nowhere").stdout
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("width", [80, 120])
def test_the_screen_fits_and_says_what_needs_a_person(tmp_path, ledger, width, capsys):
    folder = jobs.jobs_folder(tmp_path)
    jobs.show(folder, *jobs.read_jobs(folder), Console(width=width))
    text = capsys.readouterr().out
    table = [line for line in text.splitlines() if str(tmp_path) not in line]
    assert max(map(len, table)) <= width
    for state in STATES:
        assert state in text
    assert text.count(" !") == 4
    assert "~2.5" in text
    assert f"{ledger['failed'][:8]} failed: device broke" in text
    assert f"--again {ledger['failed'][:8]}" in text
    assert "25.0 s" in text.replace("\n", " ")
    assert ("ibm_torino" in text) == ("876 x 1024" in text) == ("11-2" in text) == (width == 120)


def test_a_damaged_file_is_told_and_hides_no_other(tmp_path, ledger):
    path = tmp_path / "jobs" / f"{ledger['done']}.json"
    path.write_bytes(path.read_bytes()[:-20])
    result = call(tmp_path, code=1)
    assert "damaged" in result.output
    assert ledger["failed"][:8] in result.output
    found = json.loads(call(tmp_path, "--json", code=1).stdout)
    assert (len(found["jobs"]), len(found["damaged"])) == (7, 1)


@pytest.mark.parametrize("state", ["failed", "cancelled", "expired", "timed-out"])
def test_again_lets_a_job_that_ended_badly_be_submitted_again(tmp_path, ledger, state):
    key = ledger[state]
    assert "attempt 2" in call(tmp_path, "--again", key[:8]).stdout
    entry = Ledger(tmp_path / "jobs").get(key)
    assert (entry.state, entry.attempt, entry.previous_seconds) == ("intent", 1, 2.5)
    assert len(entry.previous) == 1
    call(tmp_path, "--again", key, code=2)  # once is once


@pytest.mark.parametrize("state", ["done", "submitted", "submitting", "intent"])
def test_again_is_refused_for_every_other_job(tmp_path, ledger, state):
    before = Ledger(tmp_path / "jobs").get(ledger[state])
    assert f"its state is {state}" in call(tmp_path, "--again", ledger[state], code=2).output
    assert Ledger(tmp_path / "jobs").get(ledger[state]) == before


@pytest.mark.parametrize("state", ["done", "submitted"])
def test_again_is_for_a_job_that_is_lost_too(tmp_path, ledger, state, capsys):
    """The service or the disk has lost it, which the run that looked for it has noted."""
    place = Ledger(tmp_path / "jobs")
    place.put(replace(place.get(ledger[state]), reason="the service does not know it"))
    jobs.show(tmp_path / "jobs", *jobs.read_jobs(tmp_path / "jobs"), Console(width=120))
    assert f"{ledger[state][:8]} {state}: the service does not know it" in capsys.readouterr().out
    assert "attempt 2" in call(tmp_path, "--again", ledger[state]).stdout


def test_a_ledger_of_the_first_release_is_read(tmp_path, ledger):
    path = tmp_path / "jobs" / f"{ledger['failed']}.json"
    outer = json.loads(path.read_text())
    for name in ("cap", "circuits", "shots", "submitted", "session", "others"):
        del outer["entry"][name]
    outer["checksum"] = digest(outer["entry"])
    path.write_text(json.dumps(outer))
    assert Ledger(tmp_path / "jobs").get(ledger["failed"]).shots == 0
    assert json.loads(call(tmp_path, "--json").stdout)["damaged"] == []
    assert "attempt 2" in call(tmp_path, "--again", ledger["failed"]).stdout


@pytest.mark.parametrize("key", ["", "zz", "0" * 40])
def test_again_wants_the_key_of_one_job(tmp_path, ledger, key):
    assert "expected the key of one job" in call(tmp_path, "--again", key, code=2).output


def test_again_waits_for_no_process_that_is_at_work(tmp_path, ledger):
    with Ledger(tmp_path / "jobs").lock(ledger["failed"]):
        assert "another process works on" in call(tmp_path, "--again", ledger["failed"], code=2).output
    assert Ledger(tmp_path / "jobs").get(ledger["failed"]).state == "failed"


def test_after_again_the_run_submits_one_more_job_and_both_are_counted(tmp_path, monkeypatch):
    service = LoopbackService()
    for name, value in service.environment().items():
        monkeypatch.setenv(name, value)

    def ask():
        options = IbmOptions(shots=16, resilience_level=0)
        return IbmRunner("ibm:loop_ideal", tmp_path, options=options, patience=QUICK).expectations(STEP, small_work())

    with service.running():
        service.fail_next = "Error code 8011; device broke"
        for _ in range(2):
            with pytest.raises(Exception, match="not replaced"):
                ask()
        (job,) = json.loads(call(tmp_path, "--json").stdout)["jobs"]
        assert (job["state"], job["needs_person"]) == ("failed", True)
        found = json.loads(call(tmp_path, "--again", job["key"], "--json").stdout)
        assert found["jobs"][0]["state"] == "intent"
        ask()
        ask()
    assert service.posts() == 2
    (job,) = json.loads(call(tmp_path, "--json").stdout)["jobs"]
    assert (job["state"], job["attempt"], len(job["previous"])) == ("done", 1, 1)
    assert job["qpu_seconds"] > job["previous_seconds"]

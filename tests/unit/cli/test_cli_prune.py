"""`llm-qfl prune`: what goes, what stays, and that nothing under way or unasked for is ever deleted."""

import json
import os
import re
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from llm_qfl.cli import prune
from llm_qfl.cli.main import app
from llm_qfl.cli.prune import DAY, Entry, Terms, plan
from llm_qfl.federation.errors import ConfigError
from server_app.checkpoint import CheckpointWriter

NOW = 1_800_000_000.0


def make(runs, number, *, status="finished", days=30.0, checkpoint=True, at=NOW):
    """A run folder of so many days ago, as a server leaves it."""
    folder = runs / f"20260101-0000{number:02d}-0000{number:02x}"
    folder.mkdir(parents=True)
    (folder / "rounds.jsonl").write_text("{}\n")
    if checkpoint:
        writer = CheckpointWriter(folder)
        writer.document("state", {"x": 1}, 0)
        writer.commit(0)
        writer.close()
    if status is not None:
        (folder / "summary.json").write_text(json.dumps({"status": status}))
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (at - days * DAY,) * 2)
    os.utime(folder, (at - days * DAY,) * 2)
    return folder


def going(entries):
    return {entry.path for entry in entries if entry.goes}


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["prune", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return re.sub(r"\s+", " ", result.output)


def test_the_newest_stay_and_the_older_go(tmp_path):
    folders = [make(tmp_path, number, days=10 - number) for number in range(5)]
    assert going(plan(tmp_path, None, Terms(keep=2), NOW)) == set(folders[:3])
    assert going(plan(tmp_path, None, Terms(days=7.5), NOW)) == set(folders[:3])
    assert going(plan(tmp_path, None, Terms(keep=2, days=8.5), NOW)) == set(folders[:2])
    assert going(plan(tmp_path, None, Terms(keep=0), NOW)) == set(folders)
    assert going(plan(tmp_path, None, Terms(keep=9), NOW)) == set()


@given(st.lists(st.tuples(st.sampled_from(["yes", "no", "running"]), st.floats(0, 100)), max_size=12),
       st.none() | st.integers(0, 6), st.floats(0, 60), st.booleans())  # fmt: skip
def test_whatever_there_is_both_conditions_must_hold(found, keep, days, unfinished):
    entries = [
        Entry(prune.Path(str(number)), "run", "", ended, NOW - age * DAY, 1)
        for number, (ended, age) in enumerate(found)
    ]
    judged = prune._judge(entries, Terms(keep, days, unfinished), NOW)
    assert sorted(one.path for one in judged) == sorted(one.path for one in entries)
    could = [one for one in judged if one.ended == "yes" or (unfinished and one.ended == "no")]
    for one in judged:
        assert one.why
        if one.goes:
            assert one in could
            assert NOW - one.changed >= days * DAY
    assert {one.path for one in could[: keep or 0] if one.goes} == set()
    assert all(one.goes for one in could[keep or 0 :] if NOW - one.changed >= days * DAY)


def test_a_run_that_could_go_on_stays_unless_asked_for(tmp_path):
    killed = make(tmp_path, 1, status=None)
    failed = make(tmp_path, 2, status="failed")
    damaged = make(tmp_path, 3)
    (damaged / "summary.json").write_text("{")
    hopeless = make(tmp_path, 4, status="failed", checkpoint=False)
    stopped = make(tmp_path, 5, status="stopped")
    assert going(plan(tmp_path, None, Terms(keep=0), NOW)) == {hopeless, stopped}
    asked = plan(tmp_path, None, Terms(keep=0, unfinished=True), NOW)
    assert going(asked) == {killed, failed, damaged, hopeless, stopped}
    # Those that stay anyway do not use up the number that protects.
    assert going(plan(tmp_path, None, Terms(keep=1), NOW)) in ({hopeless}, {stopped})


def test_a_run_under_way_stays_whatever_is_asked(tmp_path):
    """Its server is another process, which is killed: then the run is one that could go on."""
    folder = make(tmp_path, 1, status=None)
    code = f"""
import sys, time
from pathlib import Path
from server_app.checkpoint import CheckpointWriter
writer = CheckpointWriter(Path({str(folder)!r}))
print("held", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout.readline() == "held\n"
            (entry,) = plan(tmp_path, None, Terms(keep=0, unfinished=True), NOW)
            assert (entry.goes, entry.state, entry.why) == (False, "running", "never deleted")
            assert "stays" in run(tmp_path, "--keep", 0, "--unfinished")
            # It began after the plan was made: deleting notices.
            late = prune.remove_all([prune.replace(entry, goes=True)])
            assert late == [f"{folder}: stays, a process works on it by now"]
            assert folder.is_dir()
        finally:
            server.kill()
    assert going(plan(tmp_path, None, Terms(keep=0, unfinished=True), NOW)) == {folder}


def test_a_folder_that_a_server_is_just_making_stays(tmp_path):
    folder = make(tmp_path, 1, status=None, checkpoint=False, days=0, at=time.time())
    (entry,) = plan(tmp_path, None, Terms(keep=0, unfinished=True))
    assert not entry.goes
    (later,) = plan(tmp_path, None, Terms(keep=0, unfinished=True), time.time() + prune.JUST_NOW + 1)
    assert (later.goes, later.path) == (True, folder)


def test_what_is_not_named_like_a_run_is_not_touched_and_links_are_not_followed(tmp_path):
    runs, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    inside = make(runs, 1)
    outside = make(elsewhere, 2)
    (runs / "compose").mkdir()
    (runs / "notes.txt").write_text("mine")
    (runs / outside.name).symlink_to(outside)
    (inside / "link").symlink_to(outside)
    run(runs, "--keep", 0)
    assert sorted(path.name for path in runs.iterdir()) == sorted(["compose", "notes.txt", outside.name])
    assert (outside / "summary.json").is_file()


def test_launch_logs_go_by_the_same_rule_but_not_of_a_launch_under_way(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_QFL_PROJECT", str(tmp_path))
    monkeypatch.delenv("FLWR_HOME", raising=False)
    (tmp_path / "runs").mkdir()
    logs = tmp_path / ".flwr" / "logs"
    old, mine = (logs / f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(at))}-{os.getpid()}" for at in (1e9, None))
    for folder in (old, mine):  # my number, but from before this process began
        folder.mkdir(parents=True)
        (folder / "superlink.log").write_text("said\n")
    assert "1 log to delete" in run("--keep", 0)
    assert list(logs.iterdir()) == [mine]


def test_models_go_where_asked_for_but_not_those_of_a_run_under_way(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_QFL_PROJECT", str(tmp_path))
    models, runs = tmp_path / "models", tmp_path / "runs"
    at_site, used, unused = models / ("a" * 64), models / "compressed" / ("b" * 64), models / "compressed" / ("c" * 64)
    for folder in (at_site, used, unused, models / "smollm2-135m-b179c9523d0e"):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"x" * 1000)
    assert "nothing would be deleted" in run("--models", models, "--keep", 3, "--dry-run")  # no runs/ here: a site
    folder = make(runs, 1, status=None)
    with open(folder / "checkpoint" / "lock") as lock:
        prune.fcntl.flock(lock, prune.fcntl.LOCK_EX)
        assert going(plan(runs, None, Terms(keep=0), models=models)) == {at_site}  # it has not said which is its own
        (folder / "config.json").write_text(json.dumps({"language": {"sha256": "b" * 64}}))
        assert going(plan(runs, None, Terms(keep=0), models=models)) == {at_site, unused}
    assert "3 models to delete, 3.0 kB" in run(runs, "--models", models, "--keep", 0)
    assert sorted(path.name for path in models.iterdir()) == ["compressed", "smollm2-135m-b179c9523d0e"]
    assert "got nowhere, which is none" in run(runs, "--models", "nowhere", "--keep", 0, code=2)


def test_a_dry_run_deletes_nothing_and_lists_what_would_go(tmp_path):
    folders = [make(tmp_path, number) for number in (1, 2)]
    make(tmp_path, 3, status=None)
    before = sorted(tmp_path.rglob("*"))
    said = run(tmp_path, "--keep", 1, "--dry-run")
    assert sorted(tmp_path.rglob("*")) == before
    assert said.count("would go") == 1
    assert "only with --unfinished" in said
    assert "1 run would be deleted" in said
    assert "1 run to delete" in run(tmp_path, "--keep", 1)
    assert len([folder for folder in folders if folder.exists()]) == 1
    assert not list(tmp_path.glob(".pruned-*"))


def test_what_cannot_be_deleted_is_told_with_code_1(tmp_path, monkeypatch):
    folder = make(tmp_path, 1)

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(prune.shutil, "rmtree", refused)
    assert f"{folder}: not deleted, or not whole (Permission denied" in run(tmp_path, "--keep", 0, code=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what goes"),
        (["--unfinished"], "say what goes"),
        (["nowhere", "--keep", "1"], "expected the folder of run folders, got nowhere"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in run(*arguments, code=2)


def test_a_run_folder_itself_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is a run folder itself"):
        plan(make(tmp_path, 1), None, Terms(keep=0))

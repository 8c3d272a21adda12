"""A server that dies goes on: at whatever moment, the final weights are those of a run that was never interrupted."""

import json
import os
import shutil
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from client_app import app as site_app
from llm_qfl.federation.errors import FederationError, RunFolderError
from server_app import checkpoint as files
from server_app import session
from server_app.checkpoint import CheckpointWriter, read_checkpoint
from server_app.ledger import Ledger
from simulation.run import run_federation

PROJECT = Path(__file__).parents[2]
OURS = tuple(f"{PROJECT / name}{os.sep}" for name in ("server_app", "client_app", "agent", "llm_qfl", "simulation"))
CONFIG = {
    "server.rounds": 4,
    "server.fraction": 0.67,
    "quantum.qubits": 2,
    "quantum.layers": 1,
    "training.steps": 2,
    "training.batch-size": 8,
    "data.test-fraction": 0.6,
}
SITES = 3
CLOCK = ("seconds", "milliseconds")


class Killed(BaseException):
    """The process is gone: nothing of ours may catch it."""


class Killer:
    """Ends the server at the n-th call of a function of ours after the first checkpoint; without n it counts them."""

    def __init__(self, number=None):
        self.number, self.count, self.armed = number, 0, False

    def __enter__(self):
        self._commit = CheckpointWriter.commit
        CheckpointWriter.commit = lambda writer, n: (self._commit(writer, n), setattr(self, "armed", True))[0]
        sys.setprofile(self)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)
        CheckpointWriter.commit = self._commit

    def __call__(self, frame, event, _):
        if not self.armed or event != "call" or not frame.f_code.co_filename.startswith(OURS):
            return
        self.count += 1
        if self.number is not None and self.count == self.number:
            raise Killed


def plain(value):
    """A line of a ledger without what depends on the clock."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items() if key not in CLOCK}
    return [plain(one) for one in value] if isinstance(value, list) else value


def ledger(folder, name="rounds.jsonl"):
    path = folder / name
    return [plain(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def run(output, **more):
    return run_federation({**CONFIG, **more}, sites=SITES, output=output)


def resume(folder, config=CONFIG, **more):
    return run_federation({**config, **more, "server.resume": str(folder)}, sites=SITES)


def assert_same(found, whole):
    """Weights, baselines, ledger and result of two runs are equal bit for bit."""
    assert np.array_equal(found.theta, whole.theta)
    for name, arrays in whole.finished.state.baselines.items():
        for key, value in arrays.items():
            assert np.array_equal(found.finished.state.baselines[name][key], value), (name, key)
    assert ledger(found.folder) == ledger(whole.folder)
    assert ledger(found.folder, "decisions.jsonl") == ledger(whole.folder, "decisions.jsonl")
    for key in ("rounds", "test_accuracy", "test_loss", "validation_loss", "baselines", "evaluations", "circuits"):
        assert found.summary[key] == whole.summary[key], key
    assert found.summary["status"] == whole.summary["status"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody interrupts, and how many calls it takes."""
    run(tmp_path_factory.mktemp("warm"))  # what is compiled and cached once is no part of the count
    with Killer() as counter:
        found = run(tmp_path_factory.mktemp("whole"))
    return found, counter.count


@pytest.mark.parametrize("moment", range(10))
def test_killed_at_a_random_moment(tmp_path, whole, moment):
    found, calls = whole
    at = int(np.random.default_rng([7, moment]).integers(1, calls))
    with pytest.raises(Killed), Killer(at):
        run(tmp_path)
    (folder,) = tmp_path.iterdir()
    if (folder / "summary.json").exists():  # the report alone was missing
        with np.load(folder / "model" / "weights.npz") as weights:
            assert any(np.array_equal(weights[key], found.theta) for key in weights.files)
        return
    done = read_checkpoint(folder).server_round
    again = resume(folder)
    assert_same(again, found)
    assert again.summary["resumed_after"] == [done]


def at_call(module, name, number, *, after=False):
    """Patch a function so that the process dies before (or after) its n-th call."""

    def patch(monkeypatch):
        original, calls = getattr(module, name), []

        def dying(*args, **kwargs):
            calls.append(name)
            if len(calls) == number and not after:
                raise Killed
            result = original(*args, **kwargs)
            if len(calls) == number:
                raise Killed
            return result

        monkeypatch.setattr(module, name, dying)

    return patch


def half_a_line(monkeypatch):
    """The power fails while a round's line is written."""
    original = Ledger.append_round

    def torn(ledger, line):
        if line["round"] < 3:
            return original(ledger, line)
        with open(ledger.folder / "rounds.jsonl", "a") as file:
            file.write(json.dumps(line)[:40])
        raise Killed

    monkeypatch.setattr(Ledger, "append_round", torn)


def die(output, monkeypatch, patch, **more):
    """A run that ends as patched; its folder."""
    with monkeypatch.context() as context:
        patch(context)
        with pytest.raises(Killed):
            run(output, **more)
    (folder,) = output.iterdir()
    return folder


POINTS = {
    "the first checkpoint is there, no round": (at_call(session, "state_record", 1), 0),
    "sites have answered, the round is open": (at_call(site_app, "encode_report", 5), 2),
    "half a line of the ledger": (half_a_line, 2),
    "line written, no part of the checkpoint": (at_call(CheckpointWriter, "document", 8), 2),
    "parts written, not committed": (at_call(CheckpointWriter, "commit", 4), 2),
    "committed, old parts not deleted": (at_call(files, "write_whole", 10, after=True), None),
    "before the final scores": (at_call(session, "_final_scores", 1), 4),
    "after the final scores": (at_call(session, "_final_scores", 1, after=True), 4),
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_at(tmp_path, whole, monkeypatch, point):
    patch, done = POINTS[point]
    folder = die(tmp_path, monkeypatch, patch)
    if done is not None:
        assert read_checkpoint(folder).server_round == done
    assert_same(resume(folder), whole[0])


def test_killed_again_and_again(tmp_path, whole):
    found, calls = whole
    with pytest.raises(Killed), Killer(calls // 4):
        run(tmp_path)
    (folder,) = tmp_path.iterdir()
    for _ in range(2):
        with pytest.raises(Killed), Killer(calls // 5):
            resume(folder)
    again = resume(folder)
    assert_same(again, found)
    assert len(again.summary["resumed_after"]) == 3
    about = json.loads((folder / "config.json").read_text())
    assert about["resumed_after"] == again.summary["resumed_after"]
    assert about["config"]["server.resume"] == "none"


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A run that died after its second round."""
    return die(tmp_path, monkeypatch, at_call(CheckpointWriter, "commit", 4))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_configuration_is_refused_with_its_keys(interrupted):
    before = contents(interrupted)
    with pytest.raises(RunFolderError) as refused:
        resume(interrupted, **{"training.steps": 3, "server.seed": 1, "server.rounds": 3})
    text = str(refused.value)
    assert "training.steps: the run has 2, asked for is 3" in text
    assert "server.seed: the run has 42, asked for is 1" in text
    assert "server.rounds: the run has 4, asked for is 3" in text
    assert contents(interrupted) == before


def test_rounds_may_be_raised_and_waits_may_change(interrupted):
    found = resume(interrupted, **{"server.rounds": 5, "server.deadline": 30.0})
    assert found.summary["rounds"] == 5
    assert [line["round"] for line in ledger(interrupted)] == [1, 2, 3, 4, 5]
    assert json.loads((interrupted / "config.json").read_text())["config"]["server.rounds"] == 5


def test_a_finished_run_is_refused(whole):
    with pytest.raises(RunFolderError, match="has reached its end"):
        resume(whole[0].folder)


def test_a_failed_run_goes_on(interrupted, whole):
    (interrupted / "summary.json").write_text(json.dumps({"status": "failed"}))
    assert_same(resume(interrupted), whole[0])


@pytest.mark.parametrize("part", ["checkpoint.json", "state", "progress", "rounds.jsonl"])
def test_a_damaged_checkpoint_is_refused(interrupted, part):
    (path,) = [p for p in interrupted.rglob(f"{part}*") if "000002" in p.name or p.name == part]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RunFolderError, match=rf"{path.name}.*damaged"):
        resume(interrupted)


def test_no_checkpoint_is_refused(interrupted, tmp_path):
    shutil.rmtree(interrupted / "checkpoint")
    with pytest.raises(RunFolderError, match=r"no checkpoint.*start the run anew"):
        resume(interrupted)
    with pytest.raises(RunFolderError, match="is no folder"):
        resume(tmp_path / "nowhere")


def test_two_servers_do_not_write_to_one_run(interrupted):
    holder = Ledger.reopen(interrupted)
    try:
        with pytest.raises(RunFolderError, match="another process works on this run"):
            resume(interrupted)
    finally:
        holder.close()


def test_a_site_that_is_missing_is_waited_for_and_then_left_out(interrupted):
    nodes = [{"partition-id": n, "num-partitions": SITES} for n in range(2)]
    config = {**CONFIG, "server.resume": str(interrupted), "server.wait": 0.1}
    found = run_federation(config, nodes=nodes)
    assert found.summary["rounds"] == 4
    assert [line["rejected"].get("site-0002") for line in ledger(interrupted)[2:]] == ["not connected"] * 2


def test_other_sites_cannot_go_on_with_a_run(interrupted):
    nodes = [{"partition-id": n, "num-partitions": SITES, "site": f"other-{n}"} for n in range(SITES)]
    with pytest.raises(FederationError, match="none of the run's sites"):
        run_federation({**CONFIG, "server.resume": str(interrupted)}, nodes=nodes)


def test_a_decision_is_on_the_disk_before_anybody_acts_on_it(tmp_path):
    with closing(Ledger.create(tmp_path)) as made:
        made.checkpoint.commit(2)
        made.checkpoint.record(3, "no decision within 5 s")
        made.checkpoint.commit(2)  # the server died, and went on after round 2
        assert files.read_record(made.folder, 3) == "no decision within 5 s"
        made.checkpoint.record(3, "")
        assert files.read_record(made.folder, 3) == ""
        made.checkpoint.commit(3)
        assert files.read_record(made.folder, 3) is None

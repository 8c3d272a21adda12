"""A disk without room: what was closed is kept, and the error says what to do."""

import errno
import json
import os
from pathlib import Path

import pytest

from llm_qfl.federation.errors import RunFolderError
from server_app.checkpoint import read_checkpoint
from server_app.ledger import Ledger, read_lines

FULL = Path("/dev/full")  # takes no byte: ENOSPC, as a disk without room says it

pytestmark = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this system")


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger.create(tmp_path)
    ledger.checkpoint.document("progress", {"round": 1}, 1)
    ledger.checkpoint.commit(1)
    yield ledger
    ledger.close()


def document(ledger):
    ledger.checkpoint.document("progress", {"round": 2}, 2)


WRITES = {
    "a line": ("rounds.jsonl", lambda ledger: ledger.append_round({"round": 2})),
    "a file": ("summary.json.partial", lambda ledger: ledger.write_json("summary.json", {})),
    "a part": ("checkpoint/progress-000002.json.partial", document),
    "a decision": ("checkpoint/decision-000002.json.partial", lambda ledger: ledger.checkpoint.record(2, "")),
    "the checkpoint": ("checkpoint/checkpoint.json.partial", lambda ledger: ledger.checkpoint.commit(2)),
}


@pytest.mark.parametrize("what", WRITES)
def test_a_full_disk_is_an_error_that_says_how_to_go_on_and_leaves_the_checkpoint(ledger, what):
    name, write = WRITES[what]
    (ledger.folder / name).symlink_to(FULL)
    with pytest.raises(RunFolderError) as caught:
        write(ledger)
    assert "No space left on device" in str(caught.value)
    assert f"server.resume={ledger.folder}" in str(caught.value)
    assert read_checkpoint(ledger.folder).documents == {"progress": {"round": 1}}


def test_what_did_not_fit_is_not_left_behind(ledger):
    (ledger.folder / "summary.json.partial").symlink_to(FULL)
    with pytest.raises(RunFolderError):
        ledger.write_json("summary.json", {})
    assert not (ledger.folder / "summary.json.partial").is_symlink()
    ledger.write_json("summary.json", {"status": "failed"})  # there is room again
    assert json.loads((ledger.folder / "summary.json").read_text()) == {"status": "failed"}


def test_a_line_that_did_not_fit_is_not_left_half_written(ledger, monkeypatch):
    ledger.append_round({"round": 1})

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunFolderError):
            ledger.append_round({"round": 2})
    assert [line["round"] for line in read_lines(ledger.folder)] == [1]
    ledger.append_round({"round": 2})
    assert [line["round"] for line in read_lines(ledger.folder)] == [1, 2]

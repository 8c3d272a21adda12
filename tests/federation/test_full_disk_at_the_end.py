"""No room for the model folder after the last round: the run says so, and goes on when there is."""

import errno
import json
import os

import pytest
from flwr.app import Context, RecordDict

import server_app.book
from client_app.app import app as client_app
from llm_qfl.federation.config import default_run_config
from llm_qfl.federation.errors import RunFolderError
from server_app.app import app as server
from simulation.grid import InMemoryGrid


def play(config):
    nodes = {n + 1: {"partition-id": n, "num-partitions": 2} for n in range(2)}
    server(InMemoryGrid(client_app, nodes, config), Context(1, 1, {}, RecordDict(), config))


def test_a_disk_that_is_full_after_the_last_round_loses_nothing(tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("LLM_QFL_PROJECT", str(tmp_path))
    config = {**default_run_config(), "server.rounds": 2, "training.steps": 1, "language.model": "none"}
    with monkeypatch.context() as patch:
        patch.setattr(server_app.book, "save_model", full)
        with pytest.raises(RunFolderError, match=r"No space left on device.*server.resume="):
            play(config)
    assert "the run failed" in capsys.readouterr().out
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "summary.json").read_text())["status"] == "failed"
    play({**config, "server.resume": str(folder)})
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["rounds"], summary["resumed_after"]) == ("finished", 2, [2])

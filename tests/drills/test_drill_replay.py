"""What a drill whose weights cannot be equal is held against: the same replies late or lost, the same weights."""

import json

import numpy as np
import pytest
from flwr.app import Error, Message
from replay import play

from llm_qfl.cli.deploy_check import write_site_files
from simulation.grid import Delayed
from simulation.run import run_federation

SITES = ("alpha", "beta", "gamma")
CONFIG = {
    "server.rounds": 4,
    "server.deadline": 0.3,
    "language.model": "none",
    "data.test": "federated",
    "quantum.qubits": 2,
    "quantum.layers": 1,
    "training.steps": 1,
}


def late(task, reply):
    if task.metadata.message_type == "train" and task.metadata.group_id == "1":
        return Delayed(reply, exchanges=2)
    return reply


def never(task, reply):
    return None if (task.metadata.message_type, task.metadata.group_id) == ("train", "2") else reply


def lost(task, reply):
    if (task.metadata.message_type, task.metadata.group_id) != ("train", "2"):
        return reply
    error = Message(Error(8, "crashed"), reply_to=task)
    error.metadata.__dict__["_src_node_id"] = task.metadata.dst_node_id
    return error


@pytest.mark.parametrize("fault", [late, never, lost])
def test_a_ledger_is_enough_to_play_its_run_again(tmp_path, fault):
    files = write_site_files(tmp_path)
    nodes = [{"site": site, "data-path": str(files[site]), "folder": str(tmp_path / "sites")} for site in SITES]
    run = run_federation(CONFIG, nodes=nodes, output=tmp_path / "runs", faults={2: fault})
    lines = [json.loads(line) for line in (run.folder / "rounds.jsonl").read_text().splitlines()]
    assert np.array_equal(play(CONFIG, nodes, lines), run.theta)
    assert not np.array_equal(play(CONFIG, nodes, ()), run.theta)

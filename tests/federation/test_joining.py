"""Sites that come and go while a run is under way, and runs that nobody answers."""

import json

import pytest

from client_app.app import app as client_app
from llm_qfl.federation.config import RunConfig, default_run_config
from llm_qfl.federation.errors import FederationError
from simulation.grid import InMemoryGrid
from simulation.run import run_in_folder

SMALL = {
    "language.model": "none",
    "server.rounds": 4,
    "server.wait": 0.05,
    "server.deadline": 5.0,
    "quantum.qubits": 2,
    "quantum.layers": 1,
    "training.steps": 1,
    "training.batch-size": 8,
    "data.test-fraction": 0.6,
}


class Changing(InMemoryGrid):
    """Nodes that are there from some round to another one, by the messages that were pushed."""

    def __init__(self, flat, nodes, there):
        super().__init__(client_app, nodes, flat)
        self.there = there

    @property
    def now(self):
        return max((int(one.group_id) for one in self.pushed if one.message_type == "train"), default=0) + 1

    def get_node_ids(self):
        spans = {node: self.there.get(node, (0, 99)) for node in super().get_node_ids()}
        return [node for node, (first, last) in spans.items() if first <= self.now <= last]


def play(tmp_path, there, names=("one", "two", "three"), **more):
    flat = {**default_run_config(), **SMALL, **more}
    nodes = {
        number: {"partition-id": number - 1, "num-partitions": 3, "site": name} for number, name in enumerate(names, 1)
    }
    found = run_in_folder(Changing(flat, nodes, there), RunConfig.from_run_config(flat), tmp_path)
    return found, [json.loads(line) for line in (found.folder / "rounds.jsonl").read_text().splitlines()]


def trained(lines):
    return [sorted(client["site"] for client in line["clients"]) for line in lines]


def test_a_site_that_comes_later_joins_with_the_runs_setup(tmp_path):
    found, lines = play(tmp_path, {3: (3, 99)})
    assert trained(lines) == [["one", "two"]] * 2 + [["one", "three", "two"]] * 2
    assert [line["joined"] for line in lines] == [[], [], ["three"], []]
    assert found.summary["joined"] == ["three"]
    assert found.summary["clients"] == 3
    assert "three" in {one.site for one in found.finished.scoring} or not found.finished.scoring


def test_sites_are_drawn_among_those_that_are_there(tmp_path):
    _, lines = play(tmp_path, {1: (0, 2), 3: (2, 99)}, **{"server.fraction": 0.7})
    asked = [line["plan"]["sites"] for line in lines]
    assert asked[0] == ["one", "two"]
    assert all(len(sites) == 2 for sites in asked)
    assert asked[2:] == [["three", "two"]] * 2
    assert [line["rejected"] for line in lines[2:]] == [{"one": "not connected"}] * 2


def test_a_site_of_a_name_that_is_taken_does_not_join(tmp_path):
    _, lines = play(tmp_path, {3: (2, 99)}, names=("one", "two", "two"))
    assert trained(lines) == [["one", "two"]] * 4


def test_below_quorum_a_round_waits_with_a_message_and_no_longer_than_server_wait(tmp_path, capsys):
    flat = {**default_run_config(), **SMALL, "server.quorum": 1.0}
    nodes = {n: {"partition-id": n - 1, "num-partitions": 3} for n in (1, 2, 3)}
    found = run_in_folder(Changing(flat, nodes, {3: (0, 2)}), RunConfig.from_run_config(flat), tmp_path, "plain")
    told = capsys.readouterr().out
    assert "2 of 3 sites are there, 3 make a quorum (server.quorum): waiting for others, 0 s at most" in told
    lines = [json.loads(line) for line in (found.folder / "rounds.jsonl").read_text().splitlines()]
    assert trained(lines) == [["site-0000", "site-0001", "site-0002"]] * 2 + [["site-0000", "site-0001"]] * 2
    assert told.count("make a quorum") == 1  # the last round does not wait again


def test_where_nobody_is_left_the_run_ends_with_what_to_do_and_can_go_on(tmp_path):
    gone = dict.fromkeys((1, 2, 3), (0, 2))
    with pytest.raises(FederationError, match=r"none of the 3 sites is there.*server\.resume"):
        play(tmp_path, gone)
    (folder,) = tmp_path.iterdir()
    found, lines = play(tmp_path / "elsewhere", {}, **{"server.resume": str(folder)})
    assert found.folder == folder
    assert trained(lines) == [["one", "three", "two"]] * 4

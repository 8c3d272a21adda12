"""Which node is which site: who comes back under another id, and who only says so."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from llm_qfl.federation.config import RunConfig, default_run_config
from llm_qfl.federation.records import Census, encode_census
from server_app.grid import BoundedGrid
from server_app.roster import Roster
from simulation.grid import InMemoryGrid

NORTH = Census(
    "north", True, "columns", ("x", "y"), ("0", "1"), {"train": 5, "validation": 1, "test": 0}, np.array([3, 2]), None
)
SOUTH = replace(NORTH, site="south")


class Clock:
    now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def federation():
    """Nodes 1 (north) and 2 (south) are the sites of the run; more may say anything."""

    def made(**more):
        asked = []
        answers = {1: NORTH, 2: SOUTH, **{int(key[1:]): census for key, census in more.items()}}
        app = ClientApp()

        @app.query()
        def query(message: Message, context: Context) -> Message:
            asked.append(context.node_id)
            return Message(encode_census(answers[context.node_id]), reply_to=message)

        clock = Clock()
        inner = InMemoryGrid(app, {node: {} for node in answers}, {})
        config = RunConfig.from_run_config(default_run_config())
        roster = Roster(config, {"north": 1, "south": 2}, {"north": NORTH, "south": SOUTH})
        return roster, BoundedGrid(inner, clock=clock, sleep=clock.sleep), inner, asked

    return made


def test_while_nobody_is_missing_nobody_is_asked(federation):
    roster, grid, _, asked = federation(n9=NORTH)
    assert roster.look(grid) == set()
    assert asked == []


def test_a_missing_site_is_found_under_its_new_id_and_asked_once(federation):
    roster, grid, inner, asked = federation(n9=NORTH, n10=replace(NORTH, site="west"))
    inner.leave(1)
    assert roster.look(grid) == {"north"}
    assert (roster.nodes, roster.sites) == ({"north": 9, "south": 2}, {9: "north", 2: "south"})
    assert roster.look(grid) == set()
    assert asked == [9, 10]


def test_a_site_that_is_there_is_not_replaced_until_its_node_has_gone(federation):
    roster, grid, inner, asked = federation(n8=NORTH, n9=SOUTH)
    inner.leave(1)
    assert roster.look(grid) == {"north"}
    assert roster.nodes["south"] == 2
    inner.leave(2)
    assert roster.look(grid) == {"south"}  # what it said then is still known
    assert roster.nodes == {"north": 8, "south": 9}
    assert asked == [8, 9]


def test_of_two_that_say_they_are_the_site_one_takes_its_place(federation):
    roster, grid, inner, _ = federation(n8=NORTH, n9=NORTH)
    inner.leave(1)
    assert roster.look(grid) == {"north"}
    assert roster.nodes["north"] == 8


@pytest.mark.parametrize(
    "change",
    [
        {"own_data": False},
        {"columns": ("y", "x")},
        {"class_names": ("1", "0")},
        {"rows": {"train": 5, "validation": 1, "test": 1}},
        {"class_counts": np.array([2, 3])},
        {"backend": "ibm:least-busy"},
    ],
)
def test_a_name_is_not_enough(federation, change):
    roster, grid, inner, _ = federation(n9=replace(NORTH, **change))
    inner.leave(1)
    assert roster.look(grid) == set()
    assert roster.nodes["north"] == 1

"""How a drill ends: what was lost, how long it took, and whether the weights are those that they must be.

Two questions. Are the final weights those of the same sites in one process that nobody disturbed? And where they are
not and need not be: are they those of the same sites in one process when the replies that the ledger calls late or lost
are late or lost there (`replay.play`)? A drill whose weights answer no to both has failed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from replay import Line
from stage import Stage


@dataclass(frozen=True)
class Moment:
    """What stood when the disturbance came.

    Attributes:
        lines: of the ledger, for the rounds that were closed.
        over: when the disturbance was over, monotonic seconds; None where it lasts.
    """

    lines: tuple[Line, ...]
    over: float | None

    @property
    def closed(self) -> int:
        """Rounds."""
        return len(self.lines)


def moment(stage: Stage) -> tuple[Line, ...]:
    """The lines of the rounds that are closed now."""
    return tuple(stage.lines[: max(0, stage.closed)])


@dataclass(frozen=True)
class Row:
    """A line of the drills' table.

    Attributes:
        what: the disturbance.
        closed: rounds that were closed when it came.
        lost: of these, how many the end does not have as they were.
        again: seconds from its end to the next closed round with a reply of every site in time; None where it lasts.
        equal: are the final weights those of a run that nobody disturbed?
        explained: or those of a run in which the same replies were late or lost?
        must: equal has to be so.
        note: what else is to be said.
    """

    what: str
    closed: int
    lost: int
    again: float | None
    equal: bool
    explained: bool
    must: bool
    note: str

    @property
    def passed(self) -> bool:
        """As it has to be?"""
        return self.lost == 0 and self.explained and (self.equal or not self.must)


def judge(what: str, stage: Stage, folder: Path, before: Moment, *, must: bool, note: str = "") -> Row:
    """Hold the end of a run against the same sites in one process.

    Raises:
        AssertionError: lines are missing or doubled, or the run has not reached its end.
    """
    lines = stage.lines
    assert [line["round"] for line in lines] == list(range(1, len(lines) + 1)), lines
    assert len(lines) >= int(stage.config["server.rounds"]), len(lines)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished", summary
    lost = sum(was != now for was, now in zip(before.lines, lines, strict=False))
    with np.load(folder / "model" / "weights.npz", allow_pickle=False) as weights:
        theta = weights["theta"]
    equal = np.array_equal(theta, stage.undisturbed())
    explained = equal or np.array_equal(theta, stage.undisturbed(lines))
    return Row(what, before.closed, lost, whole_again(stage, before), equal, explained, must, note)


def whole_again(stage: Stage, before: Moment) -> float | None:
    """See `Row.again`."""
    if before.over is None:
        return None
    for line in stage.lines[before.closed :]:
        when = stage.times.get(line["round"], 0.0)
        if when > before.over and {client["site"] for client in line["clients"]} == set(stage.sites):
            return when - before.over
    return None

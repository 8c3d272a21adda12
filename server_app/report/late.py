"""Late replies and busy sites."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from markupsafe import Markup

from server_app.report.markup import Child, count, duration, join, table, tag
from server_app.report.run import Run


def late_replies(run: Run, most: int) -> Markup | None:
    """Which replies came after their round and what became of them, and who was busy when; None where nobody was.

    Args:
        run: the run.
        most: rows of each table.
    """
    # What came late in a round below quorum enters a later average: so by site and round of the task.
    entered = {
        (str(one["site"]), int(one["of_round"])): (int(line["round"]), float(one["factor"]))
        for line in run.rounds
        for one in line.get("entered") or []
    }
    rows: list[list[Child]] = []
    busy: dict[str, list[int]] = defaultdict(list)
    for line in run.rounds:
        for site in line.get("busy") or []:
            busy[str(site)].append(int(line["round"]))
        for one in line.get("late") or []:
            site, number = str(one["site"]), int(one["of_round"])
            at = entered.get((site, number))
            became = _entered(*at) if at else _not_entered(run)
            rows.append([site, became, number, int(line["round"]), count(one.get("shots")), duration(one["seconds"])])
    if not rows and not busy:
        return None
    parts: list[Child] = []
    if rows:
        heads = ["Site", "What became of it", "Task of round", "Came in round", "Shots", "Time"]
        caption = "Late replies; what they cost is in every sum, whether they entered an average or not"
        parts.append(table(heads, rows[:most], numbers_from=2, caption=caption))
    if busy:
        listed = [(site, ranges(at)) for site, at in sorted(busy.items())]
        caption = "Busy sites: still at work on an earlier round, so they were given no new task"
        parts.append(table(["Site", "Rounds"], listed[:most], numbers_from=9, caption=caption))
    more = max(0, len(rows) - most) + max(0, len(busy) - most)
    if more:
        parts.append(tag("p", f"{more:,} more are in rounds.jsonl.", class_="note"))
    return join(parts)


def _entered(number: int, factor: float) -> str:
    return f"in the average of round {number}, \N{MULTIPLICATION SIGN} {factor:.3g}"


def _not_entered(run: Run) -> str:
    dropped = (run.about.get("config") or {}).get("server.late") == "dropped"
    return "dropped (server.late)" if dropped else "in no average: every round since was below quorum"


def ranges(rounds: Sequence[int]) -> str:
    """`1-3, 7`."""
    runs: list[list[int]] = []
    for value in sorted(set(rounds)):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return ("round " if runs and len(runs) == 1 and runs[0][0] == runs[0][1] else "rounds ") + text

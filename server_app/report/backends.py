"""Where the circuits of each site ran, and what that cost: shots, jobs, QPU seconds, seconds in queues."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from markupsafe import Markup

from llm_qfl.federation.seeding import SERVER
from server_app.report.markup import Child, count, duration, plural, table, tag
from server_app.report.run import Json, Run

COSTS = ("shots", "jobs", "qpu_seconds", "qpu_seconds_estimated", "queue_seconds")


def backends(run: Run, most: int) -> Markup | None:
    """A table of the sites; None where every circuit ran on the exact simulator.

    Args:
        run: the run.
        most: sites in the table.
    """
    names: dict[str, list[str]] = defaultdict(list)
    sums: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(COSTS, 0.0))
    for work in _work(run):
        site, backend = str(work["site"]), work.get("backend")
        if backend is not None and str(backend) not in names[site]:
            names[site].append(str(backend))
        for key in COSTS:
            sums[site][key] += work.get(key) or 0
    if all(name == "exact" for found in names.values() for name in found) and not _total(sums, "shots"):
        return None
    listed = [str(site["site"]) for site in run.members[:most]]
    if SERVER in sums:  # it scored rows of its own
        listed.append(SERVER)
    rows = [_cells(site, names, sums) for site in listed]
    words = [f"{_total(sums, 'shots'):,.0f} shots"]
    if _total(sums, "jobs"):
        words.append(f"{plural(int(_total(sums, 'jobs')), 'job')} on IBM Quantum")
        words.append(f"{duration(_total(sums, 'qpu_seconds'))} on QPUs")
        if guessed := _total(sums, "qpu_seconds_estimated"):
            words.append(f"{duration(guessed)} of it estimated, for the service has not told its own sum")
        words.append(f"{duration(_total(sums, 'queue_seconds'))} in queues")
    heads = ["Site", "Backend", "Shots", "Jobs", "QPU time", "Queue time"]
    caption = "Late replies included, and scoring outside the rounds' replies; queue times are added up"
    listing = table(heads, rows, numbers_from=2, caption=caption)
    return tag("div", tag("h3", "Where circuits ran"), tag("p", ", ".join(words) + "."), listing, class_="backends")


def _work(run: Run) -> Iterator[Json]:
    """Every answer that cost something, in the order of the run."""
    for line in run.rounds:
        yield from line["clients"]
        yield from line.get("late") or []
    yield from run.summary.get("scoring") or []


def _total(sums: dict[str, dict[str, float]], key: str) -> float:
    return sum(cost[key] for cost in sums.values())


def _cells(site: str, names: dict[str, list[str]], sums: dict[str, dict[str, float]]) -> list[Child]:
    if site not in sums:
        return [site, "no accepted reply", *[count(None)] * 4]
    cost = sums[site]
    times = [duration(cost[key]) if cost["jobs"] else count(None) for key in ("qpu_seconds", "queue_seconds")]
    return [site, ", ".join(names[site]) or "not told", count(int(cost["shots"])), count(int(cost["jobs"])), *times]

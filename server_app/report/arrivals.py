"""What happened to the run itself: interruptions, and sites that came while it went on."""

from __future__ import annotations

from collections import Counter

from markupsafe import Markup

from server_app.report.markup import listing, tag
from server_app.report.run import Run

MOST_NAMED = 20
TIMES = {1: "", 2: "twice "}


def interruptions(run: Run) -> Markup | None:
    """After which rounds the run went on; None where nothing interrupted it."""
    after = run.summary.get("resumed_after") or run.about.get("resumed_after") or []
    if not after:
        return None
    found = Counter(int(number) for number in after)
    words = [
        TIMES.get(times, f"{times} times ") + (f"after round {number}" if number else "before round 1 had closed")
        for number, times in sorted(found.items())
    ]
    return tag("p", f"Interrupted, and went on: {', '.join(words)}.", class_="facts")


def joined_sites(run: Run) -> Markup | None:
    """Who joined, and when; None where nobody did."""
    if not run.joined:
        return None
    named = [f"{site} (round {number})" for site, number in list(run.joined.items())[:MOST_NAMED]]
    more = len(run.joined) - len(named)
    words = listing([*named, f"{more:,} more"] if more else named)
    note = "Their rows by class are not known here: the census was taken before they came."
    return tag("p", f"Joined after the run had begun: {words}. {note}", class_="note")

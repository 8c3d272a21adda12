"""What was hidden and what it cost; what each site's updates were like."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import median

from markupsafe import Markup

from server_app.report.markup import Child, count, details, number, section, table, tag
from server_app.report.run import Json, Run

MOST_SITES = 1000


def privacy_section(run: Run) -> Markup:
    """Epsilon, what it covers and what it does not."""
    found: Json | None = run.summary.get("privacy")
    if not found:
        lead = (
            "No noise was added (privacy.unit=none): rows stay at the sites, but what the sites send, weights, sums "
            "and scores, may tell of them."
        )
        return section("Privacy", anchor="privacy", lead=lead)
    spent = {str(site): float(epsilon) for site, epsilon in (found.get("epsilon_by_site") or {}).items()}
    if found.get("epsilon") is not None:
        told = f"epsilon {number(found['epsilon'], 2)}"
    else:
        told = f"epsilon up to {number(max(spent.values(), default=None), 2)} at a site"
    lead = (
        f"Differential privacy, {found['unit']}: {told}, delta {found['delta']:g}; {found['epsilon_allowed']:g} were "
        "allowed. The number of rows of a site is taken to be known; of two neighbours one has a null row (or site) in "
        "place of one of the other's."
    )
    parts: list[Child] = [
        tag("p", tag("b", "Covered: "), str(found["covers"]), "."),
        tag("p", tag("b", "Not covered: "), "; ".join(str(one) for one in found["not_covered"]), "."),
        tag("p", tag("b", "Not told: "), str(found["not_told"]), "."),
    ]
    if spent:
        rows = [[site, number(epsilon, 3)] for site, epsilon in sorted(spent.items())[:MOST_SITES]]
        caption = "Epsilon of the run by the sites' own ledgers"
        parts.append(details("Every site", table(["Site", "Epsilon"], rows, caption=caption)))
    return section("Privacy", *parts, anchor="privacy", lead=lead)


def updates_tables(run: Run) -> list[Markup]:
    """Length and direction of each site's updates, of theta and of the adapter, and what the aggregation did."""
    adapter = [line["language"] for line in run.rounds if line.get("language")]
    tables = _updates(run.rounds, "Updates of every site", "theta"), _updates(adapter, "Updates of adapters", "adapter")
    return [one for one in tables if one is not None]


def _updates(lines: Sequence[Json], title: str, of: str) -> Markup | None:
    found: dict[str, list[Json]] = defaultdict(list)
    refused: Counter[str] = Counter()
    for line in lines:
        for site, stats in (line.get("updates") or {}).items():
            found[str(site)].append(stats)
        refused.update(str(site) for site in line.get("rejected") or {})
    if not found:
        return None
    rows: list[list[Child]] = []
    for site in sorted({*found, *refused})[:MOST_SITES]:
        stats = found.get(site, [])
        cosines = [float(one["cosine"]) for one in stats if one["cosine"] is not None]
        lengths = [float(one["norm"]) for one in stats]
        rows.append(
            [
                site,
                number(median(lengths) if lengths else None),
                number(max(lengths, default=None)),
                number(median(cosines) if cosines else None, 2),
                count(sum(1 for one in stats if one["factor"] < 1)),
                count(sum(1 for one in stats if not one["chosen"])),
                count(refused[site]),
            ]
        )
    heads = ["Site", "Length, median", "Longest", "Cosine to the aggregate", "Scaled down", "Passed over", "Refused"]
    note = "A site whose updates are far longer than the others', or point the other way, deserves a look."
    return details(title, tag("p", note), table(heads, rows, caption=f"Updates of {of} by site"))

"""The sites: rows and classes of each, and how each learns; small multiples for a few, quantile bands for many."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from server_app.report.arrivals import joined_sites
from server_app.report.backends import backends
from server_app.report.charts import Band, Frame, Line, class_colour, curve, line_chart, stacked_area, svg, y_range
from server_app.report.markup import Child, count, details, duration, join, number, plural, section, size, table, tag
from server_app.report.rounds import legend
from server_app.report.run import Json, Run

MOST_BARS = 40  # sites with a bar of their own
MOST_PANELS = 24  # sites with a panel of their own
MOST_LISTED = 1000  # sites in the table
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

History = list[tuple[int, Json]]


def rows_and_classes(run: Run) -> Markup:
    """Training rows of every site by class."""
    names = run.classes
    key = join(
        tag("span", tag("i", class_="swatch", style=f"background:{class_colour(i)}"), name)
        for i, name in enumerate(names)
    )
    totals = [sum(int(site["classes"][i]) for site in run.sites) for i in range(len(names))]
    few = [str(site["site"]) for site in run.sites if sum(1 for n in site["classes"] if n) < 2]
    one = f" Rows of one class only: {plural(len(few), 'site')}." if few else ""
    lead = (
        f"{sum(totals):,} training rows at {plural(len(run.sites), 'site')}. "
        + ", ".join(f"{name}: {total:,}" for total, name in zip(totals, names, strict=True))
        + f".{one}"
    )
    if len(run.sites) <= MOST_BARS:
        body = _bars(run)
    else:
        counts = [[int(n) for n in site["classes"]] for site in run.sites]
        ordered = sorted(counts, key=lambda site: (site.index(max(site)), -sum(site)))
        rows = sorted((sum(site) for site in counts), reverse=True)
        label = f"Training rows by site and class: from {rows[-1]:,} to {rows[0]:,} rows, median {np.median(rows):,.0f}"
        body = tag("figure", stacked_area(ordered, names, label=label), tag("figcaption", label + "."))
    keys = tag("p", key, class_="legend")
    return section("Rows and classes", keys, body, joined_sites(run), anchor="data", lead=lead)


def learning(run: Run) -> Markup:
    """Each site's validation loss before and after its local training, by round."""
    history = _history(run)
    panels = len(run.members) <= MOST_PANELS
    lead = (
        "Scores on the site's own validation rows: of the vector it received, and of what it made of it in its local "
        "steps. A gap between the two that grows is a site that pulls away from the average."
    )
    body = _panels(run, history) if panels else _bands(run)
    every = details("Every site", _site_table(run, history))
    where = backends(run, MOST_LISTED)
    return section("How each site learns", body, where, every, anchor="sites", lead=lead)


def _bars(run: Run) -> Markup:
    most = max((sum(site["classes"]) for site in run.sites), default=0) or 1
    rows = []
    for site in run.sites:
        parts: list[Child] = []
        left = 0.0
        for number_, (name, n) in enumerate(zip(run.classes, site["classes"], strict=True)):
            wide = 400.0 * n / most
            bar = {"x": left, "y": 0.0, "width": max(wide - 0.8, 0.0), "height": 16.0}
            parts.append(tag("rect", tag("title", f"{name}: {n:,}"), style=f"fill:{class_colour(number_)}", **bar))
            left += wide
        words = ", ".join(f"{name}: {n:,}" for name, n in zip(run.classes, site["classes"], strict=True))
        picture = svg(join(parts), 400, 16, f"training rows: {words}", preserveAspectRatio="none", class_="strip")
        counts = [count((site.get("rows") or {}).get(part)) for part in ("train", "validation", "test")]
        rows.append([str(site["site"]), picture, *counts])
    heads = ["Site", "Training rows by class", "Train", "Validation", "Test"]
    return tag("div", table(heads, rows, numbers_from=2, caption="Rows of each site"), class_="bars")


def _history(run: Run) -> dict[str, History]:
    found: dict[str, History] = defaultdict(list)
    for line in run.rounds:
        for client in line["clients"]:
            found[str(client["site"])].append((int(line["round"]), client))
    return found


def _panels(run: Run, history: dict[str, History]) -> Markup:
    losses = [
        c[k] for h in history.values() for _, c in h for k in ("received_loss", "trained_loss") if c.get(k) is not None
    ]
    if not losses:
        return tag("p", "No accepted reply holds scores on validation rows.", class_="empty")
    frame_y = y_range(losses, floor=0.0)
    last = max((int(line["round"]) for line in run.rounds), default=1)
    frame = Frame((1, last), frame_y, width=230, height=128, left=34, bottom=20)
    panels = [_panel(frame, str(site["site"]), history.get(str(site["site"]), [])) for site in run.members]
    keys = legend_names((("received", "received vector"), ("trained", "after local training")))
    note = f"Loss in nats, the same scale in every panel ({frame_y[0]:g} to {frame_y[1]:g}), rounds 1 to {last}."
    return join([tag("p", keys, " ", note, class_="legend"), tag("div", *panels, class_="panels")])


def _panel(frame: Frame, site: str, history: History) -> Markup:
    received = Line("received", "received", [(r, c.get("received_loss")) for r, c in history])
    trained = Line("trained", "trained", [(r, c.get("trained_loss")) for r, c in history])
    base = frame.height - frame.bottom
    parts: list[Child] = []
    for y in frame.y:
        at = frame.at_y(y)
        parts.append(tag("line", class_="grid", x1=frame.left, x2=frame.width - 10, y1=at, y2=at))
        parts.append(tag("text", f"{y:g}", x=frame.left - 5, y=at + 4, text_anchor="end"))
    for x in sorted({*frame.x}):
        parts.append(tag("text", f"{x:g}", x=frame.at_x(x), y=base + 14, text_anchor="middle"))
    parts += [curve(frame, received), curve(frame, trained)]
    words = f"{site}: received {number(received.last)}, after training {number(trained.last)} nats"
    accuracy = history[-1][1].get("trained_accuracy") if history else None
    came = f"{len(history)} replies, loss {number(trained.last)}, accuracy {number(accuracy)}"
    caption = tag("figcaption", tag("b", site), tag("span", came if history else "no accepted reply"))
    return tag("figure", caption, svg(join(parts), frame.width, frame.height, words))


def legend_names(keys: Sequence[tuple[str, str]]) -> Markup:
    """Names of line styles without numbers."""
    return join(tag("span", tag("i", class_=f"key {style}"), name) for style, name in keys)


def _bands(run: Run) -> Markup:
    figures = []
    for what, title in (("loss", "Loss after local training, nats"), ("accuracy", "Accuracy after local training")):
        after = _quantiles(run, f"trained_{what}")
        before = _quantiles(run, f"received_{what}")
        bands = [
            Band("5% to 95% of the sites", "outer", after[0], after[4]),
            Band("25% to 75% of the sites", "inner", after[1], after[3]),
        ]
        lines = [Line("median after", "trained", after[2]), Line("median received", "received", before[2])]
        chart = line_chart(
            lines,
            label=f"{title}, over the sites: median {number(lines[0].last)}, received {number(lines[1].last)}",
            x_label="round",
            bands=bands,
            cap=1.0 if what == "accuracy" else None,
        )
        figures.append(tag("figure", tag("figcaption", tag("b", title), legend(lines)), chart))
    note = tag("p", "Dark band: the middle half of the sites; light band: 5% to 95%.", class_="note")
    return join([tag("div", *figures, class_="two"), note])


def _quantiles(run: Run, key: str) -> list[list[tuple[float, float | None]]]:
    """By quantile: (round, value over the accepted replies that have one)."""
    found: list[list[tuple[float, float | None]]] = [[] for _ in QUANTILES]
    for line in run.rounds:
        values = [client[key] for client in line["clients"] if client.get(key) is not None]
        cut = np.quantile(values, QUANTILES).tolist() if values else [None] * len(QUANTILES)
        for place, value in zip(found, cut, strict=True):
            place.append((int(line["round"]), value))
    return found


def _site_table(run: Run, history: dict[str, History]) -> Markup:
    heads = [
        "Site",
        "Train rows",
        "Replies",
        "Loss received",
        "Loss after",
        "Accuracy after",
        "Evaluations",
        "Circuits",
    ]
    heads += ["Sent up", "Time"]
    late: dict[str, list[Json]] = defaultdict(list)
    for line in run.rounds:
        for work in line.get("late") or []:
            late[str(work["site"])].append(work)
    rows = [
        _site_cells(site, history.get(str(site["site"]), []), late.get(str(site["site"]), []))
        for site in run.members[:MOST_LISTED]
    ]
    rest = len(run.members) - MOST_LISTED
    more = tag("p", f"{rest:,} more sites are in config.json and rounds.jsonl.", class_="note") if rest > 0 else None
    caption = "Losses and accuracy of the site's last reply in time; the rest summed over the run, late ones too"
    return join([table(heads, rows, caption=caption), more])


def _site_cells(site: Json, history: History, late: Sequence[Json]) -> list[Child]:
    last: Json = history[-1][1] if history else {}
    work = [*(client for _, client in history), *late]
    sums = {key: sum(one.get(key) or 0 for one in work) for key in ("evaluations", "circuits", "bytes_up", "seconds")}
    return [
        str(site["site"]),
        count((site.get("rows") or {}).get("train")),
        f"{len(history)} + {len(late)} late" if late else len(history),
        number(last.get("received_loss")),
        number(last.get("trained_loss")),
        number(last.get("trained_accuracy")),
        count(sums["evaluations"]),
        count(sums["circuits"]),
        size(sums["bytes_up"]),
        duration(sums["seconds"]),
    ]

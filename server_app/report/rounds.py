"""Round by round: loss and accuracy, what each round cost, and which replies did not count."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from markupsafe import Markup

from server_app.report.charts import Line, columns, line_chart
from server_app.report.late import late_replies, ranges
from server_app.report.markup import Child, count, details, duration, number, plural, section, size, table, tag
from server_app.report.privacy import updates_tables
from server_app.report.run import SHORT, Json, Run

MOST_REASONS = 200


def curves(run: Run) -> Markup:
    """Validation loss and accuracy of the quantum model and the baselines by round."""
    figures = [_figure(run, "loss", "Loss, nats (lower is better)"), _figure(run, "accuracy", "Accuracy")]
    return section(
        "Learning, round by round",
        tag("div", *figures, class_="two"),
        details("The same as numbers", _round_table(run)),
        anchor="rounds",
        lead=_scored(run),
    )


def spending(run: Run) -> Markup:
    """Bytes, evaluations, circuits and seconds of every round."""
    kinds: list[tuple[str, str, str, object]] = [
        ("Bytes up", "bytes_up", "up", size),
        ("Bytes down", "bytes_down", "down", size),
        ("Evaluations", "evaluations", "plain", _count),
        ("Circuits", "circuits", "plain", _count),
        ("Seconds", "seconds", "plain", duration),
    ]
    figures = []
    for title, key, style, shown in kinds:
        values = [(int(line["round"]), float(line.get(key) or 0)) for line in run.rounds]
        total = sum(value for _, value in values)
        mean = total / len(values) if values else 0.0
        text = f"{shown(total)} in all, {shown(mean)} a round on average"  # type: ignore[operator]
        chart = columns(values, label=f"{title} by round: {text}", y_format=shown, style=style)  # type: ignore[arg-type]
        figures.append(tag("figure", tag("figcaption", tag("b", title), tag("span", text)), chart))
    lead = (
        "Rounds only: the summary's bytes also count the census before the first round and the scoring after the last. "
        "The baselines' training counts nowhere here."
    )
    return section("What each round cost", tag("div", *figures, class_="small"), anchor="spending", lead=lead)


def replies(run: Run) -> Markup:
    """Late replies, replies that did not count, with their reasons, and sites that were left out."""
    asked = sum(len(line["plan"]["sites"]) for line in run.rounds)
    in_time = sum(len(line["clients"]) for line in run.rounds)
    late = sum(len(line.get("late") or []) for line in run.rounds)
    kept = [int(line["round"]) for line in run.rounds if not line["aggregated"] and line["plan"]["sites"]]
    waited = [int(line["round"]) for line in run.rounds if not line["aggregated"] and not line["plan"]["sites"]]
    parts: list[Child] = []
    if kept:
        below = f"Below quorum, so the model of the round before was kept: {ranges(kept)}."
        parts.append(tag("p", below, class_="warn"))
    if waited:
        vain = f"No site was free and nothing came that could enter, so the model was kept: {ranges(waited)}."
        parts.append(tag("p", vain, class_="warn"))
    parts.append(late_replies(run, MOST_REASONS))
    grouped: dict[tuple[str, str], list[int]] = defaultdict(list)
    for line in run.rounds:
        for site, reason in (line.get("rejected") or {}).items():
            grouped[str(site), str(reason)].append(int(line["round"]))
    if grouped:
        listed = sorted(grouped.items())
        rows = [(site, reason, ranges(at)) for (site, reason), at in listed[:MOST_REASONS]]
        parts.append(table(["Site", "Reason", "Rounds"], rows, numbers_from=9, caption="Rejected replies"))
        if len(listed) > MOST_REASONS:
            parts.append(tag("p", f"{len(listed) - MOST_REASONS:,} more are in rounds.jsonl.", class_="note"))
    parts += updates_tables(run)
    left_out = {**(run.about.get("left_out") or {}), **(run.summary.get("left_out") or {})}
    if left_out:
        listed_out = sorted(left_out.items())[:MOST_REASONS]
        caption = "Left out of the run or of its last exchange"
        parts.append(table(["Site", "Reason"], [(s, str(r)) for s, r in listed_out], numbers_from=9, caption=caption))
    replies_asked = plural(asked, "reply").replace("replys", "replies")
    lead = f"{in_time:,} of {replies_asked} asked for were accepted" + (f" in time, {late:,} late." if late else ".")
    return section("Replies", *parts, anchor="replies", lead=lead)


def _figure(run: Run, what: str, title: str) -> Markup:
    lines = [Line(name, model, run.curve(model, what)) for model, name in SHORT.items()]
    lines = [line for line in lines if line.last is not None]
    ends = ", ".join(f"{line.name} {number(line.last)}" for line in lines)
    chart = line_chart(
        lines or [Line("quantum", "qnn", [])],
        label=f"Validation {what} by round; last known: {ends or 'none'}",
        x_label="rounds trained",
        cap=1.0 if what == "accuracy" else None,
    )
    return tag("figure", tag("figcaption", tag("b", title), legend(lines)), chart)


def legend(lines: Sequence[Line], digits: int = 3) -> Markup:
    """Names of lines with their last numbers."""
    keys = (
        tag("span", tag("i", class_=f"key {li.style}"), f"{li.name} ", tag("b", number(li.last, digits)))
        for li in lines
    )
    return tag("span", *keys, class_="legend")


def _scored(run: Run) -> str:
    if run.federated_validation:
        partial = any(len(line["clients"]) < len(run.members) for line in run.rounds)
        some = "; of those that took part and were accepted in the round" if partial else ""
        return (
            "On the sites' own validation rows, summed over the sites" + some + ". A round's replies score the vector "
            "that was sent, so the point at t rounds comes with round t+1, and the last one with the final exchange."
        )
    source = str(run.about.get("validation_source"))
    where = "held out of the pool" if source == "server" else f"from {source}"
    return f"On validation rows that the server holds ({where}), after each round's average."


def _round_table(run: Run) -> Markup:
    heads: list[Child] = ["Round", "Replies", "Loss", "Accuracy", "Balanced"]
    heads += [f"{SHORT[m]} {what}" for m in ("logistic", "mlp") for what in ("loss", "acc.")]
    heads += ["Step size", "Evaluations", "Up", "Down", "Time"]
    caption = "One line a round, as in rounds.jsonl: with federated validation the scores are those of the vector sent"
    return table(heads, [_round_cells(line) for line in run.rounds], numbers_from=0, caption=caption)


def _round_cells(line: Json) -> list[Child]:
    own: Json = line.get("validation") or {}
    late = len(line.get("late") or [])
    came = f"{len(line['clients'])}/{len(line['plan']['sites'])}" + (f" + {late} late" if late else "")
    cells: list[Child] = [int(line["round"]), came]
    cells += [number(own.get(what)) for what in ("loss", "accuracy", "balanced_accuracy")]
    for model in ("logistic", "mlp"):
        scores: Json = (line.get("baselines") or {}).get(model) or {}
        cells += [number(scores.get("loss")), number(scores.get("accuracy"))]
    cells += [number(line["plan"].get("learning_rate"), 4), count(line.get("evaluations"))]
    return [*cells, size(line.get("bytes_up")), size(line.get("bytes_down")), duration(line.get("seconds"))]


def _count(value: float) -> str:
    return f"{value:,.0f}"

"""The head of the page: what was run, and what the quantum model buys."""

from __future__ import annotations

import math

from markupsafe import Markup

from server_app.report.arrivals import interruptions
from server_app.report.charts import nice_ticks, svg
from server_app.report.intervals import difference, wilson
from server_app.report.markup import (
    Child,
    count,
    duration,
    join,
    listing,
    number,
    plural,
    section,
    signed,
    size,
    tag,
)
from server_app.report.run import MODELS, Run

NAMED = {"logistic": "logistic regression", "mlp": "the small neural network"}
SOURCES = {"server": "held out on the server", "federated": "held out at the sites, scored there"}


def head(run: Run) -> Markup:
    """Title, state of the run, one line of facts."""
    summary = run.summary
    status = str(summary.get("status"))
    dataset = str(summary.get("dataset") or "a run")
    facts = [
        plural(int(summary.get("clients") or len(run.members)), "site"),
        plural(len(run.rounds), "round"),
        f"{run.rows('train'):,} training rows",
        f"seed {summary.get('seed')}",
        duration(summary.get("seconds")),
    ]
    stop = summary.get("stop_reason")
    return tag(
        "header",
        tag("p", "Federated quantum neural network", class_="kicker"),
        tag("h1", dataset),
        tag("p", tag("span", status, class_=f"status {_word(status)}"), " ", " · ".join(facts), class_="facts"),
        tag("p", f"Stopped: {stop}", class_="stop") if stop and status != "finished" else None,
        interruptions(run),
        tag("p", "run ", tag("code", str(summary.get("run_id"))), class_="runid"),
    )


def comparison(run: Run) -> Markup:
    """The quantum model beside logistic regression and a small network, on the same features, splits and rounds."""
    rows = int(run.summary.get("test_rows") or 0)
    there = [model for model in MODELS if run.scores(model).get("test_accuracy") is not None]
    if "qnn" not in there:
        text = "This run has no test score: it did not reach its end, or nobody holds test rows."
        return section("What the quantum model buys", tag("p", text), anchor="buys")
    correct = {m: round(run.scores(m)["test_accuracy"] * rows) for m in there}
    low, high = _span(run, there, correct, rows)
    cards = [_card(run, m, correct[m], rows, (low, high)) for m in there]
    ticks = tag("div", _ruler(low, high), class_="ruler", aria_hidden="true")
    return section(
        "What the quantum model buys",
        tag("p", verdict(correct, rows), class_="verdict"),
        tag("div", *cards, ticks, class_="cards"),
        tag("p", _reading(run, rows, there), class_="note"),
        anchor="buys",
    )


def verdict(correct: dict[str, int], rows: int) -> str:
    """One sentence that says no more than the rows can bear.

    Args:
        correct: right answers by model; holds `qnn`.
        rows: test rows; 0 where their number is unknown.
    """
    others = [model for model in MODELS if model in correct and model != "qnn"]
    if not rows or not others:
        return "Nothing to compare with: the number of test rows or the baselines' scores are unknown."
    groups: dict[str, list[str]] = {"better": [], "worse": [], "level": []}
    for model in others:
        low, high = difference(correct["qnn"], correct[model], rows)
        groups["better" if low > 0 else "worse" if high < 0 else "level"].append(model)

    def named(models: list[str]) -> str:
        deltas = (f"{NAMED[m]} ({signed((correct['qnn'] - correct[m]) / rows)})" for m in models)
        return listing(list(deltas))

    parts = []
    if groups["better"]:
        parts.append(f"is more accurate than {named(groups['better'])}")
    if groups["worse"]:
        parts.append(f"is less accurate than {named(groups['worse'])}")
    if groups["level"]:
        parts.append(f"cannot be told apart in accuracy from {named(groups['level'])}")
    return f"On {rows:,} test rows the quantum model {listing(parts)}."


def costs(run: Run) -> Markup:
    """What the run spent, in a strip of figures."""
    summary = run.summary
    figures: list[tuple[str, str, str]] = [
        ("Evaluations", count(summary.get("evaluations")), "of the training objective"),
        ("Circuits", count(summary.get("circuits")), "evaluations × rows"),  # noqa: RUF001
        ("Sent up", size(summary.get("bytes_up")), "sites to server"),
        ("Sent down", size(summary.get("bytes_down")), "server to sites"),
        ("Shots", count(summary.get("shots")), "0 means exact expectation values"),
    ]
    if jobs := int(summary.get("jobs") or 0):
        queues = duration(summary.get("queue_seconds"))
        figures.append(("QPU time", duration(summary.get("qpu_seconds")), f"{plural(jobs, 'job')}, {queues} in queues"))
    figures.append(("Wall time", duration(summary.get("seconds")), "census to test"))
    cells = [tag("div", tag("dt", name), tag("dd", value), tag("p", note)) for name, value, note in figures]
    return tag("section", tag("h2", "What it cost"), tag("dl", *cells, class_="figures"), id="cost")


def _card(run: Run, model: str, correct: int, rows: int, span: tuple[float, float]) -> Markup:
    scores = run.scores(model)
    accuracy = float(scores["test_accuracy"])
    interval = wilson(correct, rows) if rows else None
    small: list[tuple[str, str]] = [
        ("balanced accuracy", number(scores.get("test_balanced_accuracy"))),
        ("loss, nats", number(scores.get("test_loss"))),
        ("parameters", count(scores.get("parameters"))),
    ]
    within = (
        None if interval is None else f"{correct:,} of {rows:,} right; {number(interval[0])} to {number(interval[1])}"
    )
    return tag(
        "div",
        tag("h3", tag("i", class_=f"swatch {model}"), MODELS[model]),
        tag("p", number(accuracy), tag("span", "test accuracy"), class_="big"),
        tag("div", _whisker(model, accuracy, interval, span), tag("p", within), class_="interval"),
        tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in small)),
        class_=f"card {model}",
    )


def _span(run: Run, models: list[str], correct: dict[str, int], rows: int) -> tuple[float, float]:
    ends = [float(run.scores(m)["test_accuracy"]) for m in models]
    if rows:
        ends += [end for m in models for end in wilson(correct[m], rows)]
    low, high = min(ends), max(ends)
    pad = max((high - low) * 0.06, 0.002)
    return max(0.0, low - pad), min(1.0, high + pad)


def _whisker(model: str, accuracy: float, interval: tuple[float, float] | None, span: tuple[float, float]) -> Markup:
    def at(value: float) -> float:
        return 8 + 384 * (value - span[0]) / (span[1] - span[0])

    parts: list[Child] = [tag("line", class_="grid", x1=8.0, x2=392.0, y1=18.0, y2=18.0)]
    words = f"test accuracy {number(accuracy)}"
    if interval is not None:
        parts.append(tag("line", class_=f"whisker {model}", x1=at(interval[0]), x2=at(interval[1]), y1=18.0, y2=18.0))
        words += f", 95% interval {number(interval[0])} to {number(interval[1])}"
    parts.append(tag("circle", class_=f"dot {model}", cx=at(accuracy), cy=18.0, r=7.0))
    return svg(join(parts), 400, 36, words)


def _ruler(low: float, high: float) -> Markup:
    ticks = [t for t in nice_ticks(low, high, 6) if low <= t <= high]
    parts: list[Child] = []
    for tick in ticks:
        at = 8 + 384 * (tick - low) / (high - low)
        parts.append(tag("line", class_="grid", x1=at, x2=at, y1=0.0, y2=5.0))
        parts.append(tag("text", f"{tick:.3g}", x=at, y=19.0, text_anchor="middle"))
    return svg(join(parts), 400, 24, "scale of test accuracy")


def _reading(run: Run, rows: int, there: list[str]) -> Markup:
    source = str(run.summary.get("test_source"))
    where = SOURCES.get(source, f"from {source}")
    texts = [f"Test rows: {count(rows) if rows else 'number unknown'}, {where}, touched once, after the last round."]
    if rows:
        p = float(run.scores("qnn")["test_accuracy"])
        spread = math.sqrt(p * (1 - p) / rows)
        texts.append(
            f"One row is worth {1 / rows:.4f}; the standard error of the quantum model's accuracy {spread:.3f}. "
            "Bars are 95% Wilson intervals; the sentence above compares as if the models had answered different rows, "
            "which is the careful side."
        )
    texts.append("This is one seed; the spread over seeds and splits is not in these intervals.")
    if len(there) > 1:
        texts.append("All models were trained federated on the same features, splits and rounds.")
    classes = len(run.classes)
    if classes:
        texts.append(f"Guessing evenly among {classes} classes loses ln {classes} = {math.log(classes):.3f} nats.")
    return join([" ".join(texts)])


def _word(status: str) -> str:
    return status if status in ("finished", "stopped", "failed") else "unknown"

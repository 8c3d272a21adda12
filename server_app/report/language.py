"""The language model beside the quantum model: its scores along four routes, its rounds, its sites."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from server_app.report.intervals import difference
from server_app.report.markup import (
    DASH,
    Child,
    count,
    details,
    duration,
    listing,
    number,
    plural,
    section,
    signed,
    size,
    table,
    tag,
)
from server_app.report.run import Json, Run

ROUTES = {
    "zero-shot": "Zero-shot: the full model as it is",
    "compressed-zero-shot": "Compressed zero-shot: what sites hold, before they tuned it",
    "adap-emu": "AdapEmu: the adapter on what sites hold",
    "adap-fu": "AdapFu: the adapter on the full model",
    "adap-fu-calibrated": "AdapFu, its answers on public prompts fitted to AdapEmu's (ours, not the paper's)",
}
FEW_STEPS = 100  # of a site in the whole run; the reference's tuned models had 100 or more
MOST = 200


def language_section(run: Run) -> Markup:
    """Everything about the language model; one sentence where a run has none."""
    about: Json = run.about.get("language") or {}
    found: Json = run.summary.get("language") or {}
    if not about:
        return section("Language model", tag("p", "This run had no language model."), anchor="language")
    parts: list[Child] = [
        _demonstration(run, about),
        tag("p", _verdict(found), class_="verdict") if found.get("test") else None,
        _scores(run, found),
        tag("p", _reading(run, found), class_="note"),
        _rounds(run),
        details("Sites", _sites(run, about)),
        _rejected(run),
        details("The model and the text", _model(run, about, found)),
    ]
    return section("Language model", *parts, anchor="language", lead=_lead(about))


def _lead(about: Json) -> str:
    held, layers, tuned = len(about["held_layers"]), about["layers"], len(about["tuned_layers"])
    what = "the whole of" if held == layers else f"{held} of the {layers} layers of"
    return (
        f"Each site holds {what} {about['model']} ({size(about['model_bytes'])}, fetched once) and tunes a low-rank "
        f"adapter on {plural(tuned, 'layer')} with the same rows as the quantum model, written as text; the adapter "
        f"({count(about['adapter_parameters'])} numbers) travels. Method: {about['method']}."
    )


def _demonstration(run: Run, about: Json) -> Markup | None:
    steps = int(str(_key(run, "language.steps") or 0)) * len(about.get("rounds") or [])
    if steps >= FEW_STEPS:
        return None
    return tag(
        "p",
        f"A demonstration: {steps} steps of {_key(run, 'language.batch-size')} rows at each site in the whole run. It "
        "shows that the method runs, not how well it can do.",
        class_="note",
    )


def _verdict(found: Json) -> str:
    """What tuning has brought, in no more words than the rows can bear."""
    test = found["test"]
    best = _of(test, "zero-shot", "calibrated")
    tuned, where = _of(test, "adap-fu", "plain"), "on the full model"
    if not tuned:
        best, tuned, where = (
            _of(test, "compressed-zero-shot", "plain"),
            _of(test, "adap-emu", "plain"),
            "on the compressed model",
        )
    if not tuned or tuned.get("accuracy") is None or not best:
        return _verdict_on_texts(test) if "adap-emu" in test else "No adapter was tuned."
    rows = int(tuned["rows"])
    first, second = round(tuned["accuracy"] * rows), round(best["accuracy"] * rows)
    low, high = difference(first, second, rows)
    gain = signed((first - second) / rows)
    words = "is more accurate than" if low > 0 else "is less accurate than" if high < 0 else "cannot be told apart from"
    return f"On {rows:,} test rows the adapter {where} {words} the model that was not tuned ({gain} in accuracy)."


def _verdict_on_texts(test: Json) -> str:
    before, after = _of(test, "zero-shot", "plain"), _of(test, "adap-fu", "plain")
    if not before or not after:
        before, after = _of(test, "compressed-zero-shot", "plain"), _of(test, "adap-emu", "plain")
    if not before or not after:
        return "There is no test score."
    gain = before["loss"] - after["loss"]
    return f"Tuning lowers the loss on the test texts by {signed(gain)} nats a token, over {after['tokens']:,} tokens."


def _scores(run: Run, found: Json) -> Markup | None:
    """Each route beside the quantum model, plain and with the class prior divided out."""
    test: Json = found.get("test") or {}
    if not test:
        return None
    rows: list[list[Child]] = []
    for kind, name in ROUTES.items():
        plain, calibrated = _of(test, kind, "plain"), _of(test, kind, "calibrated")
        if not plain:
            continue
        rows.append([name, *_three(plain), *_three(calibrated)])
    if run.summary.get("test_accuracy") is not None:
        mine = [number(run.summary.get(f"test_{key}")) for key in ("accuracy", "balanced_accuracy", "loss")]
        rows.append(["Quantum neural network", *mine, DASH, DASH, DASH])
    heads = ["On the test rows", "Accuracy", "Macro-recall", "Loss, nats", "Accuracy*", "Macro-recall*", "Loss*, nats"]
    return table(heads, rows, caption="The language model beside the quantum model; * class prior divided out")


def _three(scores: Json) -> list[str]:
    return [number(scores.get(key)) for key in ("accuracy", "balanced_accuracy", "loss")]


def _reading(run: Run, found: Json) -> str:
    texts = []
    test: Json = found.get("test") or {}
    if not test:
        return "Nothing was scored: no site took part, or nobody holds test rows."
    if any(_of(test, kind, "calibrated") for kind in ROUTES):
        texts.append(
            "A model that was not tuned prefers some answers whatever the text. In the columns with a star that "
            "preference, measured on public text without labels by the same route, is divided out; the summary's "
            "zero-shot accuracies are those, its AdapEmu and AdapFu are the plain ones."
        )
    if not found.get("tuned", True):
        texts.append("No site's answer ever counted, so there is no adapter to score; why stands below.")
    elif "adap-fu" not in test:
        texts.append("The test rows are the sites', and sites do not hold the full model: AdapFu has no score.")
    if found.get("method") == "local":
        texts.append("Nothing was averaged: AdapEmu and AdapFu are means over the sites' own adapters.")
    if _key(run, "language.task") == "generation":
        texts.append("Losses are per token of the text, the end token included.")
    return " ".join(texts)


def _rounds(run: Run) -> Markup | None:
    rows: list[list[Child]] = []
    for line, part in _parts(run):
        if not part["sites"]:
            continue
        answers = part["answers"]
        rows.append(
            [
                line["round"],
                f"{len(answers)} of {len(part['sites'])}" + ("" if part["aggregated"] else ", not averaged"),
                _mean(answers, "received_loss"),
                _mean(answers, "trained_loss"),
                number((part.get("validation") or {}).get("accuracy")),
                number((part.get("full_validation") or {}).get("accuracy")),
                duration(max((answer["seconds"] for answer in answers), default=None)),
                size(part["bytes_up"]),
                size(part["bytes_down"]),
                DASH if part["align_seconds"] is None else duration(part["align_seconds"]),
            ]
        )
    if not rows:
        return None
    heads = ["Round", "Sites", "Loss received", "Loss trained", "AdapEmu", "AdapFu"]
    heads += ["Slowest site", "Up", "Down", "Realigned"]
    caption = (
        "Rounds that trained the adapter; losses (nats) on the sites' validation rows, accuracies on validation rows"
    )
    return table(heads, rows[:MOST], numbers_from=2, caption=caption)


def _mean(answers: list[Json], key: str) -> str:
    """Over the sites that have validation rows, by their training rows."""
    known = [(answer["num_examples"], answer[key]) for answer in answers if answer.get(key) is not None]
    weight = sum(n for n, _ in known)
    return number(sum(n * value for n, value in known) / weight) if weight else DASH


def _sites(run: Run, about: Json) -> Markup:
    left_out: Json = about.get("left_out") or {}
    sums: dict[str, list[Json]] = {}
    for _, part in _parts(run):
        for answer in part["answers"]:
            sums.setdefault(str(answer["site"]), []).append(answer)
    rows: list[list[Child]] = []
    for site in [*about.get("sites", []), *left_out][:MOST]:
        done = sums.get(str(site), [])
        rows.append(
            [
                site,
                f"no: {left_out[site]}" if site in left_out else "yes" if done else "no accepted answer",
                count(sum(int(one["steps"]) for one in done)) if done else DASH,
                duration(sum(one["fill_seconds"] for one in done)) if done else DASH,
                duration(sum(one["step_seconds"] for one in done)) if done else DASH,
                size(max(one["peak_bytes"] for one in done)) if done else DASH,
                listing(sorted({str(one["frozen_dtype"]) for one in done})) if done else DASH,
                size(sum(one["bytes_up"] for one in done)) if done else DASH,
            ]
        )
    heads = ["Site", "Takes part", "Steps", "Frozen layers", "Tuned layers", "Most memory", "Frozen in", "Sent up"]
    return table(heads, rows, numbers_from=2, caption="Language model by site: time, memory of the process, bytes")


def _rejected(run: Run) -> Markup | None:
    rows: list[list[Child]] = []
    for line, part in _parts(run):
        rows += [[line["round"], site, reason] for site, reason in part["rejected"].items()]
        rows += [[line["round"], site, "came late and was dropped"] for site in part["dropped"]]
    if not rows:
        return None
    return table(["Round", "Site", "Why"], rows[:MOST], numbers_from=9, caption="Language parts that did not count")


def _model(run: Run, about: Json, found: Json) -> Markup:
    public: Json = about.get("public") or {}
    losses = about.get("align_losses") or []
    aligned = "not aligned"
    if losses:
        aligned = f"{plural(len(losses), 'step')}, boundary loss {number(losses[0])} to {number(losses[-1])}"
    seconds: Json = found.get("seconds") or {}
    rows: list[list[Child]] = [
        ["Base model", f"{about['model']}, SHA-256 {about['base_digest']}"],
        ["Compressed model", f"SHA-256 {about['sha256']}; layers {', '.join(map(str, about['held_layers']))}"],
        ["Tuned layers", ", ".join(map(str, about["tuned_layers"]))],
        ["Prompt", str(about.get("template"))],
        ["Answers", ", ".join(about.get("words") or [])],
        ["Columns written out", ", ".join(about.get("columns") or []) or "the text itself"],
        ["Public text", f"{public.get('source')}, {public.get('rows')} texts, SHA-256 {public.get('sha256')}"],
        ["Alignment before the first round", aligned],
        ["Bytes", f"{size(found.get('bytes_up'))} up, {size(found.get('bytes_down'))} down, in tasks and answers"],
        ["Server's time", ", ".join(f"{name} {duration(value)}" for name, value in seconds.items()) or DASH],
    ]
    return table(["What", "Value"], rows, numbers_from=9, caption="The language model and its text")


def _parts(run: Run) -> Iterator[tuple[Json, Json]]:
    """Lines of the ledger with their language part."""
    for line in run.rounds:
        if line.get("language"):
            yield line, line["language"]


def _of(test: Json, kind: str, how: str) -> Json:
    return (test.get(kind) or {}).get(how) or {}


def _key(run: Run, key: str) -> object:
    return (run.about.get("config") or {}).get(key)

"""What the terminal says, as plain text: head, rounds, results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llm_qfl.federation.config import RunConfig

Json = Mapping[str, Any]

MODELS = (("qnn", "quantum neural network"), ("logistic", "logistic regression"), ("mlp", "small neural network"))
UNKNOWN = "-"
MOST_REASONS = 3  # reasons shown a round; the ledger has them all


def head_lines(config: RunConfig, sites: Sequence[Json]) -> list[str]:
    """What is run, on what."""
    rows = {part: sum(int(site["rows"].get(part, 0)) for site in sites) for part in ("train", "validation", "test")}
    quantum, training = config.quantum, config.training
    shape = f"{quantum.qubits} qubits" + (f", {quantum.layers} layers" if quantum.circuit != "qcnn" else "")
    held = f" + {rows['test']:,} test" if rows["test"] else ""
    return [
        f"llm-qfl: {clean(config.data.source)} across {len(sites)} sites, {config.server.rounds} rounds",
        f"rows at the sites: {rows['train']:,} train + {rows['validation']:,} validation{held}; "
        f"test {clean(config.data.test)}, validation {clean(config.data.validation)}, seed {config.server.seed}",
        f"circuit: {quantum.circuit} ({shape}), readout {quantum.readout}, {config.data.reduction}, "
        f"{training.optimizer} {training.steps} steps a round",
    ]


def left_out_notes(left_out: Json) -> list[str]:
    """Who has no part in the run, and why (the first few)."""
    notes = [f"left out {clean(site)}: {clean(reason)}" for site, reason in sorted(left_out.items())[:MOST_REASONS]]
    if len(left_out) > MOST_REASONS:
        notes.append(f"... and {len(left_out) - MOST_REASONS} more are left out, in config.json")
    return notes


def round_cells(line: Json, rounds: int) -> tuple[str, ...]:
    """One round as the cells of the display's columns; late replies after a plus."""
    validation: Json = line.get("validation") or {}
    baselines: Json = line.get("baselines") or {}
    asked, came, late = len(line["plan"]["sites"]), len(line["clients"]), len(line.get("late") or [])
    return (
        f"{line['round']}/{rounds}" if line["round"] <= rounds else "closing",
        f"{came}/{asked}" + (f"+{late}" if late else "") + ("" if line["aggregated"] else " !"),
        number(validation.get("loss")),
        number(validation.get("accuracy")),
        *(number((baselines.get(name) or {}).get("accuracy")) for name in ("logistic", "mlp")),
        f"{line['evaluations']:,}",
        size(line["bytes_up"]),
        size(line["bytes_down"]),
        f"{line['seconds']:.1f}",
    )


def round_notes(line: Json) -> list[str]:
    """What did not go well in a round: below quorum, busy sites, late and rejected replies (the first few)."""
    notes: list[str] = []
    if not line["aggregated"]:
        asked = line["plan"]["sites"]
        notes.append(f"{'below quorum' if asked else 'nothing to average'}: the model of the round before is kept")
    notes += _late_notes(line)
    language: Json = line.get("language") or {}
    notes += [
        f"language part of {clean(s)}: {clean(r)}" for s, r in list(language.get("rejected", {}).items())[:MOST_REASONS]
    ]
    notes += [
        f"language part of {clean(s)}: came late, dropped" for s in list(language.get("dropped", []))[:MOST_REASONS]
    ]
    rejected: Json = line.get("rejected") or {}
    for site, reason in sorted(rejected.items())[:MOST_REASONS]:
        notes.append(f"rejected {clean(site)}: {clean(reason)}")
    if len(rejected) > MOST_REASONS:
        notes.append(f"... and {len(rejected) - MOST_REASONS} more, in rounds.jsonl")
    return notes


def _late_notes(line: Json) -> list[str]:
    late: Sequence[Json] = line.get("late") or []
    answered = {str(one["site"]) for one in late}
    busy = [str(site) for site in line.get("busy") or [] if site not in answered]
    entered: Sequence[Json] = line.get("entered") or []
    taken = {(one["site"], one["of_round"]) for one in entered}
    notes = [f"late {clean(e['site'])}: its reply to round {e['of_round']} counts x {e['factor']:.3g}" for e in entered]
    notes += [
        f"late {clean(one['site'])}: its reply to round {one['of_round']} does not enter this average"
        for one in late
        if (one["site"], one["of_round"]) not in taken
    ]
    if len(notes) > MOST_REASONS:
        notes = [*notes[:MOST_REASONS], f"... and {len(notes) - MOST_REASONS} more late replies, in rounds.jsonl"]
    if busy:
        rest = f" and {len(busy) - MOST_REASONS} more" if len(busy) > MOST_REASONS else ""
        notes.append(f"still busy, no new task: {', '.join(clean(site) for site in busy[:MOST_REASONS])}{rest}")
    return notes


def result_rows(summary: Json) -> list[tuple[str, str, str, str]]:
    """Model, accuracy, balanced accuracy and loss on the test rows."""
    baselines: Json = summary.get("baselines") or {}
    rows = []
    for key, name in MODELS:
        found: Json = summary if key == "qnn" else (baselines.get(key) or {})
        cells = (number(found.get(f"test_{what}")) for what in ("accuracy", "balanced_accuracy", "loss"))
        rows.append((name, *cells))
    return rows  # type: ignore[return-value]


def result_lines(summary: Json) -> list[str]:
    """The result as plain lines: a table of the models, then what it cost."""
    lines = [f"{'on the test rows':<24}{'accuracy':>10}{'balanced':>10}{'loss':>10}"]
    lines += [f"{n:<24}{a:>10}{b:>10}{loss:>10}" for n, a, b, loss in result_rows(summary)]
    tested = summary.get("test_rows")
    if tested:
        lines.append(f"{tested:,} test rows ({clean(str(summary.get('test_source')))}); losses in nats")
    lines += language_lines(summary.get("language") or {})
    lines += policy_lines(summary)
    if summary.get("evaluations") is not None:
        lines.append(
            f"{summary['evaluations']:,} evaluations, {summary['circuits']:,} circuits, "
            f"{size(summary['bytes_up'])} up, {size(summary['bytes_down'])} down, {summary['seconds']:.1f} s"
        )
    if summary.get("shots"):
        lines.append(f"{summary['shots']:,} shots")
    if summary.get("jobs"):
        lines.append(
            f"{summary['jobs']:,} jobs on IBM Quantum: {summary['qpu_seconds']:.1f} s on QPUs"
            + (
                f" ({summary['qpu_seconds_estimated']:.1f} s of it estimated)"
                if summary["qpu_seconds_estimated"]
                else ""
            )
            + ", "
            f"{summary['queue_seconds']:.0f} s in queues"
        )
    return lines


ROUTES = (
    ("zero-shot", "calibrated", "zero-shot *"),
    ("compressed-zero-shot", "calibrated", "compressed zero-shot *"),
    ("adap-emu", "plain", "adapter, compressed"),
    ("adap-fu", "plain", "adapter, full model"),
    ("adap-fu", "calibrated", "adapter, full model *"),
    ("adap-fu-calibrated", "plain", "full model, calibrated"),
)


def language_lines(language: Json) -> list[str]:
    """The language model's scores along its routes; nothing where a run has none."""
    if not language:
        return []
    test: Json = language.get("test") or {}
    name = clean(str(language.get("model")))
    if not test:
        return [f"language model {name}: not scored"]
    rows = [(label, (test.get(kind) or {}).get(how) or {}) for kind, how, label in ROUTES]
    if not any(found for label, found in rows if label.endswith("*")):  # no prior is known: as the model answers
        plain = {label.removesuffix(" *"): (test.get(kind) or {}).get("plain") or {} for kind, _, label in ROUTES}
        rows = list(plain.items())
    lines = ["", f"{'language model':<24}{'accuracy':>10}{'balanced':>10}{'loss':>10}   {name}"]
    for label, found in rows:
        if not found:
            continue
        cells = (number(found.get(key)) for key in ("accuracy", "balanced_accuracy", "loss"))
        lines.append(f"{label:<24}" + "".join(f"{cell:>10}" for cell in cells))
    if any(label.endswith("*") for label, _ in rows):
        lines.append("* what it says whatever the text, measured on public text, is divided out")
    if not language.get("tuned", True):
        lines.append("no adapter: no site's answer ever counted, the report says why")
    lines.append(
        f"adapter: {language['rounds']} rounds at {language['sites']} sites, {size(language['bytes_up'])} up, "
        f"{size(language['bytes_down'])} down, {size(language.get('client_peak_bytes'))} of memory at most at a site"
    )
    lines += [
        f"without it {clean(site)}: {clean(why)}" for site, why in list(language["left_out"].items())[:MOST_REASONS]
    ]
    return lines


def policy_lines(summary: Json) -> list[str]:
    """Who decided the rounds, and how often the ratio rule did something; nothing where all rounds were alike."""
    policy: Json = summary.get("policy") or {}
    if not policy:
        return []
    line = f"decisions: {policy['decisions']}, mode {clean(str(summary.get('mode')))}"
    if summary.get("mode") == "policy":
        line += f"; the rule took {policy['fallbacks']} of the {policy['with_history']} with a history"
        reasons = ", ".join(f"{clean(reason)} {n}" for reason, n in policy["reasons"].items())
        line += f" ({reasons})" if reasons else ""
    lines = [line]
    if summary.get("mode") == "policy" and policy["kind"] != "policy":
        lines.append("reported as the ratio rule's run: the language model decided too few of them")
    fired: Json = policy["rule_fired"]
    which = "would have been" if policy["kind"] == "policy" else "were"
    lines.append(
        f"rule {policy['rule']}: budgets {which} raised in {fired['grew']:.0%} of {fired['rounds']} rounds, lowered in "
        f"{fired['shrank']:.0%}" + (": inert, it never had a reason to spend more" if fired["inert"] else "")
    )
    return lines


def number(value: float | None) -> str:
    """Three decimals, or a dash for what is not known."""
    return UNKNOWN if value is None else f"{value:.3f}"


def size(count: int | None) -> str:
    """Bytes in kB or MB (powers of ten)."""
    if count is None:
        return UNKNOWN
    for limit, unit in ((1e3, "B"), (1e6, "kB"), (1e9, "MB")):
        if count < limit:
            return f"{count} B" if unit == "B" else f"{count / limit * 1e3:.1f} {unit}"
    return f"{count / 1e9:.1f} GB"


def clean(text: str, *, lines: bool = False) -> str:
    """Text from outside without control characters (a site's name must not move the cursor)."""
    return "".join(c if c.isprintable() or (lines and c == "\n") else "\N{REPLACEMENT CHARACTER}" for c in str(text))

"""Where the numbers come from: configuration, how to repeat the run, versions, fingerprint, and what words mean."""

from __future__ import annotations

import shlex
from collections import defaultdict

from markupsafe import Markup

from llm_qfl.federation.config import default_run_config
from server_app.report.markup import Child, join, section, table, tag
from server_app.report.run import Run

GLOSSARY = (
    (
        "nat",
        "Unit of the losses here: cross-entropy with the natural logarithm. The mean over rows of minus the logarithm "
        "of the probability that the model gave to the right class. 0 is certainty and right.",
    ),
    (
        "objective evaluation",
        "Unit of a site's training budget. A loss at one point costs 1; a gradient 2G+1, G being the parametrised "
        "gates that depend on weights: what the parameter-shift rule would cost on hardware, on every backend.",
    ),
    ("circuits", "Evaluations times the rows that they were made on. Validation is counted apart and is not in it."),
    ("balanced accuracy", "Mean over the classes of the share of their rows that was answered right."),
    (
        "test source",
        "Where test rows come from: server (held out of the pool), federated (held out at the sites, which send sums), "
        "or a file. They are scored once, after the last round, and nothing is chosen by them.",
    ),
    (
        "validation",
        "Rows that score but never train. The sites' own (federated: the score on a round's line is that of the vector "
        "sent in that round) or the server's.",
    ),
    (
        "interval",
        "95% Wilson score interval of a share: where the accuracy on many more rows like these would lie. It says "
        "nothing about another seed, split or federation.",
    ),
    (
        "late reply",
        "An answer that came after its round's deadline, from a site that waited for a QPU. It enters the next average "
        "as the change that the site made to the vector it was given, with its share of the rows, times the staleness "
        "factor: server.staleness to the power of the rounds that it is late.",
    ),
    ("baselines", "Logistic regression and a network of about as many parameters as the quantum model, trained on the "
     "same features, splits and rounds. They count neither in the budget nor in the bytes."),
    ("bytes", "Payload of the messages as the run saw it; the wire's own framing and encryption come on top."),
)  # fmt: skip


FILES = (
    ("summary.json", "what the run came to; the figures of this page"),
    ("rounds.jsonl", "a line a round: plan, replies, scores, costs"),
    ("decisions.jsonl", "a line a decision: what was seen, chosen, not allowed"),
    ("config.json", "configuration, sites, versions"),
    ("metrics.prom", "the figures as Prometheus reads them, as of the last closed round"),
    ("model", "circuit, weights and feature map: all that llm-qfl predict needs"),
    ("adapter", "the language model's adapter, as PEFT reads it"),
    ("checkpoint", "all that the next round depends on: server.resume goes on from it"),
)


def reproduce(run: Run) -> Markup:
    """The command that repeats the run, and the one that uses the model."""
    command = run.about.get("command")
    output = (run.about.get("config") or {}).get("server.output")
    where = f"{output}/{run.folder.name}" if output else run.folder.name
    parts: list[Child] = []
    if command:
        parts.append(_command("Repeat the run", str(command)))
    parts.append(_command("Predict with its model", f"llm-qfl predict {shlex.quote(where)} data.csv"))
    digest = run.rounds[-1].get("theta_digest") if run.rounds else None
    if digest:
        parts.append(
            tag(
                "p",
                "Same seed, same sites, same versions: the same weights. Digest of the final weights ",
                tag("code", digest),
            )
        )
    return section("Do it again", *parts, anchor="reproduce")


def configuration(run: Run) -> Markup:
    """Every key of the run config; what differs from the default stands out."""
    config = run.about.get("config") or {}
    if not config:
        return section(
            "Configuration", tag("p", "The run left no configuration.", class_="empty"), anchor="configuration"
        )
    defaults = default_run_config()
    changed = {key for key, value in config.items() if key in defaults and defaults[key] != value}
    groups: dict[str, list[Markup]] = defaultdict(list)
    for key, value in config.items():
        part, _, name = key.partition(".")
        note = tag("small", f" default {_toml(defaults[key])}") if key in changed else None
        groups[part].append(
            tag("div", tag("dt", name), tag("dd", _toml(value), note), class_="changed" if key in changed else None)
        )
    cards = [tag("div", tag("h3", part), tag("dl", *items)) for part, items in groups.items()]
    what = "All at their defaults." if not changed else f"{len(changed)} of {len(config)} keys differ from the default."
    return section("Configuration", tag("div", *cards, class_="config"), anchor="configuration", lead=what)


def provenance(run: Run) -> Markup:
    """Versions and fingerprint."""
    versions = run.about.get("versions") or run.summary.get("versions") or {}
    marks = run.about.get("fingerprint") or run.summary.get("fingerprint") or {}
    first = table(
        ["Library", "Version"], [(k, str(v)) for k, v in versions.items()], numbers_from=9, caption="Versions"
    )
    digests = [(k, tag("code", str(v))) for k, v in marks.items()]
    second = table(["Component", "Digest"], digests, numbers_from=9, caption="Fingerprint: equal on both sides")
    return section(
        "Versions and fingerprint",
        tag("div", first, second, class_="two"),
        _files(run),
        anchor="provenance",
    )


def _files(run: Run) -> Markup:
    there = [(tag("code", name), text) for name, text in FILES if (run.folder / name).exists()]
    return table(["File", "What it holds"], there, numbers_from=9, caption="Beside this page in the run folder")


def glossary(run: Run) -> Markup:
    """What the words and numbers of the page mean."""
    del run  # the words are the same for every run
    items = join(tag("div", tag("dt", word), tag("dd", text)) for word, text in GLOSSARY)
    return section("What the words mean", tag("dl", items, class_="glossary"), anchor="glossary")


def _command(title: str, command: str) -> Markup:
    button = tag("button", "copy", type="button", class_="copy")
    return tag("div", tag("h3", title, button), tag("pre", tag("code", command)), class_="command")


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)

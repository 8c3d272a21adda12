"""`metrics.prom`: how a run stands, in Prometheus' text format, written whole after every closed round.

The file is made for node_exporter's textfile collector, or for any server of static files. Everything in it is in the
run folder's ledger, too: nothing that did not leave a site, no row, no name of a file. Every sample carries the run's
id, so the files of several runs can be collected together.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/ (text, version 0.0.4).
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm_qfl import __version__
from llm_qfl.federation.config import RunConfig
from server_app.checkpoint import write_whole, writing

Json = Mapping[str, Any]
Labels = tuple[tuple[str, str], ...]

FILE = "metrics.prom"
STATES = ("running", "finished", "stopped", "failed")
MODELS = {"qnn": "validation", "logistic": "baselines", "mlp": "baselines"}
SPENT = ("evaluations", "circuits", "shots", "jobs", "qpu_seconds", "queue_seconds")
HELP: Mapping[str, tuple[Literal["counter", "gauge"], str]] = {
    "run_info": ("gauge", "What is run; always 1."),
    "run_status": ("gauge", "1 for the state that the run is in; a server that was killed leaves `running`."),
    "updated_timestamp_seconds": ("gauge", "When the run closed its last round, began or ended."),
    "rounds_planned": ("gauge", "Rounds that the run was asked for (server.rounds)."),
    "rounds_closed_total": ("counter", "Closed rounds, with one at the end that only waited for late replies."),
    "rounds_without_average_total": ("counter", "Closed rounds that kept the former model: below quorum, mostly."),
    "resumes_total": ("counter", "How often the run went on after an interruption."),
    "sites": ("gauge", "Sites that have a part in the run."),
    "sites_left_out": ("gauge", "Nodes that were there at the census and have no part in the run."),
    "sites_joined_total": ("counter", "Sites that came after the run had begun."),
    "round_replies": ("gauge", "Of the last closed round: tasks sent, replies by what became of them, busy sites."),
    "replies_total": ("counter", "Of all closed rounds: tasks sent, replies by what became of them, busy sites."),
    "round_duration_seconds": ("gauge", "Wall time of the last closed round."),
    "rounds_duration_seconds_total": ("counter", "Wall time of all closed rounds."),
    "validation_loss_nats": ("gauge", "Cross-entropy on validation rows, newest."),
    "validation_accuracy_ratio": ("gauge", "Accuracy on validation rows, newest."),
    "test_loss_nats": ("gauge", "Cross-entropy on the test rows; once, at the end."),
    "test_accuracy_ratio": ("gauge", "Accuracy on the test rows; once, at the end."),
    "evaluations_total": ("counter", "Objective evaluations of training."),
    "circuits_total": ("counter", "Evaluations times rows."),
    "shots_total": ("counter", "Shots, those of validation and mitigation included."),
    "jobs_total": ("counter", "Jobs on IBM Quantum."),
    "qpu_seconds_total": ("counter", "Seconds on QPUs."),
    "queue_seconds_total": ("counter", "Seconds that jobs waited for a QPU."),
    "sent_bytes_total": ("counter", "Bytes of messages: up from the sites, down to them."),
    "decisions_total": ("counter", "Decisions about rounds, by who made them."),
    "decision_fallbacks_total": ("counter", "Rounds that the rule decided in the policy's place, by reason."),
    "decision_duration_seconds": ("gauge", "Time of the newest decision."),
    "privacy_epsilon": ("gauge", "Epsilon that was spent so far, by site; site `all`: of the whole run."),
}  # fmt: skip
"""Name without its prefix -> type and explanation. A name always has the same help text: Prometheus wants it so."""


@dataclass(frozen=True)
class Family:
    """One metric.

    Attributes:
        name: letters, digits and underscores.
        kind: its type.
        help: one line, or several.
        samples: labels and value; a value of None is left out.
    """

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    samples: Sequence[tuple[Labels, float | None]]


def render(families: Iterable[Family]) -> str:
    """The text of some metrics, one uninterrupted group each; empty ones are left out."""
    lines: list[str] = []
    for family in families:
        samples = [(labels, value) for labels, value in family.samples if value is not None]
        if not samples:
            continue
        lines.append(f"# HELP {family.name} {_escaped(family.help)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for labels, value in samples:
            inside = ",".join(f'{name}="{_escaped(text, quotes=True)}"' for name, text in labels)
            lines.append(f"{family.name}{{{inside}}} {_number(value)}" if inside else f"{family.name} {_number(value)}")
    return "".join(f"{line}\n" for line in lines)


class RunMetrics:
    """Counts along with a run.

    Args:
        run: its id.
        config: the run config.
        sites: that had a part in it when it began.
        resumes: how often it went on after an interruption.
        lines: of the rounds before that.
        decisions: likewise, of `decisions.jsonl`.
        left_out: nodes that have no part in it; None where there was no census.
    """

    def __init__(
        self,
        run: str,
        config: RunConfig,
        sites: int,
        resumes: int = 0,
        lines: Iterable[Json] = (),
        decisions: Iterable[Json] = (),
        *,
        left_out: int | None = None,
    ) -> None:
        self._run, self._config = run, config
        self._totals: defaultdict[tuple[str, Labels], float] = defaultdict(float)
        self._now: dict[tuple[str, Labels], float | None] = {
            ("rounds_planned", ()): config.server.rounds,
            ("sites", ()): sites,
            ("sites_left_out", ()): left_out,
        }
        self._state = "running"
        self._totals["resumes_total", ()] = resumes
        zeros = ("rounds_closed_total", "rounds_without_average_total", "sites_joined_total")
        self._add(dict.fromkeys([*zeros, *(f"{name}_total" for name in SPENT)], 0))
        for line in lines:
            self.close_round(line)
        for line in decisions:
            self.decided(line)

    def close_round(self, line: Json) -> None:
        """A round's line of the ledger."""
        self._add({"rounds_closed_total": 1, "rounds_without_average_total": not line["aggregated"]})
        self._add({"rounds_duration_seconds_total": line["seconds"], "sites_joined_total": len(line.get("joined", ()))})
        self._now["round_duration_seconds", ()] = line["seconds"]
        self._now["sites", ()] = (self._now["sites", ()] or 0) + len(line.get("joined", ()))
        late = line.get("late", ())
        replies = {
            "asked": len(line["plan"]["sites"]),
            "accepted": len(line["clients"]),
            "late": len(late),
            "refused": len(line["rejected"]),
            "busy": len(line.get("busy", ())),
        }
        for kind, count in replies.items():
            self._now["round_replies", (("kind", kind),)] = count
            self._totals["replies_total", (("kind", kind),)] += count
        work = [*line["clients"], *late]
        for name in SPENT:
            self._add({f"{name}_total": sum(one.get(name, 0) for one in work)})
        for way in ("up", "down"):
            self._totals["sent_bytes_total", (("direction", way),)] += line[f"bytes_{way}"]
        for model, where in MODELS.items():
            found = line.get(where) or {}
            self._score("validation", model, found if model == "qnn" else found.get(model) or {})
        if (language := line.get("language")) is not None:
            self._score("validation", "language", language.get("validation") or {})
        for one in work:
            self._spent_epsilon(str(one["site"]), one.get("epsilon"))

    def decided(self, line: Json) -> None:
        """A line of `decisions.jsonl`."""
        self._totals["decisions_total", (("by", str(line["by"])),)] += 1
        if (fallback := line["fallback"]) is not None:
            self._totals["decision_fallbacks_total", (("reason", str(fallback["reason"])),)] += 1
        self._now["decision_duration_seconds", ()] = line["milliseconds"] / 1000

    def finish(self, summary: Json) -> None:
        """The summary of a run that has ended; of a failed one nothing but that is known."""
        self._state = str(summary["status"])
        if self._state == "failed":
            return
        for name in SPENT:  # with what the census, scoring and the last exchange took
            self._totals[f"{name}_total", ()] = summary[name]
        for way in ("up", "down"):
            self._totals["sent_bytes_total", (("direction", way),)] = summary[f"bytes_{way}"]
        for model in MODELS:
            scores = summary if model == "qnn" else (summary["baselines"].get(model) or {})
            for part in ("validation", "test"):
                self._score(part, model, {key: scores.get(f"{part}_{key}") for key in ("loss", "accuracy")})
        privacy = summary.get("privacy") or {}
        self._spent_epsilon("all", privacy.get("epsilon"))

    def write(self, folder: Path) -> None:
        """Write `metrics.prom` into a run folder, whole or not at all."""
        with writing(folder):
            write_whole(folder / FILE, render(self.families(time.time())).encode())

    def families(self, now: float) -> list[Family]:
        """All metrics, in the order of `HELP`.

        Args:
            now: seconds since 1970.
        """
        config = self._config
        about = {"mode": config.agent.mode, "backend": config.quantum.backend, "seed": str(config.server.seed)}
        info: Labels = (*about.items(), ("version", __version__))
        found: dict[tuple[str, Labels], float | None] = {("run_info", info): 1, ("updated_timestamp_seconds", ()): now}
        found |= {("run_status", (("status", name),)): name == self._state for name in STATES}
        found |= self._now | self._totals
        samples: dict[str, list[tuple[Labels, float | None]]] = {}
        for (name, labels), value in found.items():
            samples.setdefault(name, []).append(((("run", self._run), *labels), value))
        return [Family(f"llm_qfl_{name}", kind, text, samples.get(name, ())) for name, (kind, text) in HELP.items()]

    def _add(self, counts: Mapping[str, float]) -> None:
        for name, value in counts.items():
            self._totals[name, ()] += value

    def _score(self, part: str, model: str, scores: Json) -> None:
        """The newest that is known: a round that nobody scored does not take it away."""
        for key, unit in (("loss", "nats"), ("accuracy", "ratio")):
            if scores.get(key) is not None:
                self._now[f"{part}_{key}_{unit}", (("model", model),)] = float(scores[key])

    def _spent_epsilon(self, site: str, epsilon: float | None) -> None:
        if epsilon is not None:
            key = ("privacy_epsilon", (("site", site),))
            self._now[key] = max(self._now.get(key) or 0.0, float(epsilon))


def _escaped(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quotes else text


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))

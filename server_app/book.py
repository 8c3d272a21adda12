"""The run folder and the terminal as the run goes on; the summary at the end."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from agent.decider import Decider
from agent.decisions import Decision, conduct, decision_line
from agent.words import losses_in_words, sentence
from llm_qfl import __version__
from llm_qfl.federation.config import RunConfig, default_run_config
from llm_qfl.federation.seeding import SERVER
from llm_qfl.federation.types import GlobalState, RoundSummary, Scores
from llm_qfl.quantum.folder import save_model
from server_app.checkpoint import writing
from server_app.display import Display
from server_app.language import LanguageSession
from server_app.language_end import save as save_language
from server_app.language_json import about_json, card_lines, language_json
from server_app.ledger import Json, Ledger, read_lines, round_line, scores_json
from server_app.lines import left_out_notes
from server_app.metrics import RunMetrics
from server_app.privacy import privacy_json
from server_app.progress import Progress
from server_app.resume import begin_again, opened_document, past_adapter_rounds, past_spent, resumed_json
from server_app.session import Finished, Opened

LIBRARIES = ("flwr", "qiskit", "qiskit-machine-learning", "numpy", "scipy", "scikit-learn", "numba")


class FolderBook:
    """Writes one run's folder and shows the rounds.

    Args:
        ledger: the run folder.
        display: the terminal.
    """

    def __init__(self, ledger: Ledger, display: Display) -> None:
        self._ledger, self._display, self.run_id = ledger, display, ledger.run_id
        self._language: LanguageSession | None = None
        self._decider: Decider | None = None
        self._metrics: RunMetrics | None = None
        self._adapter_changed = False

    def note(self, text: str) -> None:
        """Show what takes long before and between rounds."""
        self._display.note(text)

    def begin(self, opened: Opened) -> None:
        """Write `config.json` and show the head of the run."""
        self._language, self._decider = opened.language, opened.decider
        if opened.resumed is None:
            about, number = config_json(self._ledger.run_id, opened), 0
            self._adapter_changed = opened.language is not None
        else:
            begin_again(opened.resumed)
            about = resumed_json(self._ledger.folder, opened.config, opened.resumed)
            number = opened.resumed.progress.server_round
        document = opened_document(opened.config, opened.setup, opened.fingerprint, opened.roll, opened.resumed)
        self._ledger.checkpoint.document("opened", document, number)
        self._ledger.write_json("config.json", about)
        self._metrics = _metrics(self.run_id, opened, len(about["sites"]))
        for note in left_out_notes(opened.roll.left_out):
            self._display.note(note)
        self._display.start(opened.config, about["sites"])

    def close_round(self, summary: RoundSummary, state: GlobalState) -> None:
        """The ledger's line, then the terminal's."""
        line = round_line(summary)
        if self._decider is not None:
            line |= rule_json(self._decider, summary)
        if summary.language is not None and summary.language.sites:
            self._adapter_changed = True  # else it was scored at most
        self._ledger.append_round(line)
        if self._metrics is not None:
            self._metrics.close_round(line)
        self._display.round(line)
        if self._decider is not None:
            self._display.remark(summary.server_round, losses_in_words(line))

    def decided(self, decision: Decision, reward: float | None, reward_round: int | None) -> None:
        """A line of `decisions.jsonl`."""
        line = decision_line(decision, reward, reward_round)
        self._ledger.append_line("decisions.jsonl", line)
        if self._metrics is not None:
            self._metrics.decided(line)
        if self._decider is not None:
            self._display.remark(decision.server_round, sentence(line, self._decider.setting.cost))

    def record(self, decision: Decision) -> None:
        """Whether the policy was too late is the clock's doing: it is written before anybody acts on it."""
        if self._decider is not None and self._decider.agent.mode == "policy":
            fallback = decision.fallback
            why = fallback.why if fallback is not None and fallback.reason == "timeout" else ""
            self._ledger.checkpoint.record(decision.server_round, why)

    def checkpoint(self, progress: Progress) -> None:
        """All that the next round depends on; with it the round's lines count."""
        number, writer = progress.server_round, self._ledger.checkpoint
        for name, document in progress.documents().items():
            writer.document(name, document, number)
        for name, arrays in progress.arrays().items():
            writer.arrays(name, arrays, number)
        if self._decider is not None:
            writer.document("decider", self._decider.memory.to_json(), number)
        if self._language is not None:
            writer.document("language", self._language.memory(), number)
            if self._adapter_changed:
                writer.arrays("adapter", self._language.memory_arrays(), number)
        self._adapter_changed = False
        writer.commit(number)
        if self._metrics is not None:
            self._metrics.write(self._ledger.folder)

    def finish(self, finished: Finished) -> Json:
        """Write the model folder and `summary.json`; returns the summary."""
        opened = finished.opened
        summary = summary_json(self._ledger.run_id, finished)
        with writing(self._ledger.folder):
            save_model(self._ledger.folder / "model", opened.model, finished.state.theta, opened.setup.to_dict())
            if opened.language is not None:
                card = card_lines(opened.config, self._ledger.run_id, summary)
                save_language(opened.language, self._ledger.folder, card)
        self._ledger.write_json("summary.json", summary)
        self._end(opened.config, summary)
        return summary

    def fail(self, config: RunConfig, reason: str) -> None:
        """The run cannot go on: write `summary.json` with what is known."""
        folder = self._ledger.folder
        rounds = len(read_lines(folder)) if (folder / "rounds.jsonl").exists() else 0
        summary = failure_json(self.run_id, config, reason, rounds)
        self._ledger.write_json("summary.json", summary)
        self._end(config, summary)

    def _end(self, config: RunConfig, summary: Json) -> None:
        metrics = self._metrics or RunMetrics(self.run_id, config, 0)
        metrics.finish(summary)
        metrics.write(self._ledger.folder)


def _metrics(run: str, opened: Opened, sites: int) -> RunMetrics:
    """Of a run that begins, or that goes on where it was."""
    before = opened.resumed
    if before is None:
        return RunMetrics(run, opened.config, sites)
    return RunMetrics(run, opened.config, sites, len(before.after), before.lines, before.decisions)


def config_json(run_id: str, opened: Opened) -> Json:
    """All that was fixed before the first round."""
    config, model = opened.config, opened.model
    return {
        "run_id": run_id,
        "config": config.flat(),
        "command": command_line(config, len(opened.roll.nodes), simulated=not _own_data(opened)),
        "classes": list(opened.setup.class_names),
        "features": {
            "encoding": opened.setup.encoding,
            "numbers": len(opened.setup.columns),
            "reduction": config.data.reduction,
        },
        "sites": [_site_json(opened, site) for site in sorted(opened.roll.answers)],
        "left_out": dict(opened.roll.left_out),
        "circuit": {
            "name": model.circuit.name,
            "qubits": model.circuit.circuit.num_qubits,
            "gates": model.circuit.gates,
            "parameters": model.num_parameters,
            "depth": model.circuit.circuit.depth(),
        },
        "gradient_cost": model.gradient_cost,
        "baselines": {name: {"parameters": b.num_parameters} for name, b in opened.baselines.items()},
        "fingerprint": dict(opened.fingerprint),
        "language": None if opened.language is None else about_json(opened.language),
        "versions": versions(),
        "test_source": config.data.test,
        "validation_source": config.data.validation,
    }


def command_line(config: RunConfig, sites: int, *, simulated: bool) -> str:
    """The command that repeats the run: what differs from the defaults is named."""
    defaults = default_run_config()
    changed = [f"{key}={_toml(value)}" for key, value in config.flat().items() if value != defaults[key]]
    override = f" -c {shlex.quote(' '.join(changed))}" if changed else ""
    if not simulated:
        return f"flwr run . <your-superlink> --stream{override}"
    settings = f"num-supernodes={sites} client-resources-num-cpus=1"
    return f"flwr run . --stream --federation-config {shlex.quote(settings)}{override}"


def summary_json(run_id: str, finished: Finished) -> Json:
    """The contract's `summary.json` of a run that went to its end."""
    opened, config = finished.opened, finished.opened.config
    test, validation = finished.test.get("qnn"), finished.validation.get("qnn")
    spent = [*past_spent(finished.past), *(report.spent for summary in finished.rounds for report in summary.work)]
    paid = [*spent, *(evaluation.spent for evaluation in finished.scoring), finished.server_spent]
    scores = scores_json(test) or {}
    return {
        "run_id": run_id,
        "mode": config.agent.mode,
        "status": "finished" if finished.stop is None else "stopped",
        "stop_reason": f"server.rounds={config.server.rounds} reached"
        if finished.stop is None
        else f"{finished.stop.rule}: {finished.stop.why}",
        "rounds": len(finished.past) + len(finished.rounds),
        "resumed_after": list(finished.resumed_after),
        "clients": len({*opened.roll.nodes, *finished.joined}),
        "joined": list(finished.joined),
        "seed": config.server.seed,
        "dataset": config.data.source if not _own_data(opened) else "the sites' own files",
        "num_classes": len(opened.setup.class_names),
        "test_accuracy": scores.get("accuracy"),
        "test_balanced_accuracy": scores.get("balanced_accuracy"),
        "test_loss": scores.get("loss"),
        "test_rows": scores.get("rows", 0),
        "validation_loss": None if validation is None else validation.loss,
        "validation_accuracy": None if validation is None else validation.accuracy,
        "test_source": config.data.test,
        "validation_source": config.data.validation,
        "baselines": _baselines_json(finished),
        "privacy": privacy_json(config, finished.rounds, finished.past),
        "evaluations": sum(one.evaluations for one in spent),
        "circuits": sum(one.circuits for one in spent),
        "validation_circuits": sum(one.validation_circuits for one in spent),
        "simulated_circuits": sum(one.simulated_circuits for one in spent),
        "shots": sum(one.shots for one in paid),
        "jobs": sum(one.jobs for one in paid),
        "qpu_seconds": float(sum(one.qpu_seconds for one in paid)),
        "qpu_seconds_estimated": float(sum(one.qpu_seconds_estimated for one in paid)),
        "queue_seconds": float(sum(one.queue_seconds for one in paid)),
        "scoring": _scoring_json(finished),
        "bytes_up": finished.bytes_up,
        "bytes_down": finished.bytes_down,
        "seconds": finished.seconds,
        "left_out": {**opened.roll.left_out, **finished.left_out},
        "policy": _policy_json(opened.decider, config),
        "language": None if opened.language is None else language_json(opened.language, _language_rounds(finished)),
        "versions": versions(),
        "fingerprint": dict(opened.fingerprint),
    }


def failure_json(run_id: str, config: RunConfig, reason: str, rounds: int) -> Json:
    """The summary of a run that did not reach its end: what is not known is null."""
    unknown = (
        "num_classes test_accuracy test_balanced_accuracy test_loss validation_loss evaluations circuits shots "
        "jobs qpu_seconds qpu_seconds_estimated queue_seconds bytes_up bytes_down seconds policy language clients"
    )
    return {
        "run_id": run_id,
        "mode": config.agent.mode,
        "status": "failed",
        "stop_reason": reason,
        "rounds": rounds,
        "seed": config.server.seed,
        "dataset": config.data.source,
        "test_source": config.data.test,
        "baselines": {},
        "versions": versions(),
        "fingerprint": {},
        **dict.fromkeys(unknown.split()),
    }


def versions() -> dict[str, str]:
    """Of this app (from its sources: a FAB is not an installed package) and of the libraries that compute."""
    return {"llm-qfl": __version__, **{name: version(name) for name in LIBRARIES}}


def rule_json(decider: Decider, summary: RoundSummary) -> Json:
    """L_i of the sites of a round (their F_i is `trained_loss`), nats, and what the ratio rule made of both."""
    losses = decider.teachers.sites
    return {
        "language_losses": {report.site: losses.get(report.site) for report in summary.reports},
        "regulated": {site: one.fired for site, one in sorted(decider.regulated.items())},
    }


def _policy_json(decider: Decider | None, config: RunConfig) -> Json | None:
    """Who decided, how often the rule had to, and how often the rule did something; None where all rounds are alike."""
    if decider is None:
        return None
    found = conduct(config.agent.mode, decider.decisions, config.agent.max_fallback, decider.past)
    fired = decider.fired
    return {
        **found.as_json(),
        "rule": config.agent.rule,
        "rule_fired": {"grew": fired.grew, "shrank": fired.shrank, "rounds": fired.rounds, "inert": fired.inert},
        "rules_fired": {rule: {"grew": one.grew, "shrank": one.shrank} for rule, one in decider.fired_by_rule.items()},
    }


def _language_rounds(finished: Finished) -> int:
    """Rounds in which the adapter was averaged."""
    return past_adapter_rounds(finished.past) + sum(
        1 for one in finished.rounds if one.language is not None and one.language.aggregated
    )


def _own_data(opened: Opened) -> bool:
    return any(census.own_data for census in opened.roll.answers.values())


def _site_json(opened: Opened, site: str) -> Json:
    census, names = opened.roll.answers[site], opened.setup.class_names
    counts: Mapping[str, int] = {name: int(n) for name, n in zip(census.class_names, census.class_counts, strict=True)}
    return {"site": site, "rows": dict(census.rows), "classes": [counts.get(name, 0) for name in names]}


def _scoring_json(finished: Finished) -> list[Json]:
    """What scoring cost, apart from the rounds' reports: the sites' last exchange, and the server's own rows."""
    done = [(one.site, one.backend, one.spent) for one in finished.scoring]
    done.append((SERVER, finished.opened.config.quantum.scoring.backend, finished.server_spent))
    keys = ("shots", "jobs", "qpu_seconds", "qpu_seconds_estimated", "queue_seconds")
    return [
        {"site": site, "backend": backend, **{key: getattr(spent, key) for key in keys}}
        for site, backend, spent in done
        if spent.shots or spent.jobs
    ]


def _baselines_json(finished: Finished) -> Json:
    """Each baseline's scores; null where the run had none (`privacy.unit`)."""
    there = finished.opened.baselines
    return {name: _baseline_json(finished, name) if name in there else None for name in ("logistic", "mlp")}


def _baseline_json(finished: Finished, name: str) -> Json:
    scores: Scores | None = finished.test.get(name)
    found: Mapping[str, Any] = scores_json(scores) or {}
    validation = finished.validation.get(name)
    return {
        "test_accuracy": found.get("accuracy"),
        "test_balanced_accuracy": found.get("balanced_accuracy"),
        "test_loss": found.get("loss"),
        "validation_loss": None if validation is None else validation.loss,
        "validation_accuracy": None if validation is None else validation.accuracy,
        "parameters": finished.opened.baselines[name].num_parameters,
    }


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else repr(value)

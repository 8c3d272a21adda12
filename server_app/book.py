"""The run folder and the terminal as the run goes on; the summary at the end."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from agent.decider import Decider
from agent.decisions import Decision, decision_line
from agent.words import losses_in_words, sentence
from llm_qfl.federation.config import RunConfig, default_run_config
from llm_qfl.federation.types import GlobalState, RoundSummary
from llm_qfl.quantum.folder import save_model
from server_app.checkpoint import writing
from server_app.display import Display
from server_app.language import LanguageSession
from server_app.language_end import save as save_language
from server_app.language_json import about_json, card_lines
from server_app.ledger import Json, Ledger, read_lines, round_line
from server_app.lines import left_out_notes
from server_app.metrics import RunMetrics
from server_app.progress import Progress
from server_app.resume import begin_again, opened_document, resumed_json
from server_app.session import Finished, Opened
from server_app.summary import failure_json, own_data, summary_json, versions


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
    before, left_out = opened.resumed, len(opened.roll.left_out)
    if before is None:
        return RunMetrics(run, opened.config, sites, left_out=left_out)
    return RunMetrics(run, opened.config, sites, len(before.after), before.lines, before.decisions, left_out=left_out)


def config_json(run_id: str, opened: Opened) -> Json:
    """All that was fixed before the first round."""
    config, model = opened.config, opened.model
    return {
        "run_id": run_id,
        "config": config.flat(),
        "command": command_line(config, len(opened.roll.nodes), simulated=not own_data(opened)),
        "classes": list(opened.setup.class_names),
        "features": {
            "encoding": opened.setup.encoding,
            "numbers": len(opened.setup.columns),
            "reduction": config.data.reduction,
            "shrinkage": opened.setup.feature_map.shrinkage,
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


def rule_json(decider: Decider, summary: RoundSummary) -> Json:
    """L_i of the sites of a round (their F_i is `trained_loss`), nats, and what the ratio rule made of both."""
    losses = decider.teachers.sites
    return {
        "language_losses": {report.site: losses.get(report.site) for report in summary.reports},
        "regulated": {site: one.fired for site, one in sorted(decider.regulated.items())},
    }


def _site_json(opened: Opened, site: str) -> Json:
    census, names = opened.roll.answers[site], opened.setup.class_names
    counts: Mapping[str, int] = {name: int(n) for name, n in zip(census.class_names, census.class_counts, strict=True)}
    return {"site": site, "rows": dict(census.rows), "classes": [counts.get(name, 0) for name in names]}


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else repr(value)

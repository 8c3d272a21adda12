"""`summary.json`: what a run came to, or how far it got."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from agent.decider import Decider
from agent.decisions import conduct
from llm_qfl import __version__
from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.seeding import SERVER
from llm_qfl.federation.types import Scores
from server_app.language_json import language_json
from server_app.ledger import Json, scores_json
from server_app.privacy import privacy_json
from server_app.resume import past_adapter_rounds, past_spent
from server_app.session import Finished, Opened

LIBRARIES = ("flwr", "qiskit", "qiskit-machine-learning", "numpy", "scipy", "scikit-learn", "numba")


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
        "dataset": config.data.source if not own_data(opened) else "the sites' own files",
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


def own_data(opened: Opened) -> bool:
    """Does a site bring rows of its own?"""
    return any(census.own_data for census in opened.roll.answers.values())


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

"""The language model in the run folder: `config.json`, lines of `rounds.jsonl`, `summary.json`, the model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.types import LanguageAnswer, LanguageRound, Scores
from server_app.language import LanguageSession
from server_app.language_end import CALIBRATED
from server_app.language_scores import RouteScores

Json = dict[str, Any]

ACCURACIES = {
    "zero_shot_accuracy": (("zero-shot", "calibrated"), ("zero-shot", "plain")),
    "compressed_zero_shot_accuracy": (("compressed-zero-shot", "calibrated"), ("compressed-zero-shot", "plain")),
    "adap_emu_accuracy": (("adap-emu", "plain"),),
    "adap_fu_accuracy": ((CALIBRATED, "plain"), ("adap-fu", "plain")),
}
"""Key of the summary -> routes, and with or without the class prior divided out; the first that there is. A model that
was not tuned leans to some words whatever the text, and a gain over that would be calibration alone; sites, which have
no public text, know no prior."""


def language_scores_json(scores: Scores | None, models: int = 1) -> Json | None:
    """Loss (nats), accuracy, macro-recall and rows; where texts are written the loss per token and the tokens.

    Args:
        scores: the sums.
        models: adapters that they are pooled over, each on all rows.
    """
    if scores is None or scores.count == 0:
        return None
    count = scores.count // models
    if len(scores.rows) == 1:  # tokens, as rows of one class
        return {"loss": scores.loss, "accuracy": None, "balanced_accuracy": None, "tokens": count}
    return {
        "loss": scores.loss,
        "accuracy": scores.accuracy,
        "balanced_accuracy": scores.balanced_accuracy,
        "rows": count,
    }


def about_json(session: LanguageSession) -> Json:
    """What was fixed before the first round."""
    server, language = session.server, session.config.language
    plan, view = server.plan, session.view
    return {
        "model": language.model,
        "base_digest": server.base.digest,
        "method": language.method,
        "preset": language.preset,
        "task": language.task,
        "layers": plan.n,
        "held_layers": list(plan.held),
        "tuned_layers": list(plan.adapter),
        "sha256": session.exported.sha256,
        "model_bytes": session.exported.size,
        "parameters": session.exported.parameters,
        "adapter_parameters": sum(value.size for value in server.adapter_arrays().values()),
        "rounds": list(session.rounds),
        "sites": list(session.sites),
        "trainers": list(session.trainers),
        "left_out": dict(session.left_out),
        "words": [] if view is None else list(view.plan.words),
        "style": None if view is None else view.plan.style,
        "columns": [] if view is None else list(view.plan.names),
        "template": None if view is None else view.plan.template,
        "settings": server.config.model_dump(mode="json", by_alias=True),
        "public": {"source": language.public, "rows": session.public_count, "sha256": session.public_digest},
        "align_losses": list(session.align_losses),
        "libraries": dict(session.libraries),
    }


def round_json(found: LanguageRound | None) -> Json | None:
    """A round's part of its line in the ledger."""
    if found is None:
        return None
    return {
        "sites": list(found.sites),
        "answers": [_answer_json(site, answer) for site, answer in sorted(found.answers.items())],
        "rejected": dict(found.rejected),
        "dropped": list(found.dropped),
        "taught": [
            {"site": site, **(language_scores_json(scores) or {"loss": None})}
            for site, scores in sorted(found.taught.items())
        ],
        "aggregated": found.aggregated,
        "updates": {site: asdict(stats) for site, stats in found.updates.items()},
        "validation": language_scores_json(found.validation),
        "full_validation": language_scores_json(found.full_validation),
        "adapter_digest": found.adapter_digest[:16],
        "emulator_digest": found.emulator_digest[:16],
        "align_seconds": found.align_seconds,
        "align_loss": found.align_loss,
        "bytes_up": found.bytes_up,
        "bytes_down": found.bytes_down,
    }


def _answer_json(site: str, answer: LanguageAnswer) -> Json:
    received, trained = (language_scores_json(s) or {} for s in (answer.received, answer.trained))
    return {
        "site": site,
        "num_examples": answer.num_examples,
        "steps": answer.steps,
        "received_loss": received.get("loss"),
        "received_accuracy": received.get("accuracy"),
        "trained_loss": trained.get("loss"),
        "trained_accuracy": trained.get("accuracy"),
        "train_loss_first": answer.train_loss_first,
        "train_loss_last": answer.train_loss_last,
        "computed": answer.computed,
        "fill_seconds": answer.fill_seconds,
        "step_seconds": answer.step_seconds,
        "seconds": answer.seconds,
        "peak_bytes": answer.peak_bytes,
        "peak_exact": answer.peak_exact,
        "frozen_dtype": answer.frozen_dtype,
        "bytes_up": answer.bytes_up,
    }


def language_json(session: LanguageSession, rounds: int) -> Json:
    """The summary's object `language`.

    Args:
        session: at the end of the run.
        rounds: rounds in which the adapter was averaged.
    """
    final = {kind: route_json(found) for kind, found in session.found["test"].items()}
    return {
        "model": session.config.language.model,
        "method": session.config.language.method,
        "rounds": rounds,
        "sites": len(session.trainers),
        "left_out": dict(session.left_out),
        **{key: _first_accuracy(final, places) for key, places in ACCURACIES.items()},
        "test": final,
        "validation": {k: route_json(found) for k, found in session.found["validation"].items()},
        "tuned": session.exchange.tuned,
        "client_peak_bytes": session.exchange.client_peak,
        "bytes_up": session.exchange.bytes_up,
        "bytes_down": session.exchange.bytes_down,
        "model_bytes": session.exported.size,
        "seconds": {key: round(value, 3) for key, value in vars(session.timing).items()},
    }


def _first_accuracy(final: Mapping[str, Json], places: Sequence[tuple[str, str]]) -> float | None:
    for kind, how in places:
        if scores := (final.get(kind) or {}).get(how):
            return cast(float | None, scores.get("accuracy"))
    return None


def route_json(found: RouteScores) -> Json:
    """Scores of a route, without and with the class prior divided out."""
    return {
        "plain": language_scores_json(found.plain, found.models),
        "calibrated": language_scores_json(found.calibrated, found.models),
    }


def card_lines(config: RunConfig, run: str, summary: Mapping[str, Any]) -> dict[str, str]:
    """What the model card says of the run."""
    language: Json = summary.get("language") or {}
    test: Json = language.get("test") or {}
    lines = {
        "run": run,
        "data": str(summary.get("dataset")),
        "method": f"{config.language.method}, preset {config.language.preset}, beta {config.language.beta:g}",
        "sites": str(language.get("sites")),
        "rounds": f"{language.get('rounds')} of {config.language.steps} steps",
    }
    for kind, found in test.items():
        plain = found.get("plain") or {}
        score = "no rows" if plain.get("loss") is None else f"{plain['loss']:.3f} nats"
        if plain.get("accuracy") is not None:
            score = f"accuracy {plain['accuracy']:.3f}, macro-recall {plain['balanced_accuracy']:.3f}, {score}"
        lines[f"test, {kind}"] = score
    return lines

"""What a site answers: the report of a train round, the scores of the final model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from llm_qfl.federation.errors import RecordError
from llm_qfl.federation.records.fields import (
    BASELINE,
    PARTS,
    SCHEMA,
    WEIGHTS,
    array_record,
    check_arrays,
    content_bytes,
    kebab,
    read_arrays,
    read_backend,
    read_float,
    read_int,
    read_meta,
    read_metrics,
    read_optional,
    read_scores,
    read_spent,
    read_string,
    read_strings_list,
    scores_metrics,
    state_arrays,
)
from llm_qfl.federation.records.language import (
    put_answer,
    put_scores,
    put_teacher,
    read_answer,
    read_language_scores,
    read_teacher,
)
from llm_qfl.federation.types import NOTHING, ClientReport, GlobalState, Scores, Spent


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A site's answer to an evaluate task: sums for the QNN and each baseline, by part (validation, test)."""

    site: str
    qnn: Mapping[str, Scores]
    baselines: Mapping[str, Mapping[str, Scores]]
    spent: Spent = NOTHING
    backend: str = "exact"
    language: Mapping[str, Mapping[str, Scores]] = field(default_factory=dict)
    """Of the language model, by route (`records.language.ROUTES`) and part; empty where it has none."""
    language_problem: str = ""
    """Why there are no such scores although they were asked for."""


def encode_report(report: ClientReport, parameter_names: tuple[str, ...], fingerprint: Mapping[str, str]) -> RecordDict:
    """Content of the reply to a train task."""
    metrics: dict[str, int | float | list[int]] = {
        "num-examples": report.num_examples,
        "seconds": report.seconds,
        "distill-weight": report.distill_weight,
    }
    metrics |= {key: value for key, value in _told(report).items() if value is not None}
    metrics |= _spent_metrics(report.spent)
    metrics |= scores_metrics("received", report.received) | scores_metrics("trained", report.trained)
    for name, scores in report.baseline_received.items():
        metrics |= scores_metrics(f"{BASELINE}{name}/received", scores)
    state = GlobalState(report.server_round, report.theta, parameter_names, report.baselines)
    content = RecordDict(
        {
            "arrays": array_record(state_arrays(state)),
            "metrics": MetricRecord(dict(metrics)),
            "meta": ConfigRecord(
                {
                    "schema": SCHEMA,
                    "site": report.site,
                    "round": report.server_round,
                    "backend": report.backend,
                    "parameter-names": list(parameter_names),
                }
            ),
            "fingerprint": ConfigRecord(dict(fingerprint)),
        }
    )
    if report.teacher is not None:
        put_teacher(content, report.teacher)
    elif report.language is not None or report.language_problem:
        put_answer(content, report.language, report.language_problem)
    return content


def decode_report(content: RecordDict, *, site: str, sent: GlobalState, classes: int) -> ClientReport:
    """Read one site's reply to the task of `sent`.

    Args:
        content: what came.
        site: the site that was asked.
        sent: the state it was given; names and shapes must be the same.
        classes: number of classes, the length of each count by class.

    Raises:
        RecordError: why the reply cannot count.
    """
    meta = read_meta(content)
    if (got := read_string(meta, "site")) != site:
        raise RecordError(f"site: asked {site!r}, the reply is from {got!r}")
    if (got_round := read_int(meta, "round")) != sent.server_round:
        raise RecordError(f"round: expected {sent.server_round}, got {got_round}")
    if read_strings_list(meta, "parameter-names") != sent.parameter_names:
        raise RecordError("parameter names: the reply's differ from those sent")
    arrays = read_arrays(content)
    check_arrays(arrays, state_arrays(sent))
    metrics = read_metrics(content, "metrics")
    baselines = {
        name: {key: arrays[f"{BASELINE}{name}/{key}"] for key in values} for name, values in sent.baselines.items()
    }
    spent = read_spent(metrics)
    language, problem = read_answer(content)
    teacher, damage = read_teacher(content)
    return ClientReport(
        site=site,
        server_round=sent.server_round,
        theta=arrays[WEIGHTS],
        num_examples=read_int(metrics, "num-examples", least=1),
        received=read_scores(metrics, "received", classes),
        trained=read_scores(metrics, "trained", classes),
        train_loss_first=read_optional(metrics, "train-loss-first"),
        train_loss_best=read_optional(metrics, "train-loss-best"),
        epsilon=read_optional(metrics, "epsilon"),
        spent=spent,
        seconds=read_float(metrics, "seconds"),
        baselines=baselines,
        baseline_received={n: read_scores(metrics, f"{BASELINE}{n}/received", classes) for n in sent.baselines},
        backend=read_backend(meta, "backend"),
        bytes_up=content_bytes(content),
        distill_weight=read_float(metrics, "distill-weight"),
        language=language,
        language_problem=problem or damage,
        teacher=teacher,
    )


def encode_evaluation(evaluation: Evaluation) -> RecordDict:
    """Content of the reply to an evaluate task."""
    metrics: dict[str, int | float | list[int]] = dict(_spent_metrics(evaluation.spent))
    for part, scores in evaluation.qnn.items():
        metrics |= scores_metrics(f"qnn/{part}", scores)
    for name, parts in evaluation.baselines.items():
        for part, scores in parts.items():
            metrics |= scores_metrics(f"{BASELINE}{name}/{part}", scores)
    meta = ConfigRecord({"schema": SCHEMA, "site": evaluation.site, "backend": evaluation.backend})
    content = RecordDict({"meta": meta, "metrics": MetricRecord(dict(metrics))})
    if evaluation.language or evaluation.language_problem:
        put_scores(content, evaluation.language, evaluation.language_problem)
    return content


def decode_evaluation(
    content: RecordDict, *, site: str, baselines: tuple[str, ...], classes: int, language_classes: int = 0
) -> Evaluation:
    """Read one site's scores.

    Args:
        content: what came.
        site: the site that was asked.
        baselines: names of the baselines.
        classes: number of classes.
        language_classes: length of the language model's counts: of the classes, or 1 where it counts tokens.

    Raises:
        RecordError: why the reply cannot count.
    """
    meta = read_meta(content)
    if (got := read_string(meta, "site")) != site:
        raise RecordError(f"site: asked {site!r}, the reply is from {got!r}")
    metrics = read_metrics(content, "metrics")

    def parts(prefix: str) -> dict[str, Scores]:
        return {part: read_scores(metrics, f"{prefix}/{part}", classes) for part in PARTS[1:]}

    named = {name: parts(f"{BASELINE}{name}") for name in baselines}
    language, problem = read_language_scores(content, language_classes)
    spent, backend = read_spent(metrics), read_backend(meta, "backend")
    return Evaluation(site, parts("qnn"), named, spent, backend, language, problem)


def _told(report: ClientReport) -> dict[str, float | None]:
    """Numbers that a site may keep to itself."""
    return {
        "train-loss-first": report.train_loss_first,
        "train-loss-best": report.train_loss_best,
        "epsilon": report.epsilon,
    }


def _spent_metrics(spent: Spent) -> dict[str, int | float]:
    return {kebab(name): getattr(spent, name) for name in spent.__dataclass_fields__}

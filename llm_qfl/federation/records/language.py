"""The language model's part of messages: reference and emulator in the query, adapter and emulator in tasks, answers.

It travels beside the QNN's part under names of its own, so that a part that cannot count leaves the other untouched.
Arrays are checked by name, shape and dtype where the model is known (`llm_qfl.language.wire`); here they are read
without pickle, refused unless they are finite numbers of the wire's kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from llm_qfl.federation.errors import RecordError
from llm_qfl.federation.records.fields import (
    read_checked,
    read_config,
    read_float,
    read_int,
    read_metrics,
    read_optional,
    read_scores,
    read_string,
    read_strings,
    scores_metrics,
)
from llm_qfl.federation.types import LanguageAnswer, Scores

ARRAYS, META, METRICS, LIBRARIES = "language", "language-meta", "language-metrics", "language-libraries"
TEACHER = "teacher"
ROUTES = ("compressed-zero-shot", "adap-emu")
"""What sites can score: the compressed model without and with the adapter."""
_KINDS = (np.float32, np.float16, np.int8)

WireArrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class ModelOffer:
    """Part of the query: the compressed model that a site may take part with.

    Attributes:
        run: the run's id; what a site keeps of the model belongs to it.
        source: path or address of the compressed model's folder.
        sha256: its name.
        libraries: versions of what computes, without local suffixes.
        arrays: the adapter and the emulator as first distributed, where rows become numbers by it; else empty.
        emulator_digest: of that emulator.
    """

    run: str
    source: str
    sha256: str
    libraries: Mapping[str, str]
    arrays: WireArrays = field(default_factory=dict)
    emulator_digest: str = ""


@dataclass(frozen=True, eq=False)
class LanguageTask:
    """Part of a train or evaluate task.

    Attributes:
        source, sha256: the compressed model.
        libraries: versions of what computes.
        arrays: `adapter/...`, and `emulator/...` where the site does not hold it.
        adapter_digest: of the adapter as a site decodes it.
        emulator_digest: of the emulator that the round is for.
        first_digest: of the emulator as it was first distributed.
        train: are there steps to do? Else the task is about features or scores alone.
        score: are scores asked for?
        teach: shall the site score the adapter as it is on its validation rows, and keep its soft labels?
        offset: language steps of the run before this round.
        total: language steps of the whole run.
        kept: round of the site's last answer that entered an average, 0 where none did: the site goes on from what it
            kept then. It may be a round ahead of a server that was interrupted.
    """

    source: str
    sha256: str
    libraries: Mapping[str, str]
    arrays: WireArrays
    adapter_digest: str
    emulator_digest: str
    first_digest: str
    train: bool
    score: bool
    offset: int = 0
    total: int = 0
    teach: bool = False
    kept: int = 0


def put_offer(content: RecordDict, offer: ModelOffer) -> None:
    """Add the offer to a query."""
    content[META] = ConfigRecord(
        {
            "run": offer.run,
            "source": offer.source,
            "sha256": offer.sha256,
            "emulator-digest": offer.emulator_digest,
        }
    )
    content[LIBRARIES] = ConfigRecord(dict(offer.libraries))
    content[ARRAYS] = language_arrays(offer.arrays)


def read_offer(content: RecordDict) -> ModelOffer | None:
    """The offer in a query, if there is one.

    Raises:
        RecordError: anything missing, of another type or not finite.
    """
    if META not in content:
        return None
    meta = read_config(content, META)
    return ModelOffer(
        run=read_string(meta, "run"),
        source=read_string(meta, "source"),
        sha256=read_string(meta, "sha256"),
        libraries=read_strings(content, LIBRARIES),
        arrays=read_language_arrays(content),
        emulator_digest=read_string(meta, "emulator-digest"),
    )


def put_task(content: RecordDict, task: LanguageTask) -> None:
    """Add the language part to a task."""
    meta: dict[str, str | int | bool] = {
        "source": task.source,
        "sha256": task.sha256,
        "adapter-digest": task.adapter_digest,
        "emulator-digest": task.emulator_digest,
        "first-digest": task.first_digest,
        "train": task.train,
        "score": task.score,
        "teach": task.teach,
        "offset": task.offset,
        "total": task.total,
        "kept": task.kept,
    }
    content[META] = ConfigRecord(dict(meta))
    content[LIBRARIES] = ConfigRecord(dict(task.libraries))
    content[ARRAYS] = language_arrays(task.arrays)


def read_task(content: RecordDict) -> LanguageTask | None:
    """The language part of a task, if there is one.

    Raises:
        RecordError: anything missing, of another type or not finite.
    """
    if META not in content:
        return None
    meta = read_config(content, META)
    flags = {key: meta.get(key) for key in ("train", "score", "teach")}
    for key, flag in flags.items():
        if not isinstance(flag, bool):
            raise RecordError(f"{key}: expected true or false, got {flag!r}")
    return LanguageTask(
        source=read_string(meta, "source"),
        sha256=read_string(meta, "sha256"),
        libraries=read_strings(content, LIBRARIES),
        arrays=read_language_arrays(content),
        adapter_digest=read_string(meta, "adapter-digest"),
        emulator_digest=read_string(meta, "emulator-digest"),
        first_digest=read_string(meta, "first-digest"),
        train=bool(flags["train"]),
        score=bool(flags["score"]),
        offset=read_int(meta, "offset"),
        total=read_int(meta, "total"),
        teach=bool(flags["teach"]),
        kept=read_int(meta, "kept"),
    )


def put_teacher(content: RecordDict, scores: Scores) -> None:
    """Add the scores of an adapter that was not tuned to a site's reply."""
    content[METRICS] = MetricRecord(dict(scores_metrics(TEACHER, scores)))
    content[META] = ConfigRecord({"problem": "", "kind": TEACHER})


def read_teacher(content: RecordDict) -> tuple[Scores | None, str]:
    """What `put_teacher` wrote and an empty string, or None and what is wrong with it (empty: there is none)."""
    meta = content.get(META)
    if not isinstance(meta, ConfigRecord) or meta.get("kind") != TEACHER:
        return None, ""
    try:
        metrics = read_metrics(content, METRICS)
        classes = len(metrics.get(f"{TEACHER}-rows") or [])  # type: ignore[arg-type]
        return read_scores(metrics, TEACHER, classes), ""
    except (RecordError, TypeError) as error:
        return None, f"{type(error).__name__}: {error}"


def put_answer(content: RecordDict, answer: LanguageAnswer | None, problem: str) -> None:
    """Add a site's language part, or why there is none, to its reply."""
    if answer is None:
        content[META] = ConfigRecord({"problem": problem})
        return
    losses = {"train-loss-first": answer.train_loss_first, "train-loss-last": answer.train_loss_last}
    metrics: dict[str, int | float | list[int]] = {
        **{name: loss for name, loss in losses.items() if loss is not None},
        "num-examples": answer.num_examples,
        "steps": answer.steps,
        "computed": answer.computed,
        "fill-seconds": answer.fill_seconds,
        "step-seconds": answer.step_seconds,
        "seconds": answer.seconds,
        "peak-bytes": answer.peak_bytes,
        "peak-exact": int(answer.peak_exact),
    }
    metrics |= scores_metrics("received", answer.received) | scores_metrics("trained", answer.trained)
    content[ARRAYS] = language_arrays(answer.arrays)
    content[METRICS] = MetricRecord(dict(metrics))
    content[META] = ConfigRecord(
        {"problem": "", "adapter-digest": answer.adapter_digest, "frozen-dtype": answer.frozen_dtype}
    )


def read_answer(content: RecordDict) -> tuple[LanguageAnswer | None, str]:
    """A site's language part and an empty string, or None and why there is none (empty: none was sent).

    What cannot be read is a problem of this part alone.
    """
    if META not in content:
        return None, ""
    try:
        meta = read_config(content, META)
        problem = read_string(meta, "problem")
        if problem or meta.get("kind") == TEACHER:
            return None, problem[:500]
        metrics = read_metrics(content, METRICS)
        classes = len(metrics.get("received-rows") or [])  # type: ignore[arg-type]
        answer = LanguageAnswer(
            arrays=read_language_arrays(content),
            adapter_digest=read_string(meta, "adapter-digest"),
            num_examples=read_int(metrics, "num-examples", least=1),
            steps=read_int(metrics, "steps"),
            received=read_scores(metrics, "received", classes),
            trained=read_scores(metrics, "trained", classes),
            train_loss_first=read_optional(metrics, "train-loss-first"),
            train_loss_last=read_optional(metrics, "train-loss-last"),
            computed=read_int(metrics, "computed"),
            fill_seconds=read_float(metrics, "fill-seconds"),
            step_seconds=read_float(metrics, "step-seconds"),
            seconds=read_float(metrics, "seconds"),
            peak_bytes=read_int(metrics, "peak-bytes"),
            peak_exact=bool(read_int(metrics, "peak-exact")),
            frozen_dtype=read_string(meta, "frozen-dtype"),
            bytes_up=language_bytes(content),
        )
    except (RecordError, TypeError) as error:
        return None, f"{type(error).__name__}: {error}"
    return answer, ""


def put_scores(content: RecordDict, scores: Mapping[str, Mapping[str, Scores]], problem: str) -> None:
    """Add sums by route and part (validation, test) to the answer of an evaluate task."""
    metrics: dict[str, int | float | list[int]] = {}
    for route, parts in scores.items():
        for part, found in parts.items():
            metrics |= scores_metrics(f"{route}/{part}", found)
    content[META] = ConfigRecord({"problem": problem})
    content[METRICS] = MetricRecord(dict(metrics))


def read_language_scores(content: RecordDict, classes: int) -> tuple[dict[str, dict[str, Scores]], str]:
    """Sums by route and part, and why there are none (empty: all is well, or none was asked for)."""
    if META not in content:
        return {}, ""
    try:
        problem = read_string(read_config(content, META), "problem")
        if problem:
            return {}, problem[:500]
        metrics = read_metrics(content, METRICS)
        return {
            route: {part: read_scores(metrics, f"{route}/{part}", classes) for part in ("validation", "test")}
            for route in ROUTES
        }, ""
    except RecordError as error:
        return {}, f"{type(error).__name__}: {error}"


def language_arrays(arrays: WireArrays) -> ArrayRecord:
    """A fresh ArrayRecord in the wire's own numbers."""
    return ArrayRecord({key: FlowerArray(np.ascontiguousarray(value)) for key, value in arrays.items()})


def read_language_arrays(content: RecordDict) -> dict[str, NDArray[Any]]:
    """The language model's arrays, each of one of the wire's kinds and finite.

    Raises:
        RecordError: where one is not.
    """
    record = content.get(ARRAYS)
    if not isinstance(record, ArrayRecord):
        raise RecordError(f"{ARRAYS}: expected an ArrayRecord, got {type(record).__name__}")
    said = "float32, float16 or int8"
    return {key: read_checked(ARRAYS, key, value, _KINDS, said) for key, value in record.items()}


def language_bytes(content: RecordDict) -> int:
    """Bytes of the language part of a message at the border."""
    total = 0
    for name in (ARRAYS, META, METRICS, LIBRARIES):
        record = content.get(name)
        if isinstance(record, ArrayRecord):
            total += sum(len(array.data) for array in record.values())
        elif record is not None:
            total += len(record.deflate())
    return total

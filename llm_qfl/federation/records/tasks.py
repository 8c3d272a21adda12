"""Train and evaluate tasks: what the server sends to one site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from llm_qfl.federation.errors import RecordError
from llm_qfl.federation.records.fields import (
    BASELINE,
    SCHEMA,
    WEIGHTS,
    array_record,
    check_arrays,
    read_array,
    read_arrays,
    read_config,
    read_float,
    read_int,
    read_meta,
    read_string,
    read_strings,
    read_strings_list,
    state_arrays,
)
from llm_qfl.federation.records.language import LanguageTask, put_task, read_task
from llm_qfl.federation.types import Array, Arrays, GlobalState, RoundPlan


@dataclass(frozen=True, eq=False)
class Task:
    """What the server sends to one site, for a train round or (plan None) for the scores of the final model."""

    site: str
    state: GlobalState
    plan: RoundPlan | None
    setup: str | None
    """The JSON that fixes classes, circuit and feature map; None when the site has it already."""
    setup_digest: str
    fingerprint: Mapping[str, str]
    run: str = "local"
    """The run's id, the same when it is resumed: jobs of a site belong to it."""
    language: LanguageTask | None = None
    """What the site needs of the language model for this task."""


def encode_task(task: Task) -> RecordDict:
    """Content of a train task, or of an evaluate task where the plan is None."""
    meta: dict[str, int | str | list[str]] = {
        "schema": SCHEMA,
        "site": task.site,
        "round": task.state.server_round,
        "run": task.run,
        "parameter-names": list(task.state.parameter_names),
        "setup-digest": task.setup_digest,
    }
    if task.setup is not None:
        meta["setup"] = task.setup
    content = RecordDict(
        {
            "arrays": array_record(state_arrays(task.state)),
            "meta": ConfigRecord(dict(meta)),
            "fingerprint": ConfigRecord(dict(task.fingerprint)),
        }
    )
    if task.plan is not None:
        plan = task.plan
        content["plan"] = ConfigRecord(
            {
                "budget": plan.budget_of(task.site),
                "learning-rate": plan.learning_rate,
                "shots": plan.shots,
                "distill-weight": plan.distill_weight,
            }
        )
    if task.language is not None:
        put_task(content, task.language)
    return content


def decode_task(content: RecordDict) -> Task:
    """Read a train or evaluate task; array shapes are checked by who knows the model (`check_state`).

    Raises:
        RecordError: anything missing, of another type or not finite.
    """
    meta = read_meta(content)
    site = read_string(meta, "site")
    names, server_round = read_strings_list(meta, "parameter-names"), read_int(meta, "round")
    state = _state(read_arrays(content), server_round, names)
    plan = None
    if "plan" in content:
        record = read_config(content, "plan")
        budget, shots = read_int(record, "budget"), read_int(record, "shots")
        rate, weight = read_float(record, "learning-rate"), read_float(record, "distill-weight")
        if not 0 <= weight <= 1:
            raise RecordError(f"plan: expected a distill-weight in [0, 1], got {weight}")
        plan = RoundPlan(server_round, (site,), budget, rate, shots, distill_weight=weight)
    setup = read_string(meta, "setup") if "setup" in meta else None
    digest, mark = read_string(meta, "setup-digest"), read_strings(content, "fingerprint")
    return Task(site, state, plan, setup, digest, mark, read_string(meta, "run"), read_task(content))


def state_record(state: GlobalState) -> ArrayRecord:
    """A state as the ArrayRecord that Flower's strategies pass on."""
    return array_record(state_arrays(state))


def arrays_state(record: ArrayRecord, server_round: int, parameter_names: tuple[str, ...]) -> GlobalState:
    """The inverse of `state_record`.

    Raises:
        RecordError: unknown names, or arrays that are not float64 and finite.
    """
    return _state({key: read_array(key, value) for key, value in record.items()}, server_round, parameter_names)


def _state(arrays: Arrays, server_round: int, parameter_names: tuple[str, ...]) -> GlobalState:
    if WEIGHTS not in arrays:
        raise RecordError(f"arrays: expected {WEIGHTS!r} among the names, got {sorted(arrays)}")
    baselines: dict[str, dict[str, Array]] = {}
    for key, value in arrays.items():
        if key == WEIGHTS:
            continue
        name, _, array = key.removeprefix(BASELINE).partition("/")
        if not key.startswith(BASELINE) or not name or not array:
            raise RecordError(f"arrays: unknown name {key!r}")
        baselines.setdefault(name, {})[array] = value
    return GlobalState(server_round, arrays[WEIGHTS], parameter_names, baselines)


def check_state(state: GlobalState, parameter_names: tuple[str, ...], baselines: Mapping[str, Arrays]) -> None:
    """Does a received state fit the model, by name and shape?

    Args:
        state: what came.
        parameter_names: names of theta's entries in the receiver's model.
        baselines: arrays of the right shapes by name.

    Raises:
        RecordError: with the first name that differs.
    """
    if state.parameter_names != parameter_names:
        pairs = zip(state.parameter_names, parameter_names, strict=False)
        odd = next((pair for pair in pairs if pair[0] != pair[1]), None)
        counts = f"expected {len(parameter_names)}, got {len(state.parameter_names)}"
        raise RecordError(f"parameter names: {counts}, first difference {odd}")
    expected = state_arrays(GlobalState(0, np.zeros(len(parameter_names)), parameter_names, baselines))
    check_arrays(state_arrays(state), expected)

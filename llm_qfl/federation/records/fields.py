"""Strict reading and writing of single fields: arrays by name, shape, dtype and finiteness; numbers; strings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.constant import SType
from numpy.typing import NDArray

from llm_qfl.federation.backend_names import backend_problem
from llm_qfl.federation.errors import RecordError
from llm_qfl.federation.types import Array, Arrays, GlobalState, Labels, Scores, Spent

SCHEMA = 4

WEIGHTS = "qnn/weights"
BASELINE = "baseline/"
PARTS = ("train", "validation", "test")
MOST = 2**53  # of anything that is counted: sums of such numbers, as of many sites, stay whole


def content_bytes(content: RecordDict) -> int:
    """Bytes of a message's content at the border: arrays (without the baselines'), metrics and strings."""
    total = 0
    for record in content.values():
        if isinstance(record, ArrayRecord):
            total += sum(len(array.data) for key, array in record.items() if not key.startswith(BASELINE))
        elif isinstance(record, MetricRecord):
            total += len(MetricRecord({k: v for k, v in record.items() if not k.startswith(BASELINE)}).deflate())
        else:
            total += len(record.deflate())
    return total


def state_arrays(state: GlobalState) -> dict[str, Array]:
    """A state's arrays under the names of the wire."""
    arrays = {WEIGHTS: state.theta}
    for name, values in state.baselines.items():
        arrays |= {f"{BASELINE}{name}/{key}": value for key, value in values.items()}
    return arrays


def check_arrays(arrays: Arrays, expected: Arrays) -> None:
    """Strict comparison of names and shapes.

    Raises:
        RecordError: missing or unknown names, or another shape.
    """
    missing, unknown = sorted(set(expected) - set(arrays)), sorted(set(arrays) - set(expected))
    if missing or unknown:
        raise RecordError(f"arrays: missing {missing}, unknown {unknown}")
    for key, template in expected.items():
        if arrays[key].shape != template.shape:
            raise RecordError(f"arrays: {key} expected shape {template.shape}, got {arrays[key].shape}")


def array_record(arrays: Arrays) -> ArrayRecord:
    """A fresh ArrayRecord, float64."""
    return ArrayRecord({key: FlowerArray(np.ascontiguousarray(value, np.float64)) for key, value in arrays.items()})


def read_arrays(content: RecordDict) -> dict[str, Array]:
    """The message's arrays, each checked."""
    record = content.get("arrays")
    if not isinstance(record, ArrayRecord):
        raise RecordError(f"arrays: expected an ArrayRecord, got {type(record).__name__}")
    return {key: read_array(key, value) for key, value in record.items()}


def read_array(key: str, value: FlowerArray) -> Array:
    """One array: float64 and finite, or a RecordError."""
    return np.asarray(read_checked("arrays", key, value, (np.float64,), "float64"), np.float64)


def read_checked(name: str, key: str, value: FlowerArray, kinds: Sequence[type[Any]], said: str) -> NDArray[Any]:
    """One array of a record, finite and of one of these kinds.

    Args:
        name: the record's.
        key: the array's.
        value: as it came.
        kinds: numpy's scalar types that are taken.
        said: these in words.

    Raises:
        RecordError: it is not.
    """
    try:
        array = read_numpy(value)
    except Exception as error:  # bytes of a stranger: numpy's reader fails in many ways
        raise RecordError(f"{name}: {key} cannot be read ({type(error).__name__})") from error
    if array.dtype not in kinds:
        raise RecordError(f"{name}: {key} expected {said}, got {array.dtype}")
    if not np.isfinite(array).all():
        raise RecordError(f"{name}: {key} holds {int((~np.isfinite(array)).sum())} values that are not finite")
    return array


def read_numpy(value: FlowerArray) -> NDArray[Any]:
    """An array in numpy's own format, read without pickle; no more memory is taken than bytes came.

    np.load would also unpack archives, and reserve whatever size a header claims.
    """
    if value.stype != SType.NUMPY:
        raise ValueError(f"unknown format {value.stype!r}")
    if np.lib.format.read_magic(BytesIO(value.data[:8])) != (1, 0):
        raise ValueError("another version of the format")
    stream = BytesIO(value.data)
    stream.seek(8)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(value.data) - stream.tell():
        raise ValueError("the header does not go with the bytes")
    stream.seek(0)
    return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))


def kebab(name: str) -> str:
    """`num_rows` -> `num-rows`."""
    return name.replace("_", "-")


def scores_metrics(prefix: str, scores: Scores) -> dict[str, int | float | list[int]]:
    """Scores as metrics under a prefix."""
    return {
        f"{prefix}-loss-sum": scores.loss_sum,
        f"{prefix}-rows": [int(n) for n in scores.rows],
        f"{prefix}-correct": [int(n) for n in scores.correct],
    }


def read_scores(metrics: MetricRecord, prefix: str, classes: int) -> Scores:
    """Scores from the metrics under a prefix."""
    rows = read_counts(metrics, f"{prefix}-rows", length=classes)
    correct = read_counts(metrics, f"{prefix}-correct", length=classes)
    if (correct > rows).any():
        raise RecordError(f"{prefix}-correct: more correct answers than rows")
    loss_sum = read_float(metrics, f"{prefix}-loss-sum")
    if loss_sum < 0:
        raise RecordError(f"{prefix}-loss-sum: a sum of cross-entropies is not negative, got {loss_sum}")
    return Scores(loss_sum, rows, correct)


def read_meta(content: RecordDict) -> ConfigRecord:
    """The message's `meta`, of this schema."""
    meta = read_config(content, "meta")
    if (schema := meta.get("schema")) != SCHEMA:
        raise RecordError(f"schema: expected {SCHEMA}, got {schema!r}; both sides need the same release")
    return meta


def read_config(content: RecordDict, name: str) -> ConfigRecord:
    """A ConfigRecord by name."""
    record = content.get(name)
    if not isinstance(record, ConfigRecord):
        raise RecordError(f"{name}: expected a ConfigRecord, got {type(record).__name__}")
    return record


def read_metrics(content: RecordDict, name: str) -> MetricRecord:
    """A MetricRecord by name."""
    record = content.get(name)
    if not isinstance(record, MetricRecord):
        raise RecordError(f"{name}: expected a MetricRecord, got {type(record).__name__}")
    return record


def read_string(record: ConfigRecord, key: str) -> str:
    """A string."""
    value = record.get(key)
    if not isinstance(value, str):
        raise RecordError(f"{key}: expected a string, got {type(value).__name__}")
    return value


def read_backend(record: ConfigRecord, key: str) -> str:
    """A backend's name."""
    name = read_string(record, key)
    if problem := backend_problem(name):
        raise RecordError(f"{key}: {problem}")
    return name


def read_strings(content: RecordDict, name: str) -> dict[str, str]:
    """A ConfigRecord of strings only."""
    record = read_config(content, name)
    return {key: read_string(record, key) for key in record}


def read_strings_list(record: ConfigRecord, key: str) -> tuple[str, ...]:
    """A list of strings."""
    value = record.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RecordError(f"{key}: expected a list of strings, got {type(value).__name__}")
    return tuple(str(item) for item in value)


def read_int(record: ConfigRecord | MetricRecord, key: str, least: int = 0) -> int:
    """An integer of at least `least`."""
    value = record.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
        raise RecordError(f"{key}: expected an integer of at least {least}, got {value!r}")
    return value


def read_float(record: ConfigRecord | MetricRecord, key: str) -> float:
    """A finite number."""
    value = record.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise RecordError(f"{key}: expected a finite number, got {value!r}")
    return float(value)


def read_optional(record: ConfigRecord | MetricRecord, key: str) -> float | None:
    """A finite number, or None where there is none of this name."""
    return read_float(record, key) if key in record else None


_SECONDS = ("qpu_seconds", "queue_seconds", "qpu_seconds_estimated")


def read_spent(metrics: MetricRecord) -> Spent:
    """What the site's work cost."""
    counts = {name: read_int(metrics, kebab(name)) for name in Spent.__dataclass_fields__ if name not in _SECONDS}
    qpu, queue, estimated = seconds = [read_float(metrics, kebab(name)) for name in _SECONDS]
    if negative := [f"{kebab(n)}: {value}" for n, value in zip(_SECONDS, seconds, strict=True) if value < 0]:
        raise RecordError(f"expected no negative number, got {', '.join(negative)}")
    return Spent(qpu_seconds=qpu, queue_seconds=queue, qpu_seconds_estimated=estimated, **counts)


def read_counts(metrics: MetricRecord, key: str, length: int) -> Labels:
    """A list of counts of a known length."""
    value = metrics.get(key)
    if not isinstance(value, list) or len(value) != length:
        raise RecordError(f"{key}: expected {length} counts, got {value!r}")
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= MOST for n in value):
        raise RecordError(f"{key}: expected counts, got {value!r}")
    return np.array(value, np.intp)

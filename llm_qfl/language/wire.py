"""An adapter as named arrays on the wire: `adapter/<layer>/<module>/<A|B>`, `emulator/...` when it changed.

Layers have their numbers of the full model. Three formats:

- `fp32`: the values.
- `fp16`: half precision. Upwards the *change* since the received values is sent, which needs fewer bits.
- `int8`: 8 bits and one float32 scale for each of the r components (`<name>.scale`); upwards the change.

What a site's rounding loses it adds to its next change (error feedback), so nothing is lost for good where changes are
averaged. The server keeps its own values exact and sends a rounded copy, so its rounding never accumulates either.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.lora import Arrays, check_arrays

FORMATS = ("fp32", "fp16", "int8")
_DTYPES = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}
_SCALE = ".scale"


def encode(name: str, values: Mapping[str, np.ndarray], wire: str) -> Arrays:
    """Values as they go over the wire.

    Args:
        name: the adapter's name, the first part of every key.
        values: float32 matrices, `<layer>/<module>/<A|B>`.
        wire: the format.

    Raises:
        LanguageError: for numbers that are not finite or do not fit the format.
    """
    out: Arrays = {}
    for key in sorted(values):
        value = np.asarray(values[key], np.float32)
        if not np.isfinite(value).all():
            raise LanguageError(f"{name}/{key}: a number is not finite, nothing was sent")
        if wire == "fp32":
            out[f"{name}/{key}"] = value.copy()
        elif wire == "fp16":
            if np.abs(value).max(initial=0.0) > np.finfo(np.float16).max:
                raise LanguageError(f"{name}/{key}: too large for language.wire=fp16; use fp32")
            out[f"{name}/{key}"] = value.astype(np.float16)
        else:
            scale = np.abs(value).max(axis=_axis(key), initial=0.0) / np.float32(127)
            safe = np.where(scale > 0, scale, 1).astype(np.float32)
            out[f"{name}/{key}"] = np.rint(value / _spread(safe, key)).astype(np.int8)
            out[f"{name}/{key}{_SCALE}"] = scale.astype(np.float32)
    return out


def decode(name: str, arrays: Mapping[str, np.ndarray], wire: str, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """Values from the wire; keys of other names are not looked at.

    Raises:
        LanguageError: unless names, shapes and dtypes are exactly those expected and every number is finite.
    """
    mine = {key[len(name) + 1 :]: value for key, value in arrays.items() if key.startswith(f"{name}/")}
    scales = {key: mine.pop(key) for key in list(mine) if wire == "int8" and key.endswith(_SCALE)}
    for key, value in mine.items():
        if value.dtype != _DTYPES[wire]:
            raise LanguageError(f"{name}/{key}: expected {wire} on the wire, got {value.dtype}; use one language.wire")
    values = {key: value.astype(np.float32) for key, value in mine.items()}
    if wire == "int8":
        expected = {f"{key}{_SCALE}": (_rank(key, shape),) for key, shape in shapes.items()}
        check_arrays(scales, expected, name)
        values = {k: v * _spread(scales[f"{k}{_SCALE}"], k) if k in shapes else v for k, v in values.items()}
    check_arrays(values, shapes, name)
    return values


def encode_change(
    name: str, values: Mapping[str, np.ndarray], received: Mapping[str, np.ndarray], residual: Arrays, wire: str
) -> tuple[Arrays, Arrays]:
    """A site's answer, and what its rounding lost.

    Args:
        name: the adapter's name.
        values: trained matrices.
        received: the matrices that training started from, as they were decoded.
        residual: what the former answer lost, or empty.
        wire: the format.

    Returns:
        Arrays for the wire; the new residual (empty with `fp32`, which loses nothing).
    """
    if wire == "fp32":
        return encode(name, values, wire), {}
    change = {key: values[key] - received[key] + residual.get(key, np.float32(0)) for key in values}
    sent = encode(name, change, wire)
    kept = decode(name, sent, wire, {key: value.shape for key, value in change.items()})
    return sent, {key: change[key] - kept[key] for key in change}


def decode_change(name: str, arrays: Mapping[str, np.ndarray], received: Mapping[str, np.ndarray], wire: str) -> Arrays:
    """A site's matrices from its answer.

    Args:
        name: the adapter's name.
        arrays: the answer.
        received: what the site had received, as it decoded it.
        wire: the format.

    Raises:
        LanguageError: as `decode`.
    """
    values = decode(name, arrays, wire, {key: value.shape for key, value in received.items()})
    if wire == "fp32":
        return values
    return {key: received[key] + value for key, value in values.items()}


def byte_count(arrays: Mapping[str, np.ndarray]) -> int:
    """Bytes of the arrays' numbers."""
    return sum(value.nbytes for value in arrays.values())


def _axis(key: str) -> int:
    """The axis that a scale runs over: A is (r, inputs), B is (outputs, r), and a scale belongs to one of the r."""
    return 1 if key.endswith("/A") else 0


def _rank(key: str, shape: tuple[int, ...]) -> int:
    return shape[0] if key.endswith("/A") else shape[1]


def _spread(scale: np.ndarray, key: str) -> np.ndarray:
    return scale[:, None] if key.endswith("/A") else scale[None, :]

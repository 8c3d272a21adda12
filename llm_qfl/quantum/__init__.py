"""Circuits, backends and the exact engine: whatever needs Qiskit.

The drop-in classes load Qiskit when they are first asked for, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_qfl.quantum.exact.primitives import ExactEstimator, ExactSampler
    from llm_qfl.quantum.exact.qnn import ExactEstimatorQNN, ExactSamplerQNN

__all__ = ["ExactEstimator", "ExactEstimatorQNN", "ExactSampler", "ExactSamplerQNN"]

_HOMES = {
    "ExactEstimator": "llm_qfl.quantum.exact.primitives",
    "ExactEstimatorQNN": "llm_qfl.quantum.exact.qnn",
    "ExactSampler": "llm_qfl.quantum.exact.primitives",
    "ExactSamplerQNN": "llm_qfl.quantum.exact.qnn",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(_HOMES[name]), name)
    return found

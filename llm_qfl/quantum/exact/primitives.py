"""Qiskit's primitives, version 2, on the exact engine."""

from llm_qfl.quantum.exact.estimator import ExactEstimator
from llm_qfl.quantum.exact.sampler import ExactSampler

__all__ = ["ExactEstimator", "ExactSampler"]

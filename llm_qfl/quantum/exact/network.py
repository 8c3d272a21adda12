"""What both exact networks check about their arguments and data."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llm_qfl.federation.errors import CircuitError

FLOAT = NDArray[np.float64]


class Network(Protocol):
    """What is asked of a network here."""

    @property
    def num_inputs(self) -> int:
        """Inputs of a sample."""
        ...

    @property
    def num_weights(self) -> int:
        """Number of weights."""
        ...

    @property
    def input_gradients(self) -> bool:
        """Does `backward` differentiate by the inputs?"""
        ...


def refuse(network: str, instead: str, **arguments: object) -> None:
    """Arguments that would have no effect.

    Raises:
        CircuitError: the first of them that is not None.
    """
    for name, value in arguments.items():
        if value is not None:
            raise CircuitError(
                f"{network}: argument {name!r} ({type(value).__name__}) would have no effect, the exact engine "
                f"computes values and gradients itself: leave it out, or {instead}"
            )


def check_shots(network: str, shots: int | None) -> None:
    """Shots are None or a positive integer.

    Raises:
        CircuitError: they are not.
    """
    if shots is not None and (isinstance(shots, bool) or not isinstance(shots, int | np.integer) or shots < 1):
        raise CircuitError(f"{network}: shots must be a positive integer or None (exact values), got {shots!r}")


def points(network: Network, inputs: FLOAT | None, weights: FLOAT | None) -> tuple[FLOAT, FLOAT]:
    """What the engine takes: inputs `(N, D)`, weights `(P,)`; N is 1 where there is no input.

    Raises:
        CircuitError: values are missing or too many.
    """
    rows = np.zeros((1, 0)) if inputs is None else inputs
    vector = np.zeros(0) if weights is None else weights
    if rows.shape[1] != network.num_inputs:
        raise CircuitError(
            f"the network has {network.num_inputs} inputs, got {rows.shape[1]} per sample: pass input_data of shape "
            f"(samples, {network.num_inputs})"
        )
    if len(vector) != network.num_weights:
        raise CircuitError(f"the network has {network.num_weights} weights, got {len(vector)}: pass them as weights")
    return rows, vector


def wanted(network: Network) -> tuple[bool, bool]:
    """Which gradients `backward` gives: by the weights, by the inputs; (False, False): it gives none at all."""
    by_inputs = bool(network.input_gradients)
    if network.num_inputs + network.num_weights == 0:
        return False, False
    return bool(network.num_weights), by_inputs

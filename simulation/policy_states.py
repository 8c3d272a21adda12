"""A policy's state read back from its text, and the same state at other prices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from agent.prices import Prices
from agent.state import CLIENT, HEADER, TENTHS, WORDS, State, bucket
from llm_qfl.federation.errors import FederationError

PRICES = HEADER.index("circuits")
LEFT, NOISE, QUEUE = (HEADER.index(name) for name in ("left", "noise", "queue"))
EXACT, QPU = 1, 4  # buckets of noise


def read_state(text: str) -> State:
    """The inverse of `State.text`: every bucket is one digit.

    Raises:
        FederationError: the text is no state's.
    """
    sites, _, run = text.partition("\n")
    order = [name for names in WORDS.values() for name in names]
    digits = dict(zip(order, (int(letter) for letter in run if letter.isdigit()), strict=False))
    header = tuple(digits.get(name, 0) for name in HEADER)
    clients = tuple(tuple(int(letter) for letter in line) for line in sites.split() if line.isdigit())
    state = State(header, clients)
    if any(len(line) != len(CLIENT) for line in clients) or state.text() != text:
        raise FederationError(f"policy state: expected {len(HEADER)} buckets and lines of {len(CLIENT)}, got {text!r}")
    return state


def repriced(state: State, shares: tuple[float, float, float]) -> State:
    """The state in a run that differs in prices alone.

    Args:
        state: as it was seen.
        shares: of a fixed round's cost: circuits, the round itself, bytes.
    """
    header = list(state.header)
    header[PRICES : PRICES + 3] = [bucket(share, TENTHS) for share in shares]
    return replace(state, header=tuple(header))


def at_prices_of(state: State, other: State) -> State:
    """The state at the prices of another one."""
    header = list(state.header)
    header[PRICES : PRICES + 3] = other.header[PRICES : PRICES + 3]
    return replace(state, header=tuple(header))


def elsewhere(state: State, random: np.random.Generator) -> State:
    """The state as another backend or a run budget would show it, half of the time.

    Experience is of exact backends without a run budget. What it does not vary is drawn here, so that a policy learns
    to ignore it: it knows nothing of noise and queues, and what a budget forbids is the shield's to mask.

    Args:
        state: as it was seen.
        random: generator.
    """
    if random.random() < 0.5:
        return state
    header = list(state.header)
    header[NOISE] = int(random.integers(EXACT, QPU + 1))
    header[QUEUE] = int(random.integers(1, 5)) if header[NOISE] == QPU else 0
    header[LEFT] = int(random.integers(1, len(TENTHS) + 2))
    return replace(state, header=tuple(header))


def samples(state: State) -> bool:
    """Does a backend of this state's run sample?"""
    return state.header[NOISE] > EXACT


def prices_of(shares: tuple[float, float, float], circuits: float, transferred: float) -> Prices:
    """Prices at which a round of so many circuits and bytes costs 1, divided by these shares."""
    return Prices(shares[0] / max(circuits, 1), shares[1], shares[2] / max(transferred, 1))

"""A policy's state read back from its text, and the same state at other prices."""

from __future__ import annotations

from dataclasses import replace

from agent.prices import Prices
from agent.state import CLIENT, HEADER, TENTHS, State, bucket
from llm_qfl.federation.errors import FederationError

PRICES = HEADER.index("circuits")


def read_state(text: str) -> State:
    """The inverse of `State.text`: every bucket is one digit.

    Raises:
        FederationError: the text is no state's.
    """
    run, _, sites = text.partition("\n")
    header = tuple(int(letter) for letter in run if letter.isdigit())
    clients = tuple(tuple(int(letter) for letter in line) for line in sites.split() if line.isdigit())
    state = State(header, clients)
    if len(header) != len(HEADER) or any(len(line) != len(CLIENT) for line in clients) or state.text() != text:
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


def prices_of(shares: tuple[float, float, float], circuits: float, transferred: float) -> Prices:
    """Prices at which a round of so many circuits and bytes costs 1, divided by these shares."""
    return Prices(shares[0] / max(circuits, 1), shares[1], shares[2] / max(transferred, 1))

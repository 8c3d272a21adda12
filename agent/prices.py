"""What a federation costs: circuits, rounds and bytes, each at its price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.history import RoundRecord
from llm_qfl.federation.config_agent import AgentConfig

HELD = 2  # rounds in a row in which a target must hold


@dataclass(frozen=True)
class Prices:
    """Prices in one unit; only their ratios matter."""

    circuit: float
    round: float
    byte: float

    @classmethod
    def of(cls, agent: AgentConfig) -> Prices:
        """From the run config."""
        return cls(agent.price_circuit, agent.price_round, agent.price_byte)

    def cost(self, circuits: float, rounds: float, transferred: float) -> float:
        """Circuits x price + rounds x price + bytes x price."""
        return circuits * self.circuit + rounds * self.round + transferred * self.byte

    def of_round(self, record: RoundRecord) -> float:
        """What a closed round cost."""
        return self.cost(record.circuits, 1, record.bytes)

    def shares(self, circuits: float, transferred: float) -> tuple[float, float, float]:
        """How a round's cost divides into circuits, the round itself and bytes; thirds where nothing costs."""
        parts = (circuits * self.circuit, self.round, transferred * self.byte)
        total = sum(parts)
        return (parts[0] / total, parts[1] / total, parts[2] / total) if total else (1 / 3, 1 / 3, 1 / 3)


@dataclass(frozen=True)
class Reached:
    """When a target was reached.

    Attributes:
        cost: up to the second round in a row that held it; of the whole run (or its budget) where none did.
        server_round: that round, or None.
    """

    cost: float
    server_round: int | None


def cost_to_target(
    accuracies: Sequence[float | None], costs: Sequence[float], target: float, full: float | None = None
) -> Reached:
    """Priced cost until validation accuracy has held a target for two rounds.

    Args:
        accuracies: of the global model *after* each round; None where it is not known.
        costs: of each round.
        target: least accuracy.
        full: cost that a run counts which never gets there (its full budget); by default what it spent.
    """
    held = 0
    for number, accuracy in enumerate(accuracies, start=1):
        held = held + 1 if accuracy is not None and accuracy >= target else 0
        if held == HELD:
            return Reached(sum(costs[:number]), number)
    return Reached(sum(costs) if full is None else full, None)

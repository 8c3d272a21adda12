"""For whom and when circuits run, what a node gives for it, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from llm_qfl.federation.seeding import SERVER, seed_of
from llm_qfl.federation.settings import default_folder
from llm_qfl.federation.types import Spent


@dataclass(frozen=True)
class Scope:
    """For whom and when circuits run: from it come the shots' seeds, and the names of jobs.

    Attributes:
        run: of the federation.
        site: its name.
        server_round: of the federation; 0 outside of rounds.
        purpose: within the round: `train`, `received`, ...; the same when a round is done again after a crash.
        seed: of the run (`server.seed`).
        shots: of each circuit.
    """

    run: str = "local"
    site: str = SERVER
    server_round: int = 0
    purpose: str = "local"
    seed: int = 0
    shots: int = 1024

    def seed_at(self, call: int, part: int = 0) -> int:
        """Seed of the shots of a part of the call of this number (31 bits, as Aer takes it)."""
        return seed_of(self.seed, self.site, self.server_round, f"shots/{self.purpose}/{call}/{part}") % (2**31 - 1)


@dataclass(eq=False)
class Meter:
    """What the calls of one scope cost, so far."""

    calls: int = 0
    spent: Spent = field(default_factory=Spent)


@dataclass(frozen=True)
class Place:
    """What a node gives its backends.

    Attributes:
        folder: that outlives the process: transpiled circuits, the ledger of jobs.
        qpu_seconds: the site's own limit over all runs, or None.
    """

    folder: Path
    qpu_seconds: float | None = None

    @classmethod
    def default(cls) -> Place:
        """Of a process that is no node: the user's cache, no limit of its own."""
        return cls(default_folder())

"""`python -m benchmarks.federations [--count N]`: how many simulated federations a minute a core plays.

What the policy learns from: drawn federations (2 to 12 sites, 25 or 40 rounds) with the real strategy and the real
client round, without Flower's processes. Opening one (census, dealing, feature map) and playing it are told apart: an
open one is played with as many plans as are asked for. One process on one core; take one a core.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

os.environ.setdefault("LLM_QFL_THREADS", "1")

from agent.actions import Clients
from llm_qfl.federation.errors import DataError, FederationError
from simulation.policy_arms import Setting, static
from simulation.policy_experience import draw_federation, open_draw
from simulation.policy_judging import HELD_OUT

PLANS = (Setting(2, Clients.TWO), Setting(5, Clients.ALL), Setting(20, Clients.ALL))
FIRST = HELD_OUT + 10_000  # nobody learned from these, and nothing is judged on them


def main() -> None:
    """Open, play, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=12, help="federations")
    asked = parser.parse_args()
    opening: list[float] = []
    playing: dict[str, list[tuple[float, int, int]]] = {plan.name: [] for plan in PLANS}
    refused = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(FIRST, FIRST + asked.count):
            started = time.process_time()
            try:
                world = open_draw(draw_federation(number, Path(folder)))
            except (DataError, FederationError):  # no such split, one class: as in training, passed over
                refused += 1
                continue
            opening.append(time.process_time() - started)
            for plan in PLANS if opening[1:] else (*PLANS, *PLANS):  # of the first one kernels are compiled, too
                started = time.process_time()
                played = world.play(static(plan))
                seconds = time.process_time() - started
                playing[plan.name].append((seconds, len(played.accuracies), sum(played.circuits)))
    if len(opening) < 2:
        raise SystemExit(f"{len(opening)} of {asked.count} federations could be dealt; take a larger --count")
    for found in playing.values():
        del found[0]
    print(f"{len(opening)} federations opened, {refused} could not be dealt; processor time of one core")
    print(f"opening one: {np.median(opening[1:]):.2f} s (median)")
    for name, found in playing.items():
        seconds, rounds, circuits = (float(sum(column)) for column in zip(*found, strict=True))
        print(
            f"{name}: {60 * len(found) / seconds:.0f} federations a minute, {rounds / seconds:.0f} rounds and "
            f"{circuits / seconds:,.0f} circuits a second"
        )


if __name__ == "__main__":
    main()

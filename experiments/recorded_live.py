"""Is a recorded language model as good as a live one? `python -m experiments.recorded_live [--print-only]`.

The priced comparison plays federations with recorded L_i (`experiments.priced_records`). Here the shipped policy
decides the same federation twice: with the recording, and in a whole run in which every site that is asked tunes
SmolLM2. What differs is what the recording leaves out: sites that are not asked in a language round tune nothing, the
average is then of fewer adapters, and the server has a loss of its own (L_s). A killed run continues.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("LLM_QFL_THREADS", "1")

from agent.decider import Decider
from agent.prices import Prices
from experiments.priced import Json, Places, made_with, open_cell, setting_of
from experiments.priced_arms import KEYS, Makers
from experiments.priced_cells import CELLS, FIRST_SEED, PRICES, Cell, unit
from experiments.priced_figures import Comparison
from experiments.priced_records import recorded_case
from llm_qfl.federation.config import RunConfig, Scalar
from llm_qfl.federation.errors import FederationError, LlmQflError
from llm_qfl.language.files import file_digest
from simulation.lines import mend, read_lines
from simulation.policy_arms import First, policy_keys, scored
from simulation.policy_states import prices_of
from simulation.policy_world import Observed, World

LIST = "mixed"
KINDS = ("recorded", "live")
FIRST = First(steps=10)
"""A run of the product begins with its configured steps, so both do."""
CHOSEN = ("breast-cancer 0.5", "digits 0.1", "dna 0.5", "tweets-pca 0.5", "tweets-discriminant 0.1")


def live_keys(prices: Prices, policy: Path) -> dict[str, Scalar]:
    """Keys with which a whole run decides as `scored` does, by the policy of this file."""
    keys = {"policy": str(policy.resolve()), **policy_keys(prices, FIRST, KEYS["policy"])}
    return {f"agent.{key.replace('_', '-')}": value for key, value in keys.items()}


def play_recorded(world: World, makers: Makers, prices: Prices) -> Json:
    """With recorded L_i, without a language model at the sites."""
    deciders: list[Observed] = []

    def make(of: World) -> Observed:
        made = scored(makers.remembered, prices, first=FIRST, ranges=makers.file.ranges, agent=KEYS["policy"])(of)
        deciders.append(made)
        return made

    played = world.play(make)
    return {**told(deciders[0]), "accuracies": list(played.accuracies)}


def play_live(cell: Cell, seed: int, places: Places, keys: Mapping[str, Scalar]) -> Json:
    """The whole run: real clients, each of which tunes its language model when it is asked to."""
    from client_app.app import app as client_app
    from server_app.session import run_rounds
    from simulation.grid import InMemoryGrid
    from simulation.run import Memory

    case = recorded_case(cell, seed, places)
    flat = {**case.flat(), **keys}
    nodes: dict[int, dict[str, Scalar]] = {
        n + 1: {"partition-id": n, "num-partitions": case.sites} for n in range(case.sites)
    }
    closed = run_rounds(InMemoryGrid(client_app, nodes, flat), RunConfig.from_run_config(flat), Memory())
    decider = closed.opened.decider
    if decider is None:
        raise ValueError("a run in mode policy has a decider")
    accuracies = [one.validation.accuracy or 0.0 for one in closed.rounds if one.validation is not None]
    return {**told(decider), "accuracies": accuracies}


def told(decider: Decider) -> Json:
    """What was decided, what it cost, and the L_i that decisions saw."""
    rounds = decider.history.rounds
    return {
        "plans": [[sorted(one.budgets.items()), one.weight] for one in decider.decisions if one.stop is None],
        "by": [one.by for one in decider.decisions if one.stop is None],
        "circuits": [one.circuits for one in rounds],
        "bytes": [one.bytes for one in rounds],
        "language": [{one.site: one.language_loss for one in record.sites} for record in rounds],
        "server": [record.language_loss for record in rounds],
    }


def run_missing(
    cells: Sequence[str], keep: Path, places: Places, makers: Makers, policy: Path, language: Mapping[str, Scalar]
) -> None:
    """Play what the file does not hold yet, a line each.

    Raises:
        FederationError: lines that were made with another policy, recording, language model or keys.
    """
    mend(keep)
    have = {(row["cell"], row["kind"]): row["made"] for row in read_lines(keep)}
    with keep.open("a") as file:
        for name in cells:
            cell, missing = CELLS[name], [kind for kind in KINDS if (name, kind) not in have]
            if not missing:
                continue
            recording = file_digest(places.recording(cell, FIRST_SEED))
            keys = repr((FIRST, LIST, recording, sorted(language.items())))
            made = made_with([*makers.learned_from("policy"), keys], "recorded")
            if any(have.get((name, kind), made) != made for kind in KINDS):
                raise FederationError(
                    f"{keep}: {name} was made with another policy, recording, language model or keys; name another "
                    "file with --keep, or delete its lines"
                )
            world = open_cell(cell, FIRST_SEED, FIRST_SEED, places, "recorded")
            prices = prices_of(PRICES[LIST], *unit(world))
            about = {"cell": name, "seed": FIRST_SEED, "made": made, "unit": list(unit(world))}
            for kind in missing:
                started = time.process_time()
                if kind == "recorded":
                    found = play_recorded(world, makers, prices)
                else:
                    found = play_live(cell, FIRST_SEED, places, {**language, **live_keys(prices, policy)})
                seconds = round(time.process_time() - started, 1)
                file.write(json.dumps({**about, "kind": kind, "cpu_seconds": seconds, **found}) + "\n")
                file.flush()
                print(f"{name}, {kind}: {seconds} s", flush=True)


def tables(rows: Sequence[Mapping[str, Any]], priced: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: recorded beside live.

    Args:
        rows: lines of this experiment.
        priced: lines of the priced comparison, for the targets.
    """
    setting = setting_of(priced)
    lines = [
        "| federation | L_i, live less recorded, nats (mean, largest distance) | rounds decided alike "
        "| cost to the target, recorded | live | last validation accuracy, recorded | live |",
        "|---|---|---|---|---|---|---|",
    ]
    by = {(row["cell"], row["kind"]): row for row in rows}
    for name in CELLS:
        if any((name, kind) not in by for kind in KINDS):
            continue
        recorded, live = by[name, "recorded"], by[name, "live"]
        comparison = Comparison([row for row in priced if row["cell"] == name], LIST, setting)
        # `tests` is for the test accuracy that a figure has, too; it is not shown here
        costs = [comparison.figure({**row, "tests": row["accuracies"]}) for row in (recorded, live)]
        shown = [f"{one.cost:.3f}" + ("" if one.reached else " (never there)") for one in costs]
        apart = differences(recorded["language"], live["language"])
        alike = sum(a == b for a, b in zip(recorded["plans"], live["plans"], strict=False))
        rounds = max(len(recorded["plans"]), len(live["plans"]))
        last = [f"{one['accuracies'][-1]:.3f}" for one in (recorded, live)]
        far = f"{np.mean(apart):+.3f}, {np.abs(apart).max():.3f}"
        lines.append(f"| {' | '.join([name, far, f'{alike} of {rounds}', *shown, *last])} |")
    return "\n".join(lines)


def differences(recorded: Sequence[Mapping[str, Any]], live: Sequence[Mapping[str, Any]]) -> list[float]:
    """L_i of the live run less the recorded one, of every site that answered the same round in both; nats."""
    return [
        there[site] - loss
        for mine, there in zip(recorded, live, strict=False)  # one may have ended earlier
        for site, loss in mine.items()
        if loss is not None and there.get(site) is not None
    ]


def main() -> None:
    """Play what is missing, then print."""
    from llm_qfl.federation.settings import default_folder

    line = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    line.add_argument("--data", type=Path, default=Path(os.environ.get("LLM_QFL_DATA", "../shared/data")))
    line.add_argument("--work", type=Path, default=Path("runs/priced-work"))
    line.add_argument("--keep", type=Path, default=Path("runs/recorded-live.jsonl"))
    line.add_argument("--priced", type=Path, default=Path("experiments/kept/priced.jsonl.gz"), help="for the targets")
    line.add_argument("--policy", type=Path, default=Path("agent/policy.json"))
    line.add_argument("--cells", nargs="*", default=list(CHOSEN), help=f"of {', '.join(CELLS)}")
    line.add_argument("--model", default="smollm2-135m", help="as recorded")
    line.add_argument("--steps", type=int, default=8, help="adapter steps of a language round, as recorded")
    line.add_argument("--print-only", action="store_true")
    asked = line.parse_args()
    if unknown := set(asked.cells) - set(CELLS):
        line.error(f"no cell {sorted(unknown)}, expected some of {', '.join(CELLS)}")
    makers = Makers(asked.policy, Path("policy-training") / "worlds.jsonl", default_folder() / "models")
    language: dict[str, Scalar] = {"language.model": asked.model, "language.steps": asked.steps}
    try:
        if not asked.print_only:
            places = Places(asked.data.resolve(), asked.work.resolve())
            run_missing(asked.cells, asked.keep, places, makers, asked.policy, language)
        print(tables(read_lines(asked.keep), read_lines(asked.priced)))
    except LlmQflError as error:
        line.exit(2, f"recorded-live: {error}\n")


if __name__ == "__main__":
    main()

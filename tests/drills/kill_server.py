"""Kill drill of the server, through Flower's nodes: it dies twice, goes on twice, and nobody can tell from the weights.

    python tests/drills/kill_server.py
    python tests/drills/kill_server.py --seed 3

A SuperLink with a database and two SuperNodes on this machine, each with its own rows. At a random moment the
ServerApp's process is ended by SIGKILL, and `flwr run` with `server.resume` goes on. At another one the SuperLink goes
with it; it is started again at its port, the nodes come back by themselves, and the run goes on once more. The final
weights must be those of the same sites in one process that nobody interrupts, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from stage import SPREAD, Stage, below, kill, kill_tree, stage_of, start_link

from llm_qfl.cli.deploy_check import bounded
from llm_qfl.federation.errors import FederationError

SITES = ("alpha", "beta")
SERVER_APP, EVERYTHING = "ServerApp", "SuperLink and ServerApp"
ROUNDS = 5


@dataclass
class Kill:
    """One death of the server.

    Attributes:
        victim: what was killed.
        closed: rounds that the folder then held.
        again: seconds from the command that goes on to the next closed round.
    """

    victim: str
    closed: int
    again: float = 0.0


def drill(stage: Stage, moments: random.Random) -> tuple[Path, list[Kill]]:
    """The run with its two kills: the run folder, and how it was killed."""
    kills = list[Kill]()
    with stage.processes:
        stage.open()
        for site in stage.sites:
            stage.start_node(site)
        stage.submit()
        stage.wait_for_round(0)  # the checkpoint before the first round
        for victim in (SERVER_APP, EVERYTHING):
            stage.pause(moments.uniform(0, SPREAD))
            kill_server(stage, everything=victim == EVERYTHING)
            kills.append(Kill(victim, stage.closed))
            if victim == EVERYTHING:
                stage.children["superlink"] = start_link(stage.processes, stage.port, stage.scratch / "link.db")
            began = time.monotonic()
            stage.submit(resume=stage.folder)
            stage.wait_for_round(kills[-1].closed + 1)
            kills[-1].again = time.monotonic() - began
        return stage.wait_for_end(), kills


def kill_server(stage: Stage, *, everything: bool) -> None:
    """SIGKILL to the ServerApp, or to the SuperLink with all that it has started.

    Raises:
        FederationError: there is none to kill.
    """
    link = stage.children["superlink"]
    victims = below(link, "flwr-serverapp")
    if not victims:
        raise FederationError("no ServerApp to kill: the run is over, or has not begun")
    if everything:
        kill_tree(link)
    else:
        kill(victims)
    stage.give_up_run()  # `flwr run` would wait until the SuperLink has noticed


def verdict(stage: Stage, folder: Path, kills: list[Kill]) -> bool:
    """Is the run that was killed the run that was not?

    Raises:
        AssertionError: lines are missing or doubled, or a site is.
    """
    lines = stage.lines
    assert [line["round"] for line in lines] == list(range(1, ROUNDS + 1)), lines
    for line in lines:
        assert sorted(client["site"] for client in line["clients"]) == sorted(SITES), line["rejected"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["resumed_after"] == [one.closed for one in kills], summary["resumed_after"]
    with np.load(folder / "model" / "weights.npz", allow_pickle=False) as weights:
        return bool(np.array_equal(weights["theta"], stage.undisturbed()))


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill the server of a federation of real Flower nodes, and go on")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1000), help="of the moments")
    parser.add_argument("--limit", type=float, default=500.0, help="seconds for all three lives")
    asked = parser.parse_args()
    started = time.monotonic()
    print(f"seed {asked.seed}", flush=True)  # before anything fails
    with tempfile.TemporaryDirectory(prefix="drill-") as scratch, bounded(asked.limit):
        stage = stage_of(Path(scratch), SITES, {"server.rounds": ROUNDS})
        folder, kills = drill(stage, random.Random(asked.seed))
        equal = verdict(stage, folder, kills)
        resumed = json.loads((folder / "summary.json").read_text())["resumed_after"]
    print(f"{'killed':26}{'closed rounds':>14}{'lost':>6}{'seconds to the next line':>26}")
    for one, after in zip(kills, resumed, strict=True):
        print(f"{one.victim:26}{one.closed:14}{one.closed - after:6}{one.again:26.0f}")
    print(f"final weights equal: {'yes' if equal else 'NO'}; {time.monotonic() - started:.0f} s")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())

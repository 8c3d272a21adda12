"""Drills: a federation of real Flower processes is disturbed at a random moment; what was lost, and how long it took.

    python tests/drills/disturb.py                              # every drill once, one table
    python tests/drills/disturb.py --kind cut --seed 3          # one of them, its moment drawn from the seed
    python tests/drills/disturb.py --repeat 5                   # every drill five times

A row says how many closed rounds are lost (none may be), how many seconds after the disturbance the first round with a
reply of every site was closed, and whether the final weights are those of a run that nobody disturbed. Where replies
came late or were lost they cannot be; then they are held against a run in one process in which the same replies are
late or lost, and must be equal to that.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from disturbances import KINDS
from judge import Row
from rich.console import Console
from rich.table import Table

from llm_qfl.cli.deploy_check import bounded
from llm_qfl.cli.processes import signals_raise

OWN_MOUNTS = "DRILL_OWN_MOUNTS"


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Disturb a federation of real Flower nodes, and see what becomes of it"
    )
    parser.add_argument("--kind", choices=[*KINDS, "all"], default="all")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1000), help="of the moments")
    parser.add_argument("--repeat", type=int, default=1, help="seeds: this one and those that follow")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one drill")
    parser.add_argument("--list", action="store_true", help="name the kinds")
    parser.add_argument("--may-mount", action="store_true", help="exit code 0 where a small disk can be mounted")
    asked = parser.parse_args()
    if asked.list:
        print(*KINDS)
        return 0
    if asked.may_mount:
        return int(not may_mount())
    kinds = list(KINDS) if asked.kind == "all" else [asked.kind]
    if "disk" in kinds and OWN_MOUNTS not in os.environ:
        if may_mount():
            return in_own_mounts(sys.executable, *sys.argv)
        print("disk: not drilled, a small disk cannot be mounted here (unshare --mount)", file=sys.stderr)
        kinds.remove("disk")
        if not kinds:
            return 1
    print(f"seed {asked.seed}", flush=True)  # before anything fails
    rows: list[tuple[int, Row, float]] = []
    for seed in range(asked.seed, asked.seed + asked.repeat):
        for kind in kinds:
            began = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="drill-") as scratch, bounded(asked.limit), signals_raise():
                row = KINDS[kind](Path(scratch), random.Random(f"{kind} {seed}"))
            rows.append((seed, row, time.monotonic() - began))
            if len(kinds) * asked.repeat > 1:
                print(f"{kind}, seed {seed}: {'as it must be' if row.passed else 'FAILED'}", flush=True)
    Console(width=max(150, shutil.get_terminal_size().columns)).print(table(rows))
    failed = sum(not row.passed for _, row, _ in rows)
    print(f"{len(rows) - failed} passed, {failed} failed")
    return int(failed > 0)


def may_mount() -> bool:
    """Linux, with the right to mount something where nobody else sees it?"""
    if shutil.which("unshare") is None:
        return False
    return in_own_mounts("mount", "-t", "tmpfs", "drill", tempfile.gettempdir()) == 0


def in_own_mounts(*command: str) -> int:
    """A command where it may mount a small disk that nobody else sees, and that ends with it (Linux)."""
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    environment = {**os.environ, OWN_MOUNTS: "1"}
    return subprocess.run(["unshare", "--mount", *rights, *command], check=False, env=environment).returncode


def table(rows: list[tuple[int, Row, float]]) -> Table:
    """One line a drill."""
    drawn = Table(
        "disturbance", "seed", "closed rounds", "lost", "s to go on", "weights equal", "as replayed", "note", "s"
    )
    for seed, row, seconds in rows:
        must = " (must)" if row.must else ""
        equal = f"{'yes' if row.equal else 'no' if row.passed else 'NO'}{must}"
        again = "-" if row.again is None else f"{row.again:.0f}"
        replayed = "yes" if row.explained else "NO"
        cells = (row.what, seed, row.closed, row.lost, again, equal, replayed, row.note, f"{seconds:.0f}")
        drawn.add_row(*map(str, cells))
    return drawn


if __name__ == "__main__":
    sys.exit(main())

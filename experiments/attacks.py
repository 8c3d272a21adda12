"""Bad clients: `python -m experiments.attacks [--seeds N] [--keep FILE]`: two of ten sites of breast-cancer rows lie.

Every site has a file of its own; bad ones turn their update round, make it longer, or learn from swapped labels (their
sums for the feature map are of swapped labels, too). A killed run continues from the file that `--keep` names.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, Message, RecordDict

from llm_qfl.federation.config import Scalar
from simulation.grid import Fault
from simulation.lines import mend, read_lines

os.environ.setdefault("LLM_QFL_THREADS", "1")

SITES, BAD, TEST_ROWS = 10, 2, 142
UNCHECKED = "mean, length unchecked"  # what would be without the bound on what an optimizer reaches
RULES = (UNCHECKED, "mean", "trimmed-mean", "krum")
# attack -> by what a bad site multiplies its update; None: its labels are swapped
ATTACKS: Mapping[str, float | None] = {
    "none": 1.0,
    "sign-flip": -1.0,
    "sign-flip, 4 times as long": -4.0,
    "scaled, 10 times as long": 10.0,
    "labels swapped": None,
}
KEYS: dict[str, Scalar] = {
    "language.model": "none",
    "data.min-rows": 2,
    "quantum.layers": 2,
    "server.rounds": 8,
    "training.steps": 4,
    "server.bad-share": BAD / SITES,
}


def multiplied(factor: float) -> Fault:
    """A site whose update of every array is multiplied by a number."""

    def fault(task: Message, reply: Message) -> Message:
        sent, got = task.content.get("arrays"), reply.content.get("arrays")
        if not isinstance(sent, ArrayRecord) or not isinstance(got, ArrayRecord):
            return reply  # the census and the scores
        lie = {}
        for key, array in got.items():
            start = sent[key].numpy()
            lie[key] = FlowerArray(np.ascontiguousarray(start + factor * (array.numpy() - start)))
        reply.content = RecordDict({**reply.content, "arrays": ArrayRecord(lie)})
        return reply

    return fault


def write_files(folder: Path, seed: int, *, swapped: bool) -> list[dict[str, Scalar]]:
    """A CSV file for each site and one for the test; the node config of each site."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    order = np.random.default_rng(seed).permutation(len(data.target))
    test, parts = order[:TEST_ROWS], np.array_split(order[TEST_ROWS:], SITES)

    def write(name: str, rows: np.ndarray[tuple[int], np.dtype[np.intp]], *, swap: bool) -> str:
        path = folder / f"{name}.csv"
        with path.open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow([*data.feature_names, "label"])
            for row in rows:
                out.writerow([*data.data[row], data.target_names[data.target[row] ^ int(swap)]])
        return str(path)

    write("test", test, swap=False)
    return [
        {
            "site": f"site-{n}",
            "data-path": write(f"site-{n}", part, swap=swapped and n < BAD),
            "folder": str(folder / f"home-{n}"),
        }
        for n, part in enumerate(parts)
    ]


@contextmanager
def _reach_unchecked() -> Iterator[None]:
    from server_app.claims import Claims

    with patch.object(Claims, "_check_reach", lambda *_: None):
        yield


def one_run(attack: str, rule: str, seed: int) -> dict[str, Scalar]:
    """One seed of one cell of the table."""
    from simulation.run import run_federation

    factor, started = ATTACKS[attack], time.perf_counter()
    unchecked = rule == UNCHECKED
    with tempfile.TemporaryDirectory() as folder, _reach_unchecked() if unchecked else nullcontext():
        nodes = write_files(Path(folder), seed, swapped=factor is None)
        faults = {} if factor in (None, 1.0) else {n + 1: multiplied(float(factor or 0)) for n in range(BAD)}
        keys = {**KEYS, "server.seed": seed, "server.aggregation": "mean" if unchecked else rule}
        keys |= {"data.test": f"file:{folder}/test.csv"}
        run = run_federation(keys, nodes=nodes, faults=faults)
    rounds = run.finished.rounds
    bad = {f"site-{n}" for n in range(BAD)}
    return {
        "attack": attack,
        "rule": rule,
        "seed": seed,
        "accuracy": run.summary["test_accuracy"],
        "refused": sum(1 for one in rounds for site in one.rejected if site in bad) / (BAD * len(rounds)),
        "seconds": time.perf_counter() - started,
    }


def print_table(found: list[Mapping[str, Scalar]]) -> None:
    """Markdown: accuracy by attack and rule, and the share of bad replies that were refused outright."""
    print("| attack (2 of 10 sites) | " + " | ".join(RULES) + " | bad replies refused |")
    print("|---" * (len(RULES) + 2) + "|")
    for attack in ATTACKS:
        cells, refused = [], []
        for rule in RULES:
            rows = [row for row in found if row["attack"] == attack and row["rule"] == rule]
            values = np.array([float(row["accuracy"]) for row in rows])
            refused += [float(row["refused"]) for row in rows if rule != UNCHECKED]
            spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.3f}{spread}" if len(values) else "")
        print(f"| {attack} | " + " | ".join(cells) + f" | {np.mean(refused) if refused else 0:.0%} |")


def main() -> None:
    """Run what is missing, then print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--keep", type=Path, default=Path("runs/attacks.jsonl"))
    arguments = parser.parse_args()
    mend(arguments.keep)
    found = list(read_lines(arguments.keep))
    have = {(row["attack"], row["rule"], row["seed"]) for row in found}
    jobs = [(attack, rule, seed) for seed in range(arguments.seeds) for attack in ATTACKS for rule in RULES]
    with arguments.keep.open("a") as file:
        for job in jobs:
            if job not in have:
                found.append(one_run(*job))
                file.write(json.dumps(found[-1]) + "\n")
                file.flush()
    print_table(found)


if __name__ == "__main__":
    main()

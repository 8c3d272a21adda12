"""The README's table of shots, device noise and mitigation: `python -m experiments.noise [--seeds N] [--keep FILE]`.

Breast-cancer, four sites, the same few steps in every line; training, validation and test all run where the line says.
A killed run continues: every finished seed is a line of the file that `--keep` names.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from llm_qfl.federation.config import Scalar
from simulation.lines import mend, read_lines

os.environ.setdefault("LLM_QFL_THREADS", "1")  # one thread a process: seeds run side by side

# Few, short steps, found on validation rows of seeds that are not in the table (100 and up), on the exact backend.
FEW: dict[str, Scalar] = {
    "language.model": "none",
    "quantum.layers": 2,
    "server.rounds": 5,
    "training.steps": 4,
    "training.batch-size": 8,
    "training.learning-rate": 0.2,
}
LINES: dict[str, Mapping[str, Scalar]] = {
    "exact": {},
    "128 shots": {"quantum.backend": "aer", "quantum.shots": 128},
    "512 shots": {"quantum.backend": "aer", "quantum.shots": 512},
    "2,048 shots": {"quantum.backend": "aer", "quantum.shots": 2048},
}
for _device in ("FakeManilaV2", "FakeFez"):
    for _mitigation in ("none", "readout", "zne"):
        LINES[f"{_device}, 1,024 shots, mitigation {_mitigation}"] = {
            "quantum.backend": f"aer-{_device}",
            "quantum.mitigation": _mitigation,
        }
    LINES[f"trained exactly, scored on {_device}, 1,024 shots"] = {"quantum.evaluation-backend": f"aer-{_device}"}


def one_run(line: str, seed: int) -> dict[str, float | str]:
    """One seed of one line."""
    from simulation.run import run_federation

    with tempfile.TemporaryDirectory() as folder:
        nodes = [{"partition-id": n, "num-partitions": 4, "folder": folder} for n in range(4)]
        started = time.perf_counter()
        run = run_federation({**FEW, **LINES[line], "server.seed": seed}, nodes=nodes)
    summary = run.summary
    return {
        "line": line,
        "seed": seed,
        "accuracy": summary["test_accuracy"],
        "loss": summary["test_loss"],
        "logistic": summary["baselines"]["logistic"]["test_accuracy"],
        "evaluations": summary["evaluations"],
        "circuits": summary["circuits"],
        "shots": summary["shots"],
        "seconds": time.perf_counter() - started,
    }


def print_table(found: list[dict[str, float | str]]) -> None:
    """Markdown; differences are paired by seed, with a 95% interval (Student's t)."""
    from scipy.stats import t

    by_line = {line: {r["seed"]: r for r in found if r["line"] == line} for line in LINES}
    exact = by_line["exact"]
    print(
        "| where circuits run | test accuracy, mean ± sd | minus exact, 95% | loss, nats | circuits | shots | seconds |"
    )
    print("|---|---|---|---|---|---|---|")
    for line, rows in by_line.items():
        if not rows:
            continue
        seeds = sorted(set(rows) & set(exact))
        gap = np.array([float(rows[s]["accuracy"]) - float(exact[s]["accuracy"]) for s in seeds])
        half = t.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / np.sqrt(len(gap)) if len(gap) > 1 else float("nan")
        mean = {
            key: np.mean([float(r[key]) for r in rows.values()]) for key in next(iter(rows.values())) if key != "line"
        }
        spread = np.std([float(r["accuracy"]) for r in rows.values()], ddof=1) if len(rows) > 1 else float("nan")
        print(
            f"| {line} | {mean['accuracy']:.3f} ± {spread:.3f} | {gap.mean():+.3f} ± {half:.3f} | {mean['loss']:.3f} | "
            f"{mean['circuits']:,.0f} | {mean['shots'] / 1e6:,.1f} M | {mean['seconds']:.0f} |"
        )
    logistic = np.mean([float(r["logistic"]) for r in exact.values()])
    print(f"\nLogistic regression, federated on the same features, rounds and steps: {logistic:.3f}")


def main() -> None:
    """Run what is missing, then print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--keep", type=Path, default=Path("runs/noise.jsonl"))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    mend(arguments.keep)
    found = list(read_lines(arguments.keep))
    have = {(row["line"], row["seed"]) for row in found}
    missing = [(line, seed) for seed in range(arguments.seeds) for line in LINES if (line, seed) not in have]
    with ProcessPoolExecutor(arguments.workers) as pool, arguments.keep.open("a") as file:
        for done in as_completed([pool.submit(one_run, *job) for job in missing]):
            found.append(done.result())
            file.write(json.dumps(found[-1]) + "\n")
            file.flush()
    print_table(found)


if __name__ == "__main__":
    main()

"""The accuracy tables of the README: `python -m experiments.accuracy [--data FOLDER] [--seeds N] [TABLE ...]`.

Every table: the federated QNN, the central QNN with the same number of circuits, logistic regression and a small
network trained federated on the same features, splits, sites and rounds; mean and standard deviation over seeds.
A seed changes the split, the deal to the sites and the start; the DNA tables have a fixed test file.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm_qfl.federation.config import Scalar

# One thread a process: seeds run side by side.
os.environ.setdefault("LLM_QFL_THREADS", "1")

# Settings by validation rows, on seeds that are not in the tables (100 and up).
DNA = {
    "data.source": "csv:{data}/human_or_worm_train.csv.gz",
    "data.test": "file:{data}/human_or_worm_test.csv.gz",
    "server.rounds": 20,
    "quantum.layers": 6,
    "training.batch-size": 100,
    "training.steps": 20,
    "training.l2": 1e-4,
}


@dataclass(frozen=True)
class Table:
    """One configuration of the tables."""

    title: str
    sites: int
    config: Mapping[str, Scalar]


TABLES = {
    "breast-discriminant": Table("breast-cancer, `discriminant`", 4, {}),
    "breast-pca": Table("breast-cancer, `pca`", 4, {"data.reduction": "pca"}),
    "dna-discriminant": Table("human_or_worm, 4-mers, `discriminant`", 8, DNA),
    "dna-pca": Table("human_or_worm, 3-mers, `pca`", 8, {**DNA, "data.reduction": "pca", "data.k": 3}),
    "dna-canonical": Table(
        "human_or_worm, canonical 5-mers, `discriminant`", 8, {**DNA, "data.encoding": "canonical-kmer", "data.k": 5}
    ),
    "dna-onehot": Table(
        "human_or_worm, one-hot, the paper's circuit and readout, as many circuits as the tables above",
        8,
        {
            **DNA,
            "data.encoding": "onehot",
            "data.reduction": "pca",
            "quantum.circuit": "zz-real-amplitudes",
            "quantum.layers": 3,
            "quantum.readout": "bit",
            # a gradient of 16 gates costs 33 evaluations, of the 72 above 145
            "training.steps": 88,
        },
    ),
}


def one_run(job: tuple[str, int, str]) -> dict[str, float]:
    """One seed of one table."""
    from simulation.central import train_centrally
    from simulation.run import run_federation

    name, seed, data = job
    table = TABLES[name]
    config = {k: v.format(data=data) if isinstance(v, str) else v for k, v in table.config.items()}
    started = time.perf_counter()
    run = run_federation({"language.model": "none", **config, "server.seed": seed}, sites=table.sites)
    seconds = time.perf_counter() - started
    central = train_centrally(run.finished)
    summary = run.summary
    found = {
        "qnn": summary["test_accuracy"],
        "central": central.test.accuracy,
        "logistic": summary["baselines"]["logistic"]["test_accuracy"],
        "mlp": summary["baselines"]["mlp"]["test_accuracy"],
        "qnn_loss": summary["test_loss"],
        "central_loss": central.test.loss,
        "logistic_loss": summary["baselines"]["logistic"]["test_loss"],
        "mlp_loss": summary["baselines"]["mlp"]["test_loss"],
        "circuits": summary["circuits"],
        "central_circuits": central.circuits,
        "bytes_up": summary["bytes_up"],
        "seconds": seconds,
    }
    return {"seed": seed, **{key: float(value) for key, value in found.items()}}


def paired(rows: list[dict[str, float]], other: str) -> str:
    """Mean difference QNN minus other over the same seeds, with a 95% interval (Student's t)."""
    from scipy.stats import t

    differences = np.array([row["qnn"] - row[other] for row in rows])
    if len(differences) < 2:
        return f"{differences.mean():+.4f}"
    half = t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / math.sqrt(len(differences))
    return f"{differences.mean():+.4f} ± {half:.4f}"


def print_table(name: str, rows: list[dict[str, float]]) -> None:
    """Markdown, one line a model."""
    print(f"\n### {TABLES[name].title} ({len(rows)} seeds)\n")
    print("| model | accuracy, mean ± sd | worst to best seed | loss, nats | QNN minus it, 95% |")
    print("|---|---|---|---|---|")
    labels = {
        "qnn": "federated QNN",
        "central": "central QNN, same circuits",
        "logistic": "logistic regression, federated",
        "mlp": "small network, federated",
    }
    for key, label in labels.items():
        values = np.array([row[key] for row in rows])
        spread = f"± {values.std(ddof=1):.4f}" if len(values) > 1 else ""
        loss = np.mean([row[f"{key}_loss"] for row in rows])
        versus = "" if key == "qnn" else paired(rows, key)
        extremes = f"{values.min():.3f} to {values.max():.3f}"
        print(f"| {label} | {values.mean():.4f} {spread} | {extremes} | {loss:.4f} | {versus} |")
    circuits, central = (np.mean([row[key] for row in rows]) for key in ("circuits", "central_circuits"))
    seconds = np.median([row["seconds"] for row in rows])
    print(
        f"\nCircuits, mean: federated {circuits:,.0f}, central {central:,.0f}; {seconds:.1f} s a federation (median)."
    )


def main() -> None:
    """Run the tables and print them; `--json` keeps every run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}; all where none is named")
    parser.add_argument("--data", default=os.environ.get("LLM_QFL_DATA", "../shared/data"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if unknown := set(arguments.tables) - set(TABLES):
        parser.error(f"no table {sorted(unknown)}, expected some of {', '.join(TABLES)}")
    data = str(Path(arguments.data).resolve())
    results = {}
    with ProcessPoolExecutor(arguments.processes) as pool:
        for name in arguments.tables or TABLES:
            jobs = [(name, seed, data) for seed in range(42, 42 + arguments.seeds)]
            results[name] = list(pool.map(one_run, jobs))
            print_table(name, results[name])
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

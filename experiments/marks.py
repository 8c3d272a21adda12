"""Central marks on the same features, splits and training rows as the tables: `python -m experiments.marks`.

scikit-learn's logistic regression and RBF support vector machine with their defaults, on all sites' training rows.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from experiments.accuracy import TABLES


def main() -> None:
    """Print a line for each table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("LLM_QFL_DATA", "../shared/data"))
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    from server_app.rows import server_rows
    from simulation.central import pooled_training_rows
    from simulation.run import run_federation

    data = str(Path(arguments.data).resolve())
    print("| features | logistic regression, central | RBF machine, central |\n|---|---|---|")
    for name, table in TABLES.items():
        config = {k: v.format(data=data) if isinstance(v, str) else v for k, v in table.config.items()}
        found = []
        for seed in range(42, 42 + arguments.seeds):
            small = {"server.rounds": 1, "training.steps": 1, "server.seed": seed}
            finished = run_federation({"language.model": "none", **config, **small}, sites=table.sites).finished
            train, test = (
                pooled_training_rows(finished),
                server_rows(finished.opened.config, finished.opened.setup, "test"),
            )
            if test is None:
                raise ValueError(f"{name}: the marks need test rows on the server")
            models = (LogisticRegression(max_iter=1000), SVC())
            found.append([float(model.fit(train.x, train.y).score(test.x, test.y)) for model in models])
        mean, spread = np.mean(found, axis=0), np.std(found, axis=0, ddof=1)
        cells = " | ".join(f"{m:.4f} ± {s:.4f}" for m, s in zip(mean, spread, strict=True))
        print(f"| {table.title.split(', as many')[0]} | {cells} |", flush=True)


if __name__ == "__main__":
    main()

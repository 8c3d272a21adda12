"""Scale on one machine: `python -m experiments.scale [--sites 1000]`: time, peak memory, what dominates."""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import resource
import time
from pathlib import Path


def main() -> None:
    """One federation in this process, with many small sites."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--min-rows", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="show what dominates (slower)")
    parser.add_argument("--data", default=os.environ.get("LLM_QFL_DATA", "../shared/data"))
    arguments = parser.parse_args()
    from simulation.run import run_federation

    data = Path(arguments.data).resolve()
    config = {
        "data.source": f"csv:{data}/human_or_worm_train.csv.gz",
        "data.test": f"file:{data}/human_or_worm_test.csv.gz",
        "data.partitioner": "iid",
        "data.min-rows": arguments.min_rows,
        "server.rounds": arguments.rounds,
    }
    profile = cProfile.Profile()
    started = time.perf_counter()
    if arguments.profile:
        profile.enable()
    run = run_federation({"language.model": "none", **config}, sites=arguments.sites)
    profile.disable()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    reports = sum(len(closed.reports) for closed in run.finished.rounds)
    summary = run.summary
    print(f"{arguments.sites} sites, {arguments.rounds} rounds, data.min-rows={arguments.min_rows}: {seconds:.1f} s,")
    print(f"peak memory {peak:.2f} GiB, {reports} accepted replies, {1000 * seconds / reports:.1f} ms each,")
    logistic = summary["baselines"]["logistic"]["test_accuracy"]
    print(f"test accuracy {summary['test_accuracy']:.4f}, logistic {logistic:.4f}")
    if arguments.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(15)


if __name__ == "__main__":
    main()

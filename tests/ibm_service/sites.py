"""Sites of a federation with the loopback service: their rows, and what a run says that each has paid."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ibm_service.loopback import LoopbackService

from llm_qfl.federation.data.synthetic import markov_sequences, write_csv
from llm_qfl.quantum.ibm.ledger import Entry, Ledger

PROJECT = Path(__file__).parents[2]
COSTS = ("shots", "jobs", "qpu_seconds", "queue_seconds")


def write_sequences(folder: Path, sites: Sequence[str], rows: int) -> tuple[str, dict[str, Path]]:
    """A CSV file of DNA for each site, of `human_or_worm` where it is at hand; else made up. Which, and the files."""
    data = Path(os.environ.get("LLM_QFL_DATA") or PROJECT.parent / "shared" / "data") / "human_or_worm_train.csv.gz"
    if data.is_file():
        with gzip.open(data, "rt", encoding="utf-8") as file:
            head, *lines = csv.reader(file)
        random.Random(0).shuffle(lines)
        name = "human_or_worm"
    else:
        sequences, labels = markov_sequences(np.random.default_rng(0), rows * len(sites), contrast=2.0)
        head, lines = ["sequence", "label"], [[s, str(y)] for s, y in zip(sequences, labels, strict=True)]
        name = "synthetic"
    files = {
        site: write_csv(folder / f"{site}.csv", head, lines[n * rows : (n + 1) * rows]) for n, site in enumerate(sites)
    }
    return name, files


@contextmanager
def service_in_environment(service: LoopbackService) -> Iterator[LoopbackService]:
    """The service runs, and what this process starts finds it."""
    before = dict(os.environ)
    os.environ.update(service.environment())
    try:
        with service.running():
            yield service
    finally:
        os.environ.clear()
        os.environ.update(before)


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def work_of(folder: Path) -> list[dict[str, Any]]:
    """Every answer that the run folder knows of: in time, late, and the scores at the end."""
    lines = rounds_of(folder)
    answers = [work for line in lines for work in [*line["clients"], *line["late"]]]
    return answers + json.loads((folder / "summary.json").read_text())["scoring"]


def costs_of(folder: Path) -> dict[str, dict[str, float]]:
    """Site -> what its answers say that it has spent."""
    found: dict[str, dict[str, float]] = {}
    for work in work_of(folder):
        sums = found.setdefault(work["site"], dict.fromkeys(COSTS, 0.0))
        for key in COSTS:
            sums[key] += work[key]
    return found


def entries_of(node_folder: Path) -> list[Entry]:
    """The jobs in a site's ledger."""
    return Ledger(node_folder / "jobs").entries()


def twice(service: LoopbackService) -> int:
    """Jobs at the service that were submitted although the same work was there already."""
    tags = Counter(tag for job in service.jobs.values() for tag in job.tags if tag.startswith("llm-qfl-"))
    return sum(count - 1 for count in tags.values())

"""What belongs to one site: node config (never run config); secrets come from the environment alone."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from llm_qfl.federation.backend_names import backend_problem
from llm_qfl.federation.config import Scalar
from llm_qfl.federation.errors import ConfigError
from llm_qfl.federation.seeding import SERVER

KEYS = ("site", "data-path", "folder", "backend", "evaluation-backend", "qpu-seconds",
        "partition-id", "num-partitions", "language", "epsilon")  # fmt: skip


@dataclass(frozen=True)
class NodeSettings:
    """Settings of one site.

    Attributes:
        site: the site's name, unique in the federation.
        data_path: its own CSV file, or None in simulation, where it gets a partition of the pool.
        partition_id: which partition, in simulation.
        num_partitions: how many there are.
        folder: where the site keeps what it must not lose.
        backend: where this site's circuits run, in place of the run's `quantum.backend` and
            `quantum.evaluation-backend`; None takes the run's.
        evaluation_backend: where it scores; None scores where `backend` says.
        qpu_seconds: most QPU seconds that the site spends on IBM Quantum over all runs; None sets no limit.
        language: does the site take part in the run's language model: `auto` (where there is room for it) or `no`.
        epsilon: most that the site's noisy answers may give away over all runs (at the delta of the run that asks);
            None sets no limit.
    """

    site: str
    data_path: str | None
    partition_id: int
    num_partitions: int
    folder: Path
    backend: str | None = None
    evaluation_backend: str | None = None
    qpu_seconds: float | None = None
    language: str = "auto"
    epsilon: float | None = None

    @classmethod
    def from_node_config(cls, node_config: Mapping[str, Scalar]) -> NodeSettings:
        """Check Flower's node config.

        Raises:
            ConfigError: with every problem.
        """
        problems = [
            f"node config: unknown key {key!r}, expected one of {KEYS}" for key in node_config if key not in KEYS
        ]
        for key, kind in (("site", str), ("data-path", str), ("folder", str), ("partition-id", int)):
            value = node_config.get(key)
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                problems.append(f"node config: {key} expected {kind.__name__}, got {value!r}")
        problems += _backend_problems(node_config)
        path, partition = node_config.get("data-path"), node_config.get("partition-id")
        if path is None and partition is None:
            problems.append("node config: expected data-path (a real site) or partition-id (simulation), got neither")
        language = node_config.get("language", "auto")
        if language not in ("auto", "no"):
            problems.append(f"node config: language expected auto or no, got {language!r}")
        epsilon = node_config.get("epsilon")
        if epsilon is not None and not (_is_number(epsilon) and epsilon > 0):
            problems.append(f"node config: epsilon expected a number above 0, got {epsilon!r}")
        if path is not None and node_config.get("site") is None:
            problems.append('node config: a site with a data-path needs a name, e.g. site="clinic-a"')
        if node_config.get("site") == SERVER:
            problems.append(f"node config: site may not be called {SERVER!r}")
        if problems:
            raise ConfigError(problems)
        number = int(partition or 0)
        site = str(node_config.get("site") or f"site-{number:04d}")
        folder = Path(str(node_config.get("folder") or default_folder()))
        partitions = int(node_config.get("num-partitions") or 1)
        seconds = node_config.get("qpu-seconds")
        return cls(
            site,
            None if path is None else str(path),
            number,
            partitions,
            folder,
            _text(node_config.get("backend")),
            _text(node_config.get("evaluation-backend")),
            None if seconds is None else float(seconds),
            str(language),
            None if epsilon is None else float(epsilon),
        )


def _is_number(value: Scalar | None) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: Scalar | None) -> str | None:
    return None if value is None else str(value)


def _backend_problems(node_config: Mapping[str, Scalar]) -> list[str]:
    problems = []
    seconds = node_config.get("qpu-seconds")
    for key in ("backend", "evaluation-backend"):
        name = node_config.get(key)
        if name is not None and (problem := backend_problem(str(name))):
            problems.append(f"node config: {key}: {problem}")
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds < math.inf
    if seconds is not None and not number:
        problems.append(f"node config: qpu-seconds expected a number of seconds, 0 or more, got {seconds!r}")
    return problems


def default_folder() -> Path:
    """Where a node keeps its things when node config names no folder."""
    home = os.environ.get("FLWR_HOME")
    return Path(home) / "llm-qfl" if home else Path.home() / ".cache" / "llm-qfl"


def ledger_folder(folder: Path) -> Path:
    """Where a node keeps the ledger of the jobs that it pays for: in its folder, but never below the user's cache.

    Args:
        folder: of the node.
    """
    jobs, cache = folder / "jobs", Path.home() / ".cache"
    # A ledger that is there already stays in use: to leave it would be to pay for its jobs again.
    if jobs.is_dir() or not folder.absolute().is_relative_to(cache):
        return jobs
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return data / folder.absolute().relative_to(cache) / "jobs"


def project_folder() -> Path:
    """Where relative paths start: the launcher's project, else the working directory."""
    return Path(os.environ.get("LLM_QFL_PROJECT") or Path.cwd())

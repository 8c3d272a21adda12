"""`make deploy-check`: real processes on loopback, each site with its own file, held against the run in memory.

A SuperLink and a SuperNode for each site on 127.0.0.1, the app sent to them through `flwr run`. The final weights must
be those of the same sites in one process, bit for bit.
"""

from __future__ import annotations

import argparse
import csv
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
from rich.console import Console

from llm_qfl.cli.flower import (
    environment,
    project_folder,
    start_superlink,
)
from llm_qfl.cli.launch import new_log_folder, submit
from llm_qfl.cli.processes import Interrupted, Processes, free_port, signals_raise
from llm_qfl.cli.screen import Screen
from llm_qfl.federation.config import Scalar
from llm_qfl.federation.errors import FederationError, LlmQflError

LIMIT = 300.0  # seconds for the whole run; it takes about 60
SITES = ("alpha", "beta", "gamma")
CONFIG: Mapping[str, Scalar] = {
    "server.sites": len(SITES),
    "server.rounds": 2,
    "server.deadline": 120.0,
    "training.steps": 4,
    "data.test": "federated",
    # A random language model of six layers: the sites fetch it, keep its emulator on their disks, train its adapter.
    "language.model": "tiny-6",
    "language.adapter-layers": 2,
    "language.every": 1,
    "language.steps": 3,
    "language.align-first": 3,
    "language.public-rows": 32,
    "language.dtype": "float32",
}
CLOSE = 1e-4  # adapters: torch's sums depend on how many threads a process has


def main(arguments: list[str] | None = None) -> int:
    """Check.

    Args:
        arguments: command line; default: that of the process.

    Returns:
        Exit code: 0 where everything is as expected, 128 + signal where one ended it, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m llm_qfl.cli.deploy_check", description=__doc__)
    parser.parse_args(arguments)
    try:
        with signals_raise(), tempfile.TemporaryDirectory(prefix="llm-qfl-") as scratch:
            folder = check(project_folder(), Path(scratch))
    except Interrupted as signal:
        print(f"stopped by {signal}; every process of the run has ended", file=sys.stderr)
        return signal.exit_code
    except LlmQflError as error:
        print(f"deploy-check: {error}", file=sys.stderr)
        return 1
    print(f"deploy-check passed: {len(SITES)} nodes, same weights as in memory, nothing left running\n{folder}")
    return 0


def check(project: Path, scratch: Path) -> Path:
    """Both runs, compared.

    Returns:
        The run folder of the real nodes.

    Raises:
        FederationError: a run failed, or they differ.
    """
    from simulation.run import run_federation

    files = write_site_files(scratch)
    nodes = [{"site": site, "data-path": str(path), "folder": str(scratch / site)} for site, path in files.items()]
    folder = deploy(project, nodes, CONFIG)
    in_memory = [{**node, "folder": f"{node['folder']}-in-memory"} for node in nodes]
    expected = run_federation(CONFIG, nodes=in_memory, output=scratch / "runs")
    compare(folder, expected.theta, expected.folder)
    check_contract(project, folder)
    return folder


def write_site_files(folder: Path) -> dict[str, Path]:
    """scikit-learn's breast-cancer rows, dealt to the sites; a CSV file for each."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    order = np.random.default_rng(0).permutation(len(data.target))
    files = {}
    for site, rows in zip(SITES, np.array_split(order, len(SITES)), strict=True):
        files[site] = folder / f"{site}.csv"
        with open(files[site], "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*data.feature_names, "label"])
            writer.writerows([*map(float, data.data[row]), data.target_names[data.target[row]]] for row in rows)
    return files


def deploy(project: Path, nodes: Sequence[Mapping[str, Scalar]], config: Mapping[str, Scalar]) -> Path:
    """Run the federation on a SuperLink and SuperNodes of this machine; everything is stopped afterwards.

    Args:
        project: the checkout.
        nodes: node config of each site.
        config: run-config overrides.

    Returns:
        The run folder.

    Raises:
        FederationError: a process died, the run failed, or it took longer than `LIMIT`.
    """
    home = project / ".flwr"
    logs = new_log_folder(home)
    with Processes(logs, environment(home, project), project) as processes, Screen(Console()) as screen:
        address = start_superlink(processes, simulation=False)
        for node in nodes:
            start_supernode(processes, address, node)
        with bounded(LIMIT):
            return submit(processes, project, to_toml(config), screen)


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Within: after so many seconds a FederationError is raised, whatever is being waited for."""

    def late(number: int, frame: FrameType | None) -> None:
        raise FederationError(f"the run was not over after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def start_supernode(processes: Processes, superlink: str, node: Mapping[str, Scalar]) -> None:
    """A site's SuperNode; its log is named by the site."""
    command = ["flower-supernode", "--insecure", "--isolation", "subprocess", "--superlink", superlink]
    command += ["--host", "127.0.0.1", "--port", str(free_port()), "--node-config", to_toml(node)]
    processes.start(f"site-{node['site']}", command)


def to_toml(values: Mapping[str, Scalar]) -> str:
    """`key=value` pairs as Flower's commands take them."""
    quoted = {k: f'"{v}"' if isinstance(v, str) else str(v).lower() for k, v in values.items()}
    return " ".join(f"{key}={value}" for key, value in quoted.items())


def compare(folder: Path, theta: np.ndarray, other: Path | None) -> None:
    """Did every site train in every round, and are the final weights the same?

    Raises:
        FederationError: no.
    """
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for line in lines:
        came = sorted(client["site"] for client in line["clients"])
        if came != sorted(SITES):
            raise FederationError(f"round {line['round']}: expected replies of {SITES}, got {came}")
        language = line.get("language") or {}
        trained = sorted(answer["site"] for answer in language.get("answers", []))
        if trained != sorted(SITES):
            raise FederationError(f"round {line['round']}: adapters of {trained} alone, {language.get('rejected')}")
    with np.load(folder / "model" / "weights.npz", allow_pickle=False) as arrays:
        found = arrays["theta"]
    if found.shape != theta.shape or not np.array_equal(found, theta):
        worst = np.abs(found - theta).max() if found.shape == theta.shape else float("nan")
        raise FederationError(f"the weights of {folder} and of {other} in memory differ by up to {worst:.3g}")
    if other is not None:
        compare_adapters(folder, other)


def compare_adapters(folder: Path, other: Path) -> None:
    """Are the adapters of both runs the same, to rounding?

    Raises:
        FederationError: no.
    """
    from llm_qfl.language.export import read_adapter

    found, expected = (read_adapter(run / "adapter").arrays for run in (folder, other))
    worst = max(float(np.abs(found[key] - value).max()) for key, value in expected.items())
    if found.keys() != expected.keys() or not worst < CLOSE:
        raise FederationError(f"the adapters of {folder} and of {other} in memory differ by up to {worst:.3g}")


def check_contract(project: Path, folder: Path) -> None:
    """The checker of run folders, where it lies beside the checkout.

    Raises:
        FederationError: it has something to say.
    """
    checker = project.parent / "shared" / "tools" / "check_run.py"
    if not checker.is_file():
        return
    done = subprocess.run(
        [sys.executable, checker, folder, "--language"], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        raise FederationError(f"{folder} does not keep the contract: {done.stdout}{done.stderr}")


if __name__ == "__main__":
    sys.exit(main())

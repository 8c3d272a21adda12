"""`make run`: the federation in Flower's simulation, nothing left behind, the run folder's path as the last line."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

from rich.console import Console

from llm_qfl.cli.flower import (
    check_overrides,
    command_environment,
    environment,
    project_folder,
    readable,
    run_command,
    run_id_of,
    run_status,
    stage_app,
    start_superlink,
)
from llm_qfl.cli.processes import Interrupted, Processes, signals_raise
from llm_qfl.cli.screen import Screen
from llm_qfl.federation.errors import FederationError, LlmQflError
from llm_qfl.federation.logs import is_line

KEPT_LOGS = 20
OWN_ERRORS = "llm_qfl.federation.errors."


def main(arguments: list[str] | None = None) -> int:
    """Run it.

    Args:
        arguments: command line; default: that of the process.

    Returns:
        Exit code: 0 where the run finished, 128 + signal where one ended it, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m llm_qfl.cli.launch", description=__doc__)
    parser.add_argument("--sites", type=int, default=4, help="simulated sites (default 4)")
    parser.add_argument(
        "--config", default="", help="""run-config overrides, TOML: 'data.source="digits" server.rounds=10'"""
    )
    options = parser.parse_args(arguments)
    if options.sites < 1:
        parser.error(f"--sites: expected at least 1, got {options.sites}")
    try:
        with signals_raise():
            check_overrides(options.config)
            folder = simulate(project_folder(), options.sites, options.config)
    except Interrupted as signal:
        print(f"stopped by {signal}; every process of the run has ended", file=sys.stderr)
        return signal.exit_code
    except LlmQflError as error:
        print(f"llm-qfl: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


def simulate(project: Path, sites: int, config: str) -> Path:
    """One run in Flower's simulation, its lines printed as they come.

    Returns:
        The run folder.

    Raises:
        FederationError: the run failed.
    """
    home = project / ".flwr"
    logs = new_log_folder(home)
    with Processes(logs, environment(home, project), project) as processes, Screen(Console()) as screen:
        screen.line(f"starting Flower's simulation of {sites} sites, logs in {logs.relative_to(project)}")
        start_superlink(processes, simulation=True)
        return submit(processes, project, config, screen, f"num-supernodes={sites} client-resources-num-cpus=1")


def submit(processes: Processes, project: Path, config: str, screen: Screen, federation: str | None = None) -> Path:
    """Send the app to the SuperLink that was started, show the run, and see how it ends.

    Args:
        processes: has a SuperLink.
        project: the checkout.
        config: run-config overrides, TOML.
        screen: where to.
        federation: size of the simulated federation.

    Returns:
        The run folder.

    Raises:
        FederationError: the run failed.
    """
    command = run_command(stage_app(project, processes.logs), config, federation)
    child = processes.start("flwr-run", command, piped=True, environment=command_environment(processes))
    run_id, folder = follow(child, processes.log("flwr-run"), screen)
    processes.check()
    if child.wait() or run_id is None:
        raise FederationError(f"flwr run ended with exit code {child.returncode}, see {processes.log('flwr-run')}")
    status = run_status(processes, run_id)
    if status != "finished:completed":
        raise FederationError(f"the run ended as {status}; all that was said: {processes.logs}")
    if folder is None:
        raise FederationError(f"the run ended but named no run folder, see {processes.log('flwr-run')}")
    return folder


def new_log_folder(home: Path) -> Path:
    """A folder for this run's logs; of the older ones the newest few stay."""
    logs = home / "logs"
    for old in sorted(logs.glob("*"))[: -KEPT_LOGS + 1]:
        shutil.rmtree(old, ignore_errors=True)  # another run may be at it too
    return logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


def follow(child: Popen[str], log: Path, screen: Screen) -> tuple[str | None, Path | None]:
    """Show what the app says, keep all in the log, and pick out what is needed.

    Returns:
        Flower's id of the run, and the run folder: the last line that is a folder's path. It is not shown here.
    """
    run_id: str | None = None
    folder: Path | None = None

    def kept() -> Iterator[str]:
        nonlocal run_id
        assert child.stdout is not None
        with open(log, "a", encoding="utf-8") as file:
            for line in child.stdout:
                file.write(line)
                file.flush()
                run_id = run_id or run_id_of(line)
                yield line

    failed = False
    for line in readable(kept()):
        if line.startswith("/") and os.path.isdir(line):  # unlike Path.is_dir, false for any text
            folder = Path(line)
        elif is_line(line):  # JSON log lines, where they were asked for: apart from what a person reads
            print(line, file=sys.stderr, flush=True)
        elif not (failed and line.startswith(OWN_ERRORS)):  # the app has said it better
            screen.line(line)
        failed = failed or line.startswith("the run failed:")
    return run_id, folder


if __name__ == "__main__":
    sys.exit(main())

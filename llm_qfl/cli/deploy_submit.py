"""The one-shot `run` of a deployment: submit the app, show the rounds, print the run folder last."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from llm_qfl.cli.deploy_check import to_toml
from llm_qfl.cli.deploy_nodes import SuperLink
from llm_qfl.cli.flower import CONNECTION, check_overrides, environment, project_folder
from llm_qfl.cli.launch import new_log_folder, submit
from llm_qfl.cli.processes import Interrupted, Processes, signals_raise
from llm_qfl.cli.screen import Screen
from llm_qfl.federation.errors import RunFolderError

START_SECONDS = 120.0
RUNS = "LLM_QFL_RUNS"  # where the folder of runs lies on the machine that reads the last line
HOME = "FLWR_HOME"


def submit_run(link: SuperLink, configs: Sequence[str], output: Path) -> int:
    """Submit, follow, and say how it ended.

    Args:
        link: the SuperLink.
        configs: run-config overrides, TOML; of a key that is given twice the last value counts.
        output: the folder of runs as this process sees it; the server writes it.

    Returns:
        Exit code: 0 where the run finished, 128 + signal where one ended it.

    Raises:
        ConfigError: the overrides are wrong.
        FederationError: the SuperLink does not answer, or the run failed.
        RunFolderError: the run folder cannot be seen from here.
    """
    config = merge(configs)
    project = project_folder()
    home = Path(os.environ.get(HOME) or project / ".flwr")
    try:
        with signals_raise():
            link.wait(START_SECONDS)
            logs = new_log_folder(home)
            with Processes(logs, environment(home, project), project) as processes, Screen(Console()) as screen:
                write_connection(processes.logs, link)
                folder = submit(processes, project, config, screen)
    except Interrupted as signal:
        print(f"stopped by {signal}; the run goes on at the SuperLink: `flwr stop` ends it", file=sys.stderr)
        return signal.exit_code
    print(seen_from_outside(folder, output))
    return 0


def merge(configs: Sequence[str]) -> str:
    """One text of run-config overrides.

    Raises:
        ConfigError: one of them cannot be read, or the app does not take it.
    """
    from flwr.common.config import parse_config_args

    for config in configs:
        check_overrides(config)
    return to_toml(
        {key: value for config in configs if config.strip() for key, value in parse_config_args([config]).items()}
    )


def write_connection(home: Path, link: SuperLink) -> None:
    """The only SuperLink that `flwr` knows with this folder as its home."""
    how = "insecure = true" if link.ca is None else f'root-certificates = "{link.ca.resolve()}"'
    named = f'[superlink.{CONNECTION}]\naddress = "{link.address}"\n{how}\n'
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.toml").write_text(f'[superlink]\ndefault = "{CONNECTION}"\n\n{named}')


def seen_from_outside(folder: Path, output: Path) -> str:
    """The run folder's path on the host, where the environment says where the folder of runs lies there.

    Raises:
        RunFolderError: the run folder is not in the folder of runs.
    """
    outside = os.environ.get(RUNS)
    if not outside:
        return str(folder)
    if not folder.resolve().is_relative_to(output.resolve()):
        raise RunFolderError(f"expected the run folder in {output}, which is mounted from {outside}; got {folder}")
    return str(Path(outside) / folder.resolve().relative_to(output.resolve()))

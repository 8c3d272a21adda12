"""The README's commands, run as they stand."""

import re
from pathlib import Path

import pytest

from llm_qfl.cli.processes import Processes, free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PROJECT = Path(__file__).parents[2]


def block(name: str) -> str:
    """The code block that follows the comment `<!-- tested: name -->` in the README."""
    found = re.search(rf"<!-- tested: {name} -->\s*```\w*\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    assert found, f"README.md has no block marked <!-- tested: {name} -->"
    return found[1]


def test_the_flwr_run_block_trains_and_names_its_folder(checkout, clean_environment, check_run, tmp_path):
    ports = {  # or a SuperLink that the user has running would take the run
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
    }
    home = tmp_path / "home"
    home.mkdir()
    environment = {**clean_environment, **ports, "HOME": str(home)}
    # Flower leaves its SuperLink running: leaving the context ends it.
    with Processes(tmp_path / "logs", environment, checkout) as processes:
        shell = processes.start("shell", ["bash", "-e", "-c", block("flwr-run")], piped=True)
        out, _ = shell.communicate(timeout=280)
    assert shell.returncode == 0, out
    (folder,) = (checkout / "runs").iterdir()
    assert str(folder) in out.splitlines()
    check_run(folder)
    assert not (home / ".flwr").exists()

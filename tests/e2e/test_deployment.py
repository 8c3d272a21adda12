"""A SuperLink and SuperNodes as real processes, each site with its own file."""

import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]


def test_real_nodes_reach_the_weights_of_the_run_in_memory(checkout, clean_environment, check_run):
    done = subprocess.run(
        [checkout / ".venv/bin/python", "-m", "llm_qfl.cli.deploy_check"],
        cwd=checkout, env=clean_environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "same weights as in memory" in done.stdout
    check_run(Path(done.stdout.strip().splitlines()[-1]))

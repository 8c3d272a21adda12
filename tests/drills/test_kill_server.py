"""The server killed twice through Flower's nodes; by hand: `python tests/drills/kill_server.py [--seed N]`."""

import subprocess
import sys
from pathlib import Path

import pytest

DRILL = Path(__file__).with_name("kill_server.py")

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(660)]


def test_a_server_that_is_killed_twice_ends_with_the_weights_of_one_that_is_not():
    """A process of its own: the SuperLink and the nodes end with it."""
    command = [sys.executable, str(DRILL), "--seed", "1", "--limit", "600"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=640)
    assert done.returncode == 0, done.stdout + done.stderr
    kills = [line.split() for line in done.stdout.splitlines() if line.startswith(("ServerApp", "SuperLink"))]
    assert [line[-2] for line in kills] == ["0", "0"]  # closed rounds lost
    assert "final weights equal: yes" in done.stdout

"""Kills through Flower's nodes; by hand: `python tests/drills/kill_flower.py [--node]`."""

import subprocess
import sys
from pathlib import Path

import pytest

DRILL = Path(__file__).with_name("kill_flower.py")

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(420)]


@pytest.mark.parametrize(("options", "kills"), [([], "3"), (["--node"], "1")])
def test_what_is_killed_over_paid_jobs_pays_for_nothing_twice_and_loses_nothing(options, kills):
    """A process of its own: the SuperLink, the nodes and the service end with it."""
    command = [sys.executable, str(DRILL), *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    (total,) = [line.split() for line in done.stdout.splitlines() if line.startswith("all ")]
    assert total == ["all", kills, "0", "0"]  # kills, submitted twice, lost

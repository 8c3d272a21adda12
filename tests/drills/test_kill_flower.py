"""Three kills through Flower's nodes; by hand: `python tests/drills/kill_flower.py`."""

import subprocess
import sys
from pathlib import Path

import pytest

DRILL = Path(__file__).with_name("kill_flower.py")

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(420)]


def test_client_apps_that_are_killed_pay_for_nothing_twice_and_lose_nothing():
    """A process of its own: the SuperLink, the nodes and the service end with it."""
    done = subprocess.run([sys.executable, str(DRILL)], check=False, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    (total,) = [line.split() for line in done.stdout.splitlines() if line.startswith("all ")]
    assert total == ["all", "3", "0", "0"]  # kills, submitted twice, lost

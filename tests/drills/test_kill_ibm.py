"""A few kills of the drill; all 97 are `python tests/drills/kill_ibm.py` (`make drills`)."""

import subprocess
import sys
from pathlib import Path

import pytest

DRILL = Path(__file__).with_name("kill_ibm.py")
DISARMED = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import kill_ibm
kill_ibm.arm = lambda point: None
kill_ibm.POINTS = kill_ibm.POINTS[:2]
sys.exit(kill_ibm.main())
"""


@pytest.mark.slow
def test_no_kill_pays_twice_or_loses_a_result():
    """A process of its own: the drill forks, and must do so before there are threads."""
    command = [sys.executable, str(DRILL), "--kills", "12", "--seed", "1"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    _, _, killed, _, twice, lost = done.stdout.splitlines()[-2].split()
    assert (killed, twice, lost) == ("12", "0", "0")


@pytest.mark.slow
def test_a_drill_that_kills_nothing_fails():
    command = [sys.executable, "-c", DISARMED, str(DRILL.parent), "--kills", "2"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "0 runs with a kill, expected 2" in done.stdout

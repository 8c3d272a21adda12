"""A few kills of the drill; all 97 are `python tests/drills/kill_ibm.py` (`make drills`)."""

import subprocess
import sys
from pathlib import Path

import pytest

DRILL = Path(__file__).with_name("kill_ibm.py")


@pytest.mark.slow
def test_no_kill_pays_twice_or_loses_a_result():
    """A process of its own: the drill forks, and must do so before there are threads."""
    command = [sys.executable, str(DRILL), "--kills", "12", "--seed", "1"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-2].split()[3:] == ["0", "0"]

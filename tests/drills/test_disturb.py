"""Disturbances, each once; by hand, and all of them: `python tests/drills/disturb.py [--kind KIND] [--seed N]`.

The server's death has a test of its own; what differs from one of these in little is left to `make drills`.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DRILL = Path(__file__).with_name("disturb.py")
KINDS = ("node", "superexec", "cut", "disk", "clock", "slow")
BY_HAND = ("server", "superexec-server", "cut-long", "server-clock", "slow-dropped")

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(660)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_disturbed_federation_loses_no_closed_round_and_ends_where_it_must(kind):
    """A process of its own: the SuperLink and the nodes end with it."""
    if kind == "disk" and not may_mount():
        pytest.skip("no right to mount a small disk (unshare --mount)")
    command = [sys.executable, str(DRILL), "--kind", kind, "--seed", "1", "--limit", "600"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=640)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d passed, 0 failed", done.stdout)


def test_no_disturbance_is_forgotten():
    done = subprocess.run(
        [sys.executable, str(DRILL), "--list"], check=True, capture_output=True, text=True, timeout=60
    )
    assert sorted(done.stdout.split()) == sorted(KINDS + BY_HAND)


def may_mount() -> bool:
    """As `disturb.py` does it."""
    done = subprocess.run([sys.executable, str(DRILL), "--may-mount"], check=False, capture_output=True, timeout=60)
    return done.returncode == 0

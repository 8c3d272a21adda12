"""What a command takes, with what it starts and leaves behind."""

import sys

import pytest

from benchmarks.whole_run import watched

HOLD = "import time; held = bytearray(200 << 20); held[::4096] = b'x' * len(held[::4096]); time.sleep(2)"
CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD!r}], start_new_session=True)"


@pytest.mark.skipif(sys.platform != "linux", reason="asks for proportional set sizes")
def test_memory_is_of_all_processes_that_a_command_starts():
    code, seconds, looks = watched([sys.executable, "-c", CHILD])
    assert code == 0
    assert seconds > 2
    assert 200 << 20 < max(looks) < 400 << 20
    assert watched([sys.executable, "-c", "raise SystemExit(3)"])[0] == 3

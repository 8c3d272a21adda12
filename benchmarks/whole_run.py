"""`python -m benchmarks.whole_run [--sites N] [--config KEYS]`: what `make run` takes, start to end.

Seconds by the clock, and the most memory that all its processes have at once. A page that several of them share counts
once (proportional set size); processes that Flower or Ray cut loose from ours are found by a mark in their environment.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence

import psutil

MARK = "LLM_QFL_MEASURED"
EVERY = 0.5  # seconds between two looks


def marked(mark: str) -> Iterator[psutil.Process]:
    """Processes with this mark in their environment."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # gone meanwhile, or another user's


def memory(mark: str) -> int:
    """Bytes that all of them hold now."""
    total = 0
    for process in marked(mark):
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def watched(command: Sequence[str]) -> tuple[int, float, list[int]]:
    """Run a command: exit code, seconds, bytes at every look."""
    mark, started = uuid.uuid4().hex, time.monotonic()
    process = subprocess.Popen(command, env=os.environ | {MARK: mark})
    looks: list[int] = []
    try:
        while process.poll() is None:
            looks.append(memory(mark))
            time.sleep(EVERY)
    finally:
        process.wait()
    return process.returncode, time.monotonic() - started, looks


def main() -> None:
    """Run, then say what it took.

    Raises:
        SystemExit: the run failed, or this system does not say what processes share.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sites", default="4")
    parser.add_argument("--config", default="")
    asked = parser.parse_args()
    if not hasattr(psutil.Process().memory_full_info(), "pss"):
        raise SystemExit("whole_run: expected a system that says what processes share (Linux)")
    code, seconds, looks = watched(
        [sys.executable, "-m", "llm_qfl.cli.launch", "--sites", asked.sites, "--config", asked.config]
    )
    if code:
        raise SystemExit(code)
    most = max(looks) / 2**30
    print(f"\n{seconds:.0f} s by the clock; at most {most:.2f} GiB in all processes at once ({len(looks)} looks)")


if __name__ == "__main__":
    main()

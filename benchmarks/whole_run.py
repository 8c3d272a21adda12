"""`python -m benchmarks.whole_run [--sites N] [--config KEYS]`: what `make run` takes, start to end.

Seconds by the clock, and the most memory that all its processes have at once. A page that several of them share counts
once (proportional set size); processes that Flower or Ray cut loose from ours are found by a mark in their environment.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator

import psutil

MARK = "LLM_QFL_MEASURED"
EVERY = 0.5  # seconds between two looks
MINUTES, GIB = 5, 6  # what the README promises


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


def watch(mark: str, over: threading.Event, peaks: list[int]) -> None:
    """Note the memory until it is over."""
    while not over.wait(EVERY):
        peaks.append(memory(mark))


def main() -> None:
    """Run, then say what it took.

    Raises:
        SystemExit: the run failed.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sites", default="4")
    parser.add_argument("--config", default="")
    asked = parser.parse_args()
    mark, over, peaks = uuid.uuid4().hex, threading.Event(), [0]
    watcher = threading.Thread(target=watch, args=(mark, over, peaks))
    command = [sys.executable, "-m", "llm_qfl.cli.launch", "--sites", asked.sites, "--config", asked.config]
    started = time.monotonic()
    watcher.start()
    try:
        code = subprocess.run(command, check=False, env=os.environ | {MARK: mark}).returncode
    finally:
        over.set()
        watcher.join()
    seconds = time.monotonic() - started
    print(
        f"\n{seconds:.0f} s by the clock (promised: {60 * MINUTES} on two cores); at most {max(peaks) / 2**30:.2f} GiB "
        f"in all its processes at once (promised: below {GIB}), looked at {len(peaks) - 1} times"
    )
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()

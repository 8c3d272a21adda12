"""A client that is ten times slower: its processes run for a tenth of the time and are stopped for the rest."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
from subprocess import Popen

import psutil
from stage import below

PERIOD, SHARE = 10.0, 0.1  # seconds; part of them in which the client runs, long enough for the machine to be fair


class Slower:
    """Within: the ClientApps of a node, whichever it starts, crawl. The node itself does not: its heartbeat is heard.

    Args:
        node: a SuperNode.
    """

    def __init__(self, node: Popen[str]) -> None:
        self._node, self._over = node, threading.Event()
        self._thread = threading.Thread(target=self._crawl, daemon=True)

    def __enter__(self) -> Slower:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(10)

    def _crawl(self) -> None:
        while not self._over.is_set():
            clients = below(self._node, "flwr-clientapp")
            signalled(clients, signal.SIGSTOP)
            self._over.wait((1 - SHARE) * PERIOD)
            signalled(clients, signal.SIGCONT)
            self._over.wait(SHARE * PERIOD)


def signalled(processes: list[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to each that still lives."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)

"""A client that is ten times slower, or more: its processes take as long as ten took before, and miss a deadline."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from subprocess import Popen

import psutil
from stage import below

FACTOR = 10.0
TICK, AWAKE = 0.5, 20  # seconds; a process that is held runs for one of so many of them: its heartbeat is heard


class Slower:
    """Within: the ClientApps of a node are watched, and from `begin` on each takes ten times as long, at least `least`.

    A ClientApp runs for half of its usual time, so that it has told its node that it lives (Flower gives it a minute),
    is then held nearly still, and runs to its end. The node itself is as quick as before.

    Args:
        node: the SuperNode, once it is there.
        least: seconds.
    """

    def __init__(self, node: Callable[[], Popen[str] | None], least: float) -> None:
        self._least = least
        self._node, self._over, self._slow = node, threading.Event(), threading.Event()
        self._seen: dict[psutil.Process, float] = {}
        self.usual = 0.0
        """Seconds that the last ClientApp took before `begin`."""
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Slower:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(10)
        signalled(list(self._seen), signal.SIGCONT)

    def begin(self) -> None:
        """From now on."""
        assert self.usual, "no ClientApp was seen to its end"
        self._slow.set()

    def _watch(self) -> None:
        while not self._over.wait(TICK):
            node, now = self._node(), time.monotonic()
            clients = below(node, "flwr-clientapp") if node is not None else []
            for gone in set(self._seen) - set(clients):
                began = self._seen.pop(gone)
                if not self._slow.is_set():
                    self.usual = now - began
            for client in clients:
                self._treat(client, now - self._seen.setdefault(client, now))

    def _treat(self, client: psutil.Process, age: float) -> None:
        if self._slow.is_set():
            end = max((FACTOR - 0.5) * self.usual, self._least)
            held = self.usual / 2 < age < end and int(age / TICK) % AWAKE
            signalled([client], signal.SIGSTOP if held else signal.SIGCONT)


def signalled(processes: list[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to each that still lives."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)

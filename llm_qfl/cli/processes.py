"""Child processes that are always gone afterwards: started in sessions of their own, ended by process id.

What a child starts belongs to it: Flower's SuperLink starts a SuperExec, which starts a process for each task, which
starts Ray. On Linux this process adopts whatever loses its parent on the way (`PR_SET_CHILD_SUBREAPER`), so that
nothing escapes; elsewhere the tree as it stands at the end is what is ended.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO

import psutil

from llm_qfl.federation.errors import FederationError

GRACE = 8.0  # seconds between the request to end and the kill
PORTS = range(20_000, 32_000)  # above Ray's own, below those that Linux hands out by itself
_given = set[int]()
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


class Interrupted(BaseException):
    """A signal asked this process to end.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)

    @property
    def exit_code(self) -> int:
        """What a shell reports for a process ended by this signal."""
        return 128 + self.number


@contextmanager
def signals_raise() -> Iterator[None]:
    """Within: SIGINT, SIGTERM and SIGHUP raise `Interrupted` (once: clean-up is not interrupted again)."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Processes:
    """A set of child processes; leaving the context ends them and all that they started.

    Args:
        logs: folder of the children's output, one file for each name.
        environment: what they see.
        cwd: where they run.
    """

    def __init__(self, logs: Path, environment: Mapping[str, str], cwd: Path) -> None:
        self.logs, self.environment, self._cwd = logs, dict(environment), cwd
        self._started: dict[str, subprocess.Popen[str]] = {}
        self._others: set[int] = set()

    def __enter__(self) -> Processes:
        self.logs.mkdir(parents=True, exist_ok=True)
        self._others = {child.pid for child in psutil.Process().children(recursive=True)}
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        _prctl(_PR_SET_CHILD_SUBREAPER, 0)

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        piped: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a child. Its output goes to its log file, or with `piped` to the returned process' `stdout`."""
        with open(self.log(name), "a", encoding="utf-8") as log:
            out: int | IO[str] = subprocess.PIPE if piped else log
            child = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.environment if environment is None else dict(environment),
                cwd=self._cwd,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others in order
                preexec_fn=_die_with_parent(),  # noqa: PLW1509 - one call of libc, nothing of Python
            )
        self._started[name] = child
        return child

    def log(self, name: str) -> Path:
        """The log file of a child."""
        return self.logs / f"{name}.log"

    def check(self) -> None:
        """Has a child died?

        Raises:
            FederationError: with its name, its exit code and the end of its log.
        """
        for name, child in self._started.items():
            if child.poll() not in (None, 0):
                raise FederationError(
                    f"{name} ended with exit code {child.returncode}; {self.log(name)} ends:\n{self.tail(name)}"
                )

    def tail(self, name: str, lines: int = 15) -> str:
        """The last lines of a child's log."""
        return "\n".join(self.log(name).read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def wait_until(self, ready: Callable[[], bool], what: str, seconds: float) -> None:
        """Poll until `ready()`.

        Raises:
            FederationError: a child died, or the time is over.
        """
        end = time.monotonic() + seconds
        while not ready():
            self.check()
            if time.monotonic() > end:
                raise FederationError(f"{what}: not after {seconds:.0f} s; see the logs in {self.logs}")
            time.sleep(0.1)

    def ours(self) -> list[psutil.Process]:
        """Every living process that was started here, directly or not."""
        for started in self._started.values():
            started.poll()  # takes the exit code before anything else does
        found = [child for child in psutil.Process().children(recursive=True) if child.pid not in self._others]
        return [child for child in found if _alive(child)]

    def stop(self) -> None:
        """Ask all to end, kill those that do not, and wait for them.

        Raises:
            FederationError: a process survived the kill.
        """
        family = self.ours()  # before their parents are gone
        for child in reversed(self._started.values()):
            if child.poll() is None:
                child.terminate()
        end = time.monotonic() + GRACE
        while (family := _merge(family, self.ours())) and time.monotonic() < end:
            time.sleep(0.1)
        for process in family:
            _kill(process)
        end = time.monotonic() + GRACE
        while (family := _merge(family, self.ours())) and time.monotonic() < end:
            for process in family:  # what was being started while its parent was killed
                _kill(process)
            time.sleep(0.05)
        for child in self._started.values():
            # A process is a zombie while threads of it still end; only then can it be reaped.
            with suppress(subprocess.TimeoutExpired):
                child.wait(GRACE)
            if child.stdout is not None:
                child.stdout.close()
        self._started.clear()
        family = _merge(family, self.ours())  # once more: the dead whose parents died after them are reaped too
        if family:
            raise FederationError(f"still running after a kill: {', '.join(str(process.pid) for process in family)}")


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on now, and that this process was not given before.

    It is used seconds later, so it is none of those that the system hands out by itself meanwhile.

    Raises:
        FederationError: a hundred ports were all taken.
    """
    tried = random.SystemRandom().sample(PORTS, min(100, len(PORTS)))
    for port in (port for port in tried if port not in _given):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a closed one need not rest
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port
    raise FederationError(f"no free port among {len(tried)} of {PORTS.start} to {PORTS.stop - 1} on this machine")


def _merge(known: list[psutil.Process], now: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in {*known, *now} if _alive(process)]


def _alive(process: psutil.Process) -> bool:
    """Running, and not a zombie; a zombie of ours is reaped."""
    try:
        if process.status() != psutil.STATUS_ZOMBIE:
            return bool(process.is_running())
        if process.ppid() == os.getpid():
            process.wait(timeout=0)
    except (psutil.NoSuchProcess, psutil.TimeoutExpired, ChildProcessError):
        pass
    return False


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()  # psutil checks the creation time: a process id that was given away again is not hit
    except psutil.NoSuchProcess:
        return


def _prctl(option: int, value: int) -> None:
    """Linux only; elsewhere nothing."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(option, value, 0, 0, 0):
            raise FederationError(f"prctl({option}, {value}): {os.strerror(ctypes.get_errno())}")


def _die_with_parent() -> Callable[[], object] | None:
    """What a child runs first: it is asked to end when this process is killed (Linux)."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

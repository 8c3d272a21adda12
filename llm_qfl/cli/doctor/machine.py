"""Python, disk, memory, cores, and the way to the SuperLink."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path

from llm_qfl.cli.doctor.check import Check
from llm_qfl.cli.doctor.node import Node
from llm_qfl.federation.errors import ConfigError

OLDEST = (3, 11)
TESTED = (3, 11)
"""The version that constraints.txt was made with."""
MIB, GIB = 2**20, 2**30
LEAST_DISK, SCARCE_DISK = 100 * MIB, GIB
SCARCE_MEMORY = GIB
CONNECT_SECONDS = 5.0
CGROUP = Path("/sys/fs/cgroup")
MEMORY = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
"""Limit, use and statistics of a container's memory: control groups of version 2, then of version 1."""
_COMPLEX_BYTES, _STATES = 16, 3  # an adjoint gradient holds the state, a bra and a copy


def check_python() -> Check:
    """Is it one that llm-qfl runs on?"""
    found = f"{platform.python_implementation()} {platform.python_version()} in {sys.prefix}"
    if sys.version_info[:2] < OLDEST:
        return Check("Python", "fail", found, "llm-qfl needs Python 3.11 or newer: make PYTHON=python3.11")
    if sys.version_info[:2] != TESTED:
        return Check("Python", "ok", f"{found}; this release was tested with {'.'.join(map(str, TESTED))}")
    return Check("Python", "ok", found)


def check_disk(folder: Path) -> Check:
    """Room in the site's folder, and do write, sync, rename and lock work there: the ledger of jobs lives by them."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    name = f"{folder}" if place == folder.absolute() else f"{folder} (to be made in {place})"
    if not place.is_dir():
        return Check("disk", "fail", f"{place} is not a folder", "name another folder in node config")
    free = shutil.disk_usage(place).free
    try:
        seconds = _write_durably(place)
    except OSError as error:
        why = f"{name}: cannot write, sync, rename and lock a file there ({type(error).__name__}: {error.strerror})"
        return Check("disk", "fail", why, "give this user the right to write, or name a folder on a local disk")
    found = f"{name}: {free / GIB:.1f} GiB free; write, sync, rename and lock in {1000 * seconds:.0f} ms"
    if free < SCARCE_DISK:
        return Check("disk", "fail" if free < LEAST_DISK else "warn", found, "free at least 1 GiB")
    return Check("disk", "ok", found)


def _write_durably(folder: Path) -> float:
    """As the ledger writes; returns the seconds that it took, and leaves nothing."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=".llm-qfl-doctor-", dir=folder) as inside:
        partial, whole = Path(inside, "probe.tmp"), Path(inside, "probe")
        with partial.open("wb") as file:
            file.write(b"probe")
            file.flush()
            os.fsync(file.fileno())
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        partial.replace(whole)
        handle = os.open(inside, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    return time.monotonic() - started


def check_memory(node: Node | None) -> Check:
    """What is free now, and does the state vector of the circuit fit?"""
    free, limit = available_memory()
    found = f"{free / GIB:.1f} GiB available of {limit / GIB:.1f} GiB"
    if node is not None and any(not name.startswith("ibm:") for name in node.places):
        qubits = node.config.quantum.qubits
        needed = _STATES * _COMPLEX_BYTES * 2**qubits
        if needed > free:
            return Check(
                "memory", "fail", f"{found}; simulating {qubits} qubits takes {needed / GIB:.1f} GiB",
                "lower quantum.qubits",
            )  # fmt: skip
    if free < SCARCE_MEMORY:
        return Check("memory", "warn", found, "a site takes about .5 GiB; end other programs")
    return Check("memory", "ok", found)


def available_memory() -> tuple[int, int]:
    """Bytes that are available, and all: of the machine, or of the container where that is less."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    free = total  # all that macOS tells
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():  # counts what the kernel would give back, which the free pages do not
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    for names in MEMORY:
        most, used = (_number(CGROUP / name) for name in names[:2])
        if most is not None and most < total:
            held = max((used or 0) - _reclaimable(CGROUP / names[2]), 0)
            total, free = most, min(free, max(most - held, 0))
    return free, total


def _number(path: Path) -> int | None:
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdigit() else None


def _reclaimable(path: Path) -> int:
    """Bytes of files that the kernel drops when they are wanted: they count as used, and are not."""
    lines = path.read_text().splitlines() if path.is_file() else []
    found = {name: int(value) for name, _, value in (line.partition(" ") for line in lines) if value.isdigit()}
    return found.get("total_inactive_file", found.get("inactive_file", 0))


def check_cores() -> Check:
    """How many cores this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    limit = "" if quota is None or quota >= usable else f", for {quota:g} of their time (the container's limit)"
    return Check("cores", "ok", f"{usable} usable of {os.cpu_count()}{limit}")


def cpu_quota() -> float | None:
    """Processors' worth of time that a container may use; None where there is no limit."""
    whole = CGROUP / "cpu.max"
    if whole.is_file():
        quota, period = whole.read_text().split()
        return int(quota) / int(period) if quota.isdigit() else None
    found, period_us = (_number(CGROUP / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return found / period_us if found and period_us else None


def check_superlink(address: str) -> Check:
    """Does a SuperLink answer at `host:port`?

    Raises:
        ConfigError: not an address.
    """
    from llm_qfl.cli.flower import healthy

    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ConfigError(f"--superlink: expected host:port, got {address!r}; e.g. 127.0.0.1:8000")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        why = f"{address} cannot be reached ({type(error).__name__}: {error})"
        return Check("SuperLink", "fail", why, "check name, port, firewall, and that the SuperLink runs")
    if healthy(address):
        return Check("SuperLink", "ok", f"{address} answers as a SuperLink, without TLS")
    return Check(
        "SuperLink", "warn", f"{address} accepts connections, but does not answer as a SuperLink without TLS",
        "if it has TLS all may be well; else check the port",
    )  # fmt: skip

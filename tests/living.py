"""Looking at processes that may end between one look and the next."""

import psutil


def alive(process: psutil.Process) -> bool:
    """Running, and not a zombie."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def name(process: psutil.Process) -> str:
    """Of a process that has ended: nothing."""
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""

"""A small pool of threads for kernels that release the interpreter lock; made on first use, made anew after a fork."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from llm_qfl.federation.errors import CircuitError

_lock = Lock()
_pool: ThreadPoolExecutor | None = None
_MOST_THREADS = 256


def available_threads() -> int:
    """`LLM_QFL_THREADS`, else the processors that this process may use."""
    text = os.environ.get("LLM_QFL_THREADS")
    if text is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isdigit() or int(text) < 1:
        raise CircuitError(f"LLM_QFL_THREADS must be a positive integer, got {text!r}")
    return int(text)


def run_shares(work: Callable[[int, int], None], count: int, threads: int) -> None:
    """Call `work(first, last)` on `threads` consecutive shares of `range(count)`; the caller's thread takes one."""
    threads = max(1, min(threads, count))
    if threads == 1:
        work(0, count)
        return
    cuts = [count * i // threads for i in range(threads + 1)]
    pool = _shared_pool()
    futures = [pool.submit(work, cuts[i], cuts[i + 1]) for i in range(1, threads)]
    try:
        work(cuts[0], cuts[1])
    finally:
        errors = [future.exception() for future in futures]  # also waits: nobody may write behind our back
    for error in errors:
        if error is not None:
            raise error


def _shared_pool() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:  # threads are started as they are needed, never this many at once
            _pool = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="llm-qfl-exact")
        return _pool


def _forget() -> None:
    """In a forked child no thread of the pool lives, and the lock may be held by one that is gone."""
    global _pool, _lock
    _pool, _lock = None, Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

"""Compiled kernels, found again by what they are and not by where they lie.

A node starts a process for every message and Flower unpacks each app version into a new folder, in which numba's own
cache (keyed by path and time of the source) finds nothing. Here code lies in `<root>/<digest>/`, the digest being that
of the kernels' source and of everything else that their machine code depends on; within it, numba's index is keyed by
signature and processor. The folder may be read-only, and any number of processes may write at once.

`root` is `LLM_QFL_KERNEL_CACHE`, else `<sys.prefix>/share/llm-qfl/kernels` where that is writable or holds this
digest, else `~/.cache/llm-qfl/kernels`.

An image may run on another processor than built it. `precompile` therefore also compiles for portable targets, and
`choose_target` takes the best one that is installed and that this processor can run: its own, x86-64-v3, any x86-64.
"""
# mypy: disable-error-code="misc,no-any-return,no-untyped-call"
# ruff: noqa: ANN401 - numba hands over objects of its own

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import config
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.registry import cpu_target

log = logging.getLogger(__name__)

SOURCES = ("lanes.py", "blocks.py", "backward.py", "kernels.py", "trajectories.py")
_PORTABLE = "x86-64-v3"
_PORTABLE_FEATURES = (
    "avx",
    "avx2",
    "bmi",
    "bmi2",
    "cmov",
    "cx16",
    "cx8",
    "f16c",
    "fma",
    "fxsr",
    "lzcnt",
    "mmx",
    "movbe",
    "popcnt",
    "sahf",
    "sse",
    "sse2",
    "sse3",
    "sse4.1",
    "sse4.2",
    "ssse3",
    "xsave",
)


@dataclass(frozen=True)
class Target:
    """A processor to compile for: LLVM's name and features; `name` is that of its marker file."""

    name: str
    cpu: str
    features: str


def host_target() -> Target:
    """The processor of this process."""
    from llvmlite import binding
    from numba.core.codegen import get_host_cpu_features

    cpu, features = binding.get_host_cpu_name(), get_host_cpu_features()
    digest = hashlib.sha256(f"{cpu}{features}".encode()).hexdigest()[:12]
    return Target(f"host-{cpu}-{digest}", cpu, features)


def portable_targets() -> list[Target]:
    """Targets for processors unknown, best first; empty where this is no x86-64."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return []
    features = ",".join(f"+{f}" for f in _PORTABLE_FEATURES)
    return [Target(_PORTABLE, _PORTABLE, features), Target("x86-64", "x86-64", "")]


def runs_here(target: Target) -> bool:
    """Has this processor all features of the target?"""
    from llvmlite import binding

    have = binding.get_host_cpu_features()
    return all(have.get(f[1:], False) for f in target.features.split(",") if f.startswith("+"))


@cache
def digest() -> str:
    """Digest of what the machine code depends on, the processor apart."""
    state = hashlib.sha256()
    folder = Path(__file__).parent
    for name in SOURCES:
        tree = ast.parse((folder / name).read_text(encoding="utf-8"))  # a comment changes no machine code
        state.update(ast.dump(tree).encode())
    versions = (numba.__version__, llvmlite.__version__, platform.python_version(), platform.machine(), sys.platform)
    state.update(repr(versions).encode())
    return state.hexdigest()[:32]


@cache
def cache_folder() -> Path:
    """Folder of the compiled kernels; need not exist yet."""
    named = os.environ.get("LLM_QFL_KERNEL_CACHE")
    if named:
        return Path(named) / digest()
    installed = Path(sys.prefix) / "share" / "llm-qfl" / "kernels" / digest()
    if installed.is_dir() or _can_make(installed):
        return installed
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "llm-qfl" / "kernels" / digest()


def _can_make(folder: Path) -> bool:
    existing = next(p for p in folder.parents if p.exists())
    return os.access(existing, os.W_OK)


def choose_target() -> Target | None:
    """The best installed target that runs here; None: nothing is installed, kernels will be compiled."""
    return next((t for t in (host_target(), *portable_targets()) if _marker(t).exists() and runs_here(t)), None)


def mark(target: Target) -> None:
    """Note that every kernel is compiled for a target."""
    path = _marker(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps({"cpu": target.cpu, "features": target.features}), encoding="utf-8")
    scratch.replace(path)


def _marker(target: Target) -> Path:
    return cache_folder() / f"{target.name}.json"


def use_target(target: Target) -> None:
    """Compile for, and look for code of, a target. Numba fixes its target at the first compilation of a process."""
    config.CPU_NAME, config.CPU_FEATURES = target.cpu, target.features


class _Locator:
    """Where numba keeps the code of one function: the folder by content, whatever the path of the source."""

    def __init__(self, py_file: str) -> None:
        self._py_file = py_file

    def ensure_cache_path(self) -> None:
        cache_folder().mkdir(parents=True, exist_ok=True)

    def get_cache_path(self) -> str:
        return str(cache_folder())

    def get_source_stamp(self) -> str:
        return digest()

    def get_disambiguator(self) -> str:
        return "0"

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> _Locator:
        return cls(py_file)


class _Impl(CompileResultCacheImpl):
    def __init__(self, py_func: Any) -> None:
        # Not the parent's: NUMBA_CACHE_LOCATOR_CLASSES and NUMBA_CACHE_DIR must not move installed code.
        self._lineno = py_func.__code__.co_firstlineno
        self._locator = _Locator(py_func.__code__.co_filename)
        self._filename_base = self.get_filename_base(py_func.__qualname__, getattr(sys, "abiflags", ""))


class KernelCache(FunctionCache):
    """Numba's cache of one function, in our folder."""

    _impl_class = _Impl

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Compiled code, or None; damaged files count as none."""
        try:
            found = super().load_overload(sig, target_context)
        except Exception as error:  # noqa: BLE001 - unpickling a damaged file raises anything
            log.warning("compiled kernels in %s cannot be read (%s): compiling anew", cache_folder(), error)
            return None
        if found is None:
            log.warning(
                "no compiled kernel %s in %s: compiling, which takes some seconds; "
                "`python -m llm_qfl.quantum.exact.precompile` does it once",
                self._py_func.__name__,
                cache_folder(),
            )
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep compiled code, one process at a time; a folder that cannot be written is said, not fatal."""
        try:
            with _locked(cache_folder()):
                super().save_overload(sig, data)
        except OSError as error:
            log.warning("compiled kernels cannot be kept in %s: %s", cache_folder(), error)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Numba numbers its files without a lock: two writers could mix up two signatures."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def adopt_target() -> None:
    """Choose the processor to compile for. Numba fixes it when the first function is decorated: call this before."""
    chosen = choose_target()
    if chosen is None or config.CPU_NAME is not None or chosen.name == host_target().name:
        return
    if "_toplevel_target_context" in vars(cpu_target):
        log.warning(
            "numba was used before llm_qfl.quantum.exact was imported: the installed portable kernels (%s) "
            "cannot be used and will be compiled; import it first",
            chosen.name,
        )
        return
    use_target(chosen)


def install(*dispatchers: Any) -> None:
    """Let compiled functions live in our cache."""
    for dispatcher in dispatchers:
        dispatcher._cache = KernelCache(dispatcher.py_func)  # what `cache=True` does, with another locator

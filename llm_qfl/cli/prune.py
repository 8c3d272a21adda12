"""`llm-qfl prune`: delete run folders, launch logs and models that nobody wants, and say of each why it goes or stays.

What stays whatever is asked: the folder of a run that a process works on. What stays unless it is asked for: a run that
did not reach its end and could go on (`server.resume`). What is not named like a run or a launch is not touched.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm_qfl.federation.errors import ConfigError
from server_app.checkpoint import FOLDER, LOCK, MANIFEST
from server_app.lines import size

RUN = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")
LAUNCH = re.compile(r"(\d{8}-\d{6})-(\d+)")
MODEL = re.compile(r"[0-9a-f]{64}")
KINDS = ("run", "log", "model")
JUST_NOW = 600.0
"""Seconds: a run folder without a lock that changed so lately may be one that begins."""
DAY = 86400.0

Ended = Literal["yes", "no", "running"]


@dataclass(frozen=True)
class Terms:
    """What goes.

    Attributes:
        keep: the newest so many of each kind stay; None: no number protects.
        days: what changed in so many days stays; None: no age protects.
        unfinished: do runs go that could go on?
    """

    keep: int | None = None
    days: float | None = None
    unfinished: bool = False

    def __post_init__(self) -> None:
        if self.keep is None and self.days is None:
            raise ConfigError("prune: say what goes: --keep N (all but the newest N), --older-than DAYS, or both")


@dataclass(frozen=True)
class Entry:
    """A folder.

    Attributes:
        path: where it lies.
        kind: what it is.
        state: in a word.
        ended: did it reach its end?
        changed: last change, seconds since 1970.
        size: bytes.
        goes: is it to be deleted?
        why: it goes or stays.
    """

    path: Path
    kind: Literal["run", "log", "model"]
    state: str
    ended: Ended
    changed: float
    size: int
    goes: bool = False
    why: str = ""


def plan(
    runs: Path | None, logs: Path | None, terms: Terms, now: float | None = None, models: Path | None = None
) -> list[Entry]:
    """Every folder with what becomes of it, newest first.

    Args:
        runs: the folder of run folders, or None where there is none.
        logs: that of launch logs, or None to leave them alone.
        terms: what goes.
        now: seconds since 1970.
        models: that of compressed models, or None to leave them alone.

    Raises:
        ConfigError: there is no such folder, or it is itself a run's.
    """
    if runs is not None and not runs.is_dir():
        raise ConfigError(f"prune: expected the folder of run folders, got {runs}, which is none")
    if runs is not None and RUN.fullmatch(runs.resolve().name):
        raise ConfigError(f"prune: {runs} is a run folder itself; name the folder that holds it")
    if models is not None and not models.is_dir():
        raise ConfigError(f"prune: expected the folder of compressed models, got {models}, which is none")
    now = time.time() if now is None else now
    found = [] if runs is None else [_run(path, now) for path in _named(runs, RUN)]
    launches = [] if logs is None or not logs.is_dir() else [_launch(path) for path in _named(logs, LAUNCH)]
    kept = [] if models is None else _models(models, [one.path for one in found if one.ended == "running"])
    return [one for entries in (found, launches, kept) for one in _judge(entries, terms, now)]


def remove(entry: Entry) -> None:
    """Delete what is to go; nobody can begin to work on a run meanwhile.

    Raises:
        BlockingIOError: somebody works on it by now.
        OSError: it cannot be deleted.
    """
    with _held(entry.path):
        hidden = entry.path.with_name(f".pruned-{entry.path.name}")
        entry.path.rename(hidden)  # from here on it is no run folder, even if what follows is interrupted
        shutil.rmtree(hidden)


def remove_all(entries: Sequence[Entry]) -> list[str]:
    """Delete what is to go; returns what could not be deleted, and why."""
    problems = []
    for entry in entries:
        if entry.goes:
            try:
                remove(entry)
            except BlockingIOError:
                problems.append(f"{entry.path}: stays, a process works on it by now")
            except OSError as error:
                problems.append(f"{entry.path}: not deleted, or not whole ({error.strerror}: {error.filename})")
    return problems


def launch_logs(project: Path) -> Path:
    """Where `make run` and `llm-qfl deploy submit` keep what their processes say."""
    return Path(os.environ.get("FLWR_HOME") or project / ".flwr") / "logs"


def show(entries: Sequence[Entry], console: Console, *, dry_run: bool, now: float | None = None) -> None:
    """A line for each folder, and one that sums up."""
    now = time.time() if now is None else now
    table = Table(box=None, padding=(0, 1), show_header=False)
    for _ in range(4):
        table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    for one in entries:
        word = ("would go" if dry_run else "goes") if one.goes else "stays"
        age = f"{max(now - one.changed, 0) / DAY:.1f} days"
        cells = (word, one.kind, one.path.name[:24], age, size(one.size), f"{one.state}: {one.why}")
        table.add_row(*(Text(cell, style="" if one.goes else "dim") for cell in cells))
    if entries:
        console.print(table)
    going = [one for one in entries if one.goes]
    counts = {kind: sum(one.kind == kind for one in going) for kind in KINDS}
    words = ", ".join(_plural(count, kind) for kind, count in counts.items() if count) or "nothing"
    done = "would be deleted" if dry_run else "to delete"
    console.print(Text(f"{words} {done}, {size(sum(one.size for one in going))}", style="bold"))


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")


def _named(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    return [
        path for path in folder.iterdir() if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]


def _run(path: Path, now: float) -> Entry:
    size_, changed = _measure(path)
    state, ended = _state(path, now - changed)
    return Entry(path, "run", state, ended, changed, size_)


def _state(path: Path, age: float) -> tuple[str, Ended]:
    """How a run stands, by its lock, its summary and its checkpoint."""
    lock = path / FOLDER / LOCK
    if lock.exists():
        try:
            with _held(path):
                pass
        except BlockingIOError:
            return "running", "running"
        except OSError as error:
            return f"its lock cannot be tried ({error.strerror})", "no"
    elif age < JUST_NOW and not (path / "summary.json").exists():
        return "may be about to begin", "running"
    try:
        status = str(json.loads((path / "summary.json").read_text(encoding="utf-8"))["status"])
    except FileNotFoundError:
        return "did not reach its end", "no"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its summary.json cannot be read ({type(error).__name__})", "no"
    if status == "failed" and (path / FOLDER / MANIFEST).exists():
        return "failed, and could go on", "no"
    return status, "yes"


def _launch(path: Path) -> Entry:
    size_, changed = _measure(path)
    running = _alive(path.name)
    return Entry(
        path, "log", "of a run under way" if running else "ended", "running" if running else "yes", changed, size_
    )


def _models(folder: Path, running: Sequence[Path]) -> list[Entry]:
    """Compressed models: a site's lie in the folder, a server's in `compressed`; what is missing is had again.

    Args:
        folder: of the models.
        running: folders of runs under way, whose sites may still fetch theirs.
    """
    wanted: set[str | None] = set()
    for run in running:
        try:
            language = json.loads((run / "config.json").read_text(encoding="utf-8"))["language"]
            wanted.add("" if language is None else str(language["sha256"]))
        except (OSError, ValueError, KeyError, TypeError):  # it begins: its model is not known yet
            wanted.add(None)
    places = [place for place in (folder, folder / "compressed") if place.is_dir()]
    entries = []
    for path in (path for place in places for path in _named(place, MODEL)):
        size_, changed = _measure(path)
        used = path.parent.name == "compressed" and (path.name in wanted or None in wanted)
        state = "may be of a run under way" if used else "compressed model"
        entries.append(Entry(path, "model", state, "running" if used else "yes", changed, size_))
    return entries


def _alive(name: str) -> bool:
    """Is the process that this launch was named by still there? Its number may have been given away again."""
    found = LAUNCH.fullmatch(name)
    assert found is not None
    began = time.mktime(time.strptime(found[1], "%Y%m%d-%H%M%S"))
    try:
        return bool(psutil.Process(int(found[2])).create_time() <= began + 1)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _judge(entries: Sequence[Entry], terms: Terms, now: float) -> list[Entry]:
    """Newest first; the newest `keep` are counted among those that could go."""
    judged, counted = [], 0
    for one in sorted(entries, key=lambda entry: (-entry.changed, entry.path.name)):
        goes, why = False, ""
        if one.ended == "running":
            why = "never deleted"
        elif one.ended == "no" and not terms.unfinished:
            why = "only with --unfinished"
        else:
            counted += 1
            age = (now - one.changed) / DAY
            if terms.keep is not None and counted <= terms.keep:
                why = f"among the newest {terms.keep}"
            elif terms.days is not None and age < terms.days:
                why = f"not older than {terms.days:g} days"
            else:
                goes, why = True, _reason(terms)
        judged.append(replace(one, goes=goes, why=why))
    return judged


def _reason(terms: Terms) -> str:
    words = [] if terms.keep is None else [f"not among the newest {terms.keep}"]
    words += [] if terms.days is None else [f"older than {terms.days:g} days"]
    return " and ".join(words)


def _measure(path: Path) -> tuple[int, float]:
    """Bytes of all files below, and when the newest of them changed; links are not followed."""
    total, changed = 0, path.stat().st_mtime
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                about = os.lstat(os.path.join(folder, name))
            except FileNotFoundError:
                continue  # a run that is under way replaces its files
            total, changed = total + about.st_size, max(changed, about.st_mtime)
    return total, changed


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a run folder as its server would; a launch log has nothing to hold.

    Raises:
        BlockingIOError: a process works on it.
    """
    lock = path / FOLDER / LOCK
    if not lock.exists():
        yield
        return
    with open(lock, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield

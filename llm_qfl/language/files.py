"""Files of models: hashed, written whole or not at all, refused before they fill a disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from llm_qfl.federation.errors import LanguageError

CHUNK = 1 << 20
SPARE = 64 << 20  # bytes that stay free on any disk we write to


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    total = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(CHUNK):
            total.update(block)
    return total.hexdigest()


def cached_digest(path: Path) -> str:
    """SHA-256 of a file, read again only when its size or its time of change is another.

    The answer is kept beside the file where the folder can be written, else computed each time.
    """
    stat = path.stat()
    mark = [stat.st_size, stat.st_mtime_ns]
    note = path.with_name(f".{path.name}.sha256.json")
    try:
        known = json.loads(note.read_text())
        if known["mark"] == mark:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no note, or not ours: the file itself is the truth
    digest = file_digest(path)
    if os.access(path.parent, os.W_OK):
        part = note.with_name(f"{note.name}.{os.getpid()}")
        part.write_text(json.dumps({"mark": mark, "sha256": digest}))
        part.replace(note)
    return digest


def need_room(folder: Path, size: int, what: str) -> None:
    """Refuse what will not fit.

    Raises:
        LanguageError: where the disk has less than `size` bytes and a reserve.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < size + SPARE:
        raise LanguageError(
            f"no room on disk for {what}: {folder} needs {size / 1e6:.1f} MB and {SPARE / 1e6:.0f} MB to spare, "
            f"it has {free / 1e6:.1f} MB; free some, or name another folder"
        )


def write_folder(
    target: Path,
    write: Callable[[Path], None],
    *,
    size: int,
    what: str,
    whole: Callable[[Path], bool] = lambda _: False,
) -> None:
    """Fill a new folder beside `target`, then rename it: another process sees all of it or none, and may read it.

    Args:
        target: the folder; one that is there already is replaced, unless it is whole.
        write: fills the folder that it is given.
        size: about how many bytes it will write.
        what: what is written, for the message.
        whole: is this what would have been written? Another process may have been faster, and may use it already.

    Raises:
        LanguageError: where there is no room or the folder cannot be written.
    """
    need_room(target, size, what)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            write(part)
            _readable(part)
            if target.exists() and not whole(target):
                shutil.rmtree(target)
            try:
                part.rename(target)  # fails where a folder is that is not empty: one that is whole, or came just now
            except OSError:
                if not whole(target):
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise LanguageError(f"cannot write {what} to {target}: {error.strerror or error}") from error


def _readable(folder: Path) -> None:
    """A static web server under another user serves these files: libraries make some for their owner alone."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        LanguageError: where it is not there or is none.
    """
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise LanguageError(f"{what}: expected a JSON file at {path}: {error}") from error
    if not isinstance(data, dict):
        raise LanguageError(f"{what}: expected a JSON object in {path}, got {type(data).__name__}")
    return data


def check_tensor_files(paths: Iterable[Path]) -> None:
    """Refuse a safetensors file that is cut short or is none, before anything is loaded from it.

    Raises:
        LanguageError: naming the file.
    """
    for path in paths:
        try:
            with safe_open(path, framework="pt") as opened:
                opened.keys()
        except (SafetensorError, OSError) as error:
            raise LanguageError(f"{path} is no whole safetensors file (cut short?): {error}; fetch it again") from error


def digest_of_files(files: Mapping[str, str]) -> str:
    """One SHA-256 for several files, from their names and digests."""
    return hashlib.sha256(json.dumps(dict(sorted(files.items()))).encode()).hexdigest()

"""The files of a checkpoint: parts that are written first, and one small file whose replacement makes them count.

`checkpoint/checkpoint.json` names the round, each part's file with its SHA-256, and how many bytes of the ledger's
files belong to the rounds up to it. A part that did not change stays the file that it was. Whatever the moment at
which the server dies, the folder holds one whole checkpoint: the former one until the rename, this one from then on.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from llm_qfl.federation.errors import RunFolderError

Json = dict[str, Any]
Arrays = Mapping[str, NDArray[Any]]

FORMAT = 1
FOLDER, MANIFEST, LOCK, DECISION = "checkpoint", "checkpoint.json", "lock", "decision"
LEDGERS = ("rounds.jsonl", "decisions.jsonl")


@dataclass(frozen=True)
class Checkpoint:
    """What a run folder holds of a run after its last closed round; every part's bytes are those that were written.

    Attributes:
        server_round: the round; 0 before the first.
        documents: JSON parts by name.
        arrays: parts of named arrays by name.
        positions: bytes of each of the ledger's files that belong to rounds up to this one.
    """

    server_round: int
    documents: Mapping[str, Json]
    arrays: Mapping[str, Arrays]
    positions: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class LanguageMemory:
    """What the language model of a run is after a round.

    Attributes:
        arrays: of `LanguageSession.memory_arrays`.
        document: of `LanguageSession.memory`.
    """

    arrays: Arrays
    document: Json


class CheckpointWriter:
    """Writes the checkpoints of one run, whose folder it holds for itself.

    Args:
        folder: the run folder.

    Raises:
        RunFolderError: another process writes to this run, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._run, self._folder = folder, folder / FOLDER
        self._files: dict[str, Json] = {}
        try:
            self._folder.mkdir(exist_ok=True)
            self._lock: IO[str] = open(self._folder / LOCK, "a")  # noqa: SIM115  held for the process's life
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise RunFolderError(f"{folder}: another process works on this run; wait for its end, or end it") from None
        except OSError as error:
            raise RunFolderError(f"{folder}: cannot be written ({error.strerror})") from error

    def close(self) -> None:
        """Let go of the folder."""
        self._lock.close()

    def take_over(self) -> None:
        """Go on from the checkpoint that is there: its parts stay until they are written anew."""
        self._files = dict(_manifest(self._run)["files"])

    def document(self, name: str, value: Json, server_round: int) -> None:
        """Write a JSON part under a name of its own; it counts from the next `commit` on."""
        self._write(name, f"{name}-{server_round:06d}.json", json.dumps(value, allow_nan=False).encode())

    def arrays(self, name: str, arrays: Arrays, server_round: int) -> None:
        """Write a part of named arrays under a name of its own; it counts from the next `commit` on."""
        stream = io.BytesIO()
        np.savez(stream, **dict(arrays))  # type: ignore[arg-type]
        self._write(name, f"{name}-{server_round:06d}.npz", stream.getvalue())

    def record(self, server_round: int, timed_out: str) -> None:
        """Note, before a round that the policy decides, whether its decision came too late, and why."""
        name = f"{DECISION}-{server_round:06d}.json"
        with writing(self._run):
            write_whole(self._folder / name, json.dumps({"timed_out": timed_out}).encode())

    def commit(self, server_round: int) -> None:
        """From here on this is the checkpoint; what only the former one needed is deleted."""
        positions = {name: (self._run / name).stat().st_size for name in LEDGERS if (self._run / name).exists()}
        manifest = {"format": FORMAT, "round": server_round, "files": self._files, "positions": positions}
        with writing(self._run):
            write_whole(self._folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
        needed = {
            MANIFEST,
            LOCK,
            f"{DECISION}-{server_round + 1:06d}.json",
            *(entry["file"] for entry in self._files.values()),
        }
        for path in self._folder.iterdir():
            if path.name not in needed:
                path.unlink(missing_ok=True)

    def _write(self, name: str, file: str, data: bytes) -> None:
        digest = hashlib.sha256(data).hexdigest()
        if self._files.get(name, {}).get("sha256") == digest:
            return
        if self._files.get(name, {}).get("file") == file:  # of the checkpoint that still counts: it stays as it is
            file = f"{Path(file).stem}-{digest[:8]}{Path(file).suffix}"
        with writing(self._run):
            write_whole(self._folder / file, data)
        self._files[name] = {"file": file, "sha256": digest}


def read_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint of a run folder, every byte of it checked.

    Raises:
        RunFolderError: there is none, or it is damaged.
    """
    manifest = _manifest(folder)
    documents: dict[str, Json] = {}
    arrays: dict[str, Arrays] = {}
    for name, entry in manifest["files"].items():
        path = folder / FOLDER / entry["file"]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _damaged(path, error.strerror or str(error)) from error
        if (found := hashlib.sha256(data).hexdigest()) != entry["sha256"]:
            raise _damaged(path, f"expected SHA-256 {entry['sha256'][:16]}, got {found[:16]}")
        try:
            if path.suffix == ".json":
                documents[name] = json.loads(data)
            else:
                with np.load(io.BytesIO(data), allow_pickle=False) as file:
                    arrays[name] = {key: file[key] for key in file.files}
        except (ValueError, OSError, EOFError, BadZipFile) as error:
            raise _damaged(path, str(error)) from error
    positions = {str(name): int(size) for name, size in manifest["positions"].items()}
    for name, size in positions.items():
        there = (folder / name).stat().st_size if (folder / name).exists() else 0
        if there < size:
            raise _damaged(folder / name, f"the checkpoint counts {size} bytes of it, it has {there}")
    return Checkpoint(int(manifest["round"]), documents, arrays, positions)


def read_record(folder: Path, server_round: int) -> str | None:
    """What `CheckpointWriter.record` noted of a round; None where it was not decided.

    Raises:
        RunFolderError: damaged.
    """
    path = folder / FOLDER / f"{DECISION}-{server_round:06d}.json"
    try:
        return str(json.loads(path.read_bytes())["timed_out"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def cut_ledgers(folder: Path, checkpoint: Checkpoint) -> None:
    """Take out lines of a round that was not closed when the server died: it is played, and written, again."""
    for name in LEDGERS:
        path, size = folder / name, checkpoint.positions.get(name, 0)
        if path.exists() and path.stat().st_size > size:
            with open(path, "r+b") as file:
                file.truncate(size)
                os.fsync(file.fileno())


@contextmanager
def writing(run: Path) -> Iterator[None]:
    """Within, a disk that takes no more (or no longer) is told with what to do.

    Args:
        run: the run folder.

    Raises:
        RunFolderError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"{run}: cannot be written ({error.strerror}); closed rounds are kept: make room there, then go on with "
            f"server.resume={run}"
        ) from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and see it to the disk.

    Raises:
        OSError: not at all.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _manifest(folder: Path) -> Json:
    path = folder / FOLDER / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise RunFolderError(
                f"{path}: format {manifest['format']}, this release reads {FORMAT}; go on with the release that wrote "
                "it"
            )
        _ = int(manifest["round"]), dict(manifest["positions"])
        _ = [(entry["file"], entry["sha256"]) for entry in manifest["files"].values()]
    except FileNotFoundError:
        raise RunFolderError(
            f"{folder}: no checkpoint; expected the folder of a run that got as far as its first round "
            f"({FOLDER}/{MANIFEST}); start the run anew"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    return dict(manifest)


def _damaged(path: Path, why: str) -> RunFolderError:
    return RunFolderError(f"{path}: the checkpoint is damaged ({why}); bring the file back, or start the run anew")

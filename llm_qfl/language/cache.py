"""Hidden states at the boundary, computed once per row and emulator version.

Within a round everything before the first adapter layer is frozen, so its output (the *boundary state*) of a row never
changes: it is computed once and the steps run the trained layers alone. States lie in memory, or in a file that
outlives the process (a node starts a new one for every message). They are as private as the rows they come from: the
file can be read by its owner alone and stays on the site.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.batches import TokenRows, by_length
from llm_qfl.language.files import need_room

FILL_BATCH = 16


class StateCache:
    """Hidden states of some rows, one flat array (tokens, width).

    Args:
        rows: the rows.
        width: size of a state.
        dtype: numbers of the states.
        version: names what computed them (model, layers, emulator); another version is another file.
        folder: where the file lies, or None for memory.

    Raises:
        LanguageError: where the disk has no room for the file.
    """

    def __init__(
        self, rows: TokenRows, width: int, dtype: torch.dtype, version: str, folder: Path | None = None
    ) -> None:
        self.rows, self.version = rows, version
        self._ends = np.cumsum(rows.lengths)
        self._starts = self._ends - rows.lengths
        tokens = int(self._ends[-1]) if len(rows) else 0
        self.size = tokens * width * dtype.itemsize
        self._filled = np.zeros(len(rows), bool)
        self._note: Path | None = None
        if folder is None:
            self._states = torch.empty((tokens, width), dtype=dtype)
        else:
            self._open(folder, tokens, width, dtype)

    def _open(self, folder: Path, tokens: int, width: int, dtype: torch.dtype) -> None:
        text = f"{self.version} {self.rows.digest()} {width} {dtype}"
        path = folder / f"boundary-{hashlib.sha256(text.encode()).hexdigest()[:24]}.bin"
        self._note = path.with_suffix(".json")
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not path.exists() or path.stat().st_size != self.size:
                need_room(folder, self.size, "boundary states")
                self._note.unlink(missing_ok=True)
                with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
                    if self.size:
                        os.posix_fallocate(stream.fileno(), 0, self.size)  # or a full disk is a crash at some write
            if self._note.exists():
                self._filled[json.loads(self._note.read_text())] = True
        except (OSError, ValueError, IndexError) as error:
            raise LanguageError(f"cannot keep boundary states in {folder}: {error}") from error
        shape = (tokens, width)
        self._states = torch.from_file(str(path), shared=True, size=tokens * width, dtype=dtype).view(shape)

    def fill(self, chosen: Sequence[int] | np.ndarray, compute: Callable[[np.ndarray], Tensor]) -> int:
        """Compute the states of those chosen rows that have none yet.

        Args:
            chosen: rows.
            compute: row numbers -> their states, padded (rows, length, width).

        Returns:
            How many rows were computed.
        """
        missing = [int(i) for i in np.unique(np.asarray(chosen, np.int64)) if not self._filled[i]]
        for part in by_length(self.rows.lengths, missing, FILL_BATCH):
            states = compute(part)
            for k, row in enumerate(part):
                self._states[self._starts[row] : self._ends[row]] = states[k, : self._ends[row] - self._starts[row]].to(
                    self._states.dtype
                )
                self._filled[row] = True
        if missing and self._note is not None:
            part_file = self._note.with_suffix(f".{os.getpid()}")
            part_file.write_text(json.dumps(np.flatnonzero(self._filled).tolist()))
            part_file.replace(self._note)
        return len(missing)

    def batch(self, chosen: Sequence[int] | np.ndarray) -> Tensor:
        """States of filled rows, zero-padded to the longest: (rows, length, width).

        Raises:
            LanguageError: for a row that was not filled.
        """
        empty = [int(i) for i in chosen if not self._filled[i]]
        if empty:
            raise LanguageError(f"boundary states of rows {empty[:5]} were asked for before they were computed")
        length = int(self.rows.lengths[list(chosen)].max())
        out = self._states.new_zeros((len(chosen), length, self._states.shape[1]))
        for k, row in enumerate(chosen):
            out[k, : self._ends[row] - self._starts[row]] = self._states[self._starts[row] : self._ends[row]]
        return out


def drop_stale(folder: Path, keep: str) -> None:
    """Delete boundary states of emulator versions other than `keep` from a folder; see `cache_folder`."""
    if folder.is_dir():
        for entry in folder.iterdir():
            if entry.is_dir() and entry.name.startswith("emulator-") and entry.name != f"emulator-{keep[:16]}":
                shutil.rmtree(entry, ignore_errors=True)


def cache_folder(folder: Path, version: str) -> Path:
    """Where the states of one version lie."""
    return folder / f"emulator-{version[:16]}"

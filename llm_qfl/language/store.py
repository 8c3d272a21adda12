"""Named matrices that a site keeps between rounds: on its disk, or in memory where it has no folder."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.files import need_room
from llm_qfl.language.lora import Arrays

_SUFFIX = ".safetensors"


class SiteStore:
    """A folder of matrices, for its owner alone.

    Args:
        folder: the folder, or None for memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._memory: dict[str, Arrays] = {}

    def has(self, name: str) -> bool:
        """Is there something of this name?"""
        return name in self._memory if self._folder is None else self._path(self._folder, name).is_file()

    def load(self, name: str) -> Arrays | None:
        """What has this name, or None.

        Raises:
            LanguageError: for a damaged file.
        """
        if self._folder is None:
            kept = self._memory.get(name)
            return None if kept is None else {key: value.copy() for key, value in kept.items()}
        path = self._path(self._folder, name)
        if not path.is_file():
            return None
        try:
            arrays: Arrays = load_file(path)
        except (SafetensorError, OSError) as error:
            raise LanguageError(f"{path} cannot be read (cut short?): {error}; delete it") from error
        return arrays

    def save(self, name: str, arrays: Arrays) -> None:
        """Keep matrices under a name, instead of what was there.

        Raises:
            LanguageError: where there is no room or the folder cannot be written.
        """
        if self._folder is None:
            self._memory[name] = {key: value.copy() for key, value in arrays.items()}
            return
        need_room(self._folder, sum(value.nbytes for value in arrays.values()), name)
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            part = self._folder / f".{name}-{os.getpid()}"
            save_file(arrays, part)
            part.replace(self._path(self._folder, name))
        except (SafetensorError, OSError) as error:
            raise LanguageError(f"cannot write {name} to {self._folder}: {error}") from error

    def keep_only(self, prefix: str, names: set[str]) -> None:
        """Delete what begins with `prefix` and is not in `names`."""
        if self._folder is None:
            self._memory = {k: v for k, v in self._memory.items() if not k.startswith(prefix) or k in names}
            return
        for path in self._folder.glob(f"{prefix}*{_SUFFIX}"):
            if path.name.removesuffix(_SUFFIX) not in names:
                path.unlink(missing_ok=True)

    def load_round(self, name: str, server_round: int | None) -> Arrays | None:
        """What was kept under a name after a round.

        Args:
            name: what.
            server_round: the round; 0 for nothing yet, None for the newest.

        Raises:
            LanguageError: for a damaged file, or where a round is asked for that is not kept.
        """
        there = self._rounds(name)
        if server_round == 0 or (server_round is None and not there):
            return None
        wanted = max(there) if server_round is None else server_round
        if wanted not in there:
            raise LanguageError(
                f"{name}: what this site kept after round {wanted} is gone (there: {sorted(there) or 'nothing'}); "
                "bring the site's folder back, or start the run anew"
            )
        return self.load(f"{name}-{wanted}")

    def save_round(self, name: str, arrays: Arrays, before: int | None, server_round: int | None) -> None:
        """Keep what a round left beside what it went on from: the server may not know of the round yet.

        Args:
            name: what.
            arrays: the matrices.
            before: round that was gone on from, as in `load_round`.
            server_round: the round; None for the one after the newest.

        Raises:
            LanguageError: as `save`.
        """
        newest = max(self._rounds(name), default=0)
        now = newest + 1 if server_round is None else server_round
        self.save(f"{name}-{now}", arrays)
        self.keep_only(f"{name}-", {f"{name}-{number}" for number in (newest if before is None else before, now)})

    def _rounds(self, name: str) -> set[int]:
        """Rounds after which something was kept under a name."""
        names = set(self._memory) if self._folder is None else {p.stem for p in self._folder.glob(f"{name}-*{_SUFFIX}")}
        ends = {one.removeprefix(f"{name}-") for one in names if one.startswith(f"{name}-")}
        return {int(end) for end in ends if end.isdecimal()}

    @staticmethod
    def _path(folder: Path, name: str) -> Path:
        return folder / f"{name}{_SUFFIX}"

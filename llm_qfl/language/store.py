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

    @staticmethod
    def _path(folder: Path, name: str) -> Path:
        return folder / f"{name}{_SUFFIX}"

"""Weights read through a map of their file: while nobody needs them, they need no memory.

Once the boundary states of a site's rows are there, the layers below the boundary are not run any more. On a CPU their
weights are pages of the model's own file: they can be given back before the steps, which need memory most, and come
back by themselves when somebody reads them. On another device, or in other numbers than the file's, they are copies
and stay.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llm_qfl.federation.errors import LanguageError

if TYPE_CHECKING:
    from llm_qfl.language.stack import Stack

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class MappedFile:
    """A safetensors file as tensors that are pages of it, private to this process: nothing is ever written to it.

    Args:
        path: the file; it may be unlinked or replaced meanwhile, but not changed in place.

    Raises:
        LanguageError: it cannot be mapped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            size = int.from_bytes(self._map[:8], "little")
            self._header = json.loads(self._map[8 : 8 + size])
        except (OSError, ValueError) as error:
            raise LanguageError(f"{path}: expected a safetensors file that can be mapped: {error}") from error
        self._start = 8 + size

    def tensor(self, name: str) -> Tensor:
        """A tensor on the file's pages.

        Raises:
            LanguageError: the file has none of that name, or in numbers that weights do not have.
        """
        about = self._header.get(name, {"dtype": "none"})
        if about["dtype"] not in DTYPES:
            raise LanguageError(
                f"{self.path}: expected {name} in one of {', '.join(DTYPES)}, got {about['dtype']}; fetch it again"
            )
        begin, end = about["data_offsets"]
        dtype = DTYPES[about["dtype"]]
        flat = torch.frombuffer(
            self._map, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=self._start + begin
        )
        return flat.view(about["shape"])

    def release(self) -> None:
        """Give the pages back; where the system has no such call, nothing happens."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def map_layers(stack: Stack, path: Path, layers: Sequence[int]) -> MappedFile:
    """Let the weights of some layers be pages of the file that they were loaded from.

    Args:
        stack: as loaded, on the CPU, without adapters.
        path: its safetensors file.
        layers: by number.

    Raises:
        LanguageError: the file cannot be mapped, or holds other tensors.
    """
    mapped = MappedFile(path)
    prefix = f"{stack.family.core}.{stack.family.layers}."
    for number in layers:
        for name, parameter in stack.layers[number].named_parameters():
            found = mapped.tensor(f"{prefix}{number}.{name}")
            if (found.dtype, found.shape) != (parameter.dtype, parameter.shape):
                raise LanguageError(f"{path}: {name} of layer {number} is not what was loaded from it; fetch it again")
            parameter.data = found
    return mapped

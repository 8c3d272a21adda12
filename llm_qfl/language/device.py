"""Where a model runs and in what numbers; how long it took and how much memory at most."""

from __future__ import annotations

import copy
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.stack import Stack

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MARGIN = 0.8  # bf16 must need less than this share of fp32's time: a tie goes to the exact numbers
_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def choose_device(name: str) -> torch.device:
    """`auto` (CUDA where there is one), `cpu` or `cuda`.

    Raises:
        LanguageError: for `cuda` on a machine without.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise LanguageError("language.device: cuda was asked for, this machine has none; use auto or cpu")
    return torch.device(name)


def choose_frozen_dtype(name: str, stack: Stack) -> torch.dtype:
    """In what numbers the frozen layers compute.

    `auto` takes bfloat16 on CUDA; on a CPU it times one layer in both: some CPUs are twice as fast in bfloat16, others
    five times as slow. Give `float32` or `bfloat16` where results must be equal on different machines.

    Args:
        name: `auto`, `float32` or `bfloat16`.
        stack: the stack, on its device.
    """
    if name != "auto":
        return DTYPES[name]
    if stack.device.type == "cuda":
        return torch.bfloat16
    seconds = {dtype: _layer_seconds(stack, dtype) for dtype in DTYPES.values()}
    return torch.bfloat16 if seconds[torch.bfloat16] < MARGIN * seconds[torch.float32] else torch.float32


@torch.no_grad()
def _layer_seconds(stack: Stack, dtype: torch.dtype) -> float:
    """Best of three passes of layer 0 over 8 rows of 64 tokens."""
    original = stack.layers[0]
    hidden = stack.embed(torch.zeros((8, min(64, stack.config.max_position_embeddings)), dtype=torch.int64))
    stack.layers[0] = copy.deepcopy(original).to(dtype)
    try:
        times = []
        for _ in range(4):  # the first one warms up
            start = time.perf_counter()
            stack.run(hidden, [0])
            times.append(time.perf_counter() - start)
    finally:
        stack.layers[0] = original
    return min(times[1:])


def cast_layers(stack: Stack, layers: Sequence[int], dtype: torch.dtype) -> None:
    """Put layers into other numbers, before any adapter is on them."""
    for number in layers:
        stack.layers[number].to(dtype)


def cast_rest(stack: Stack, dtype: torch.dtype) -> None:
    """Put everything that is no layer (embedding, norm, head) into other numbers."""
    inside = {id(parameter) for parameter in stack.layers.parameters()}
    for parameter in stack.model.parameters():
        if id(parameter) not in inside:
            parameter.data = parameter.data.to(dtype)


@dataclass
class Usage:
    """What a block of work took; filled at its end.

    Attributes:
        seconds: wall clock.
        peak_bytes: most memory: of the device on CUDA, else resident memory of the whole process.
        exact: was the peak of this block alone measured? Where the system cannot reset its mark, it is the process's.
    """

    seconds: float = 0.0
    peak_bytes: int = 0
    exact: bool = True


class measure:  # noqa: N801 - a context manager reads as a verb
    """Time a block and take its peak memory.

    Args:
        device: whose memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._usage = Usage()

    def __enter__(self) -> Usage:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._usage.exact = _reset_peak()
        self._start = time.perf_counter()
        return self._usage

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._usage.seconds = time.perf_counter() - self._start
        if self._device.type == "cuda":
            self._usage.peak_bytes = torch.cuda.max_memory_allocated(self._device)
        else:
            self._usage.peak_bytes = _peak_resident()


def _reset_peak() -> bool:
    """Set Linux's mark of most resident memory to what is resident now."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def _peak_resident() -> int:
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # no Linux: the process's own count
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

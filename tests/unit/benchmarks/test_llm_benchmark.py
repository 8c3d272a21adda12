"""The language benchmark's pure parts: the reference's bytes, the distance of two adapters, the printed ratios."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.llm import ARMS, REFERENCE, SAME, difference, llama_lines, table_lines
from benchmarks.llm_arms import OURS, PADDED, Step


def test_bytes_of_llama_2_7b_are_the_references():
    printed = llama_lines()[2:]
    assert len(printed) == len(REFERENCE)
    for line, (held, base, adapter, emulator) in zip(printed, REFERENCE.values(), strict=True):
        cells = [cell.split()[0] for cell in line.strip("| ").split("|")]
        assert cells[1:3] == [str(held), f"{base:.2f}"]
        assert [float(cell) for cell in cells[-2:]] == [adapter, emulator]


def test_plain_steps_are_what_their_arms_are_called():
    steps = {arm: Step.of(arm) for arm in (*ARMS, PADDED) if arm not in OURS}
    assert steps == {
        "plain, full model": Step(),
        "plain, pruned model": Step(),
        "plain, pruned model, head at answers": Step(lean=True),
        "plain, full model, head at answers, micro-batch 4": Step(lean=True, micro=4),
        "plain, pruned model, more padding": Step(padding=7),
    }
    assert set(SAME) | set(SAME.values()) == set(ARMS)  # every arm's adapter is compared with another's


def test_difference_is_relative_to_the_change(tmp_path: Path):
    start = {"adapter/26/q/A": np.zeros(4, np.float32)}
    for name, value in (("ours", 1.0), ("same", 1.0), ("half", 0.5)):
        np.savez(tmp_path / f"{name}.npz", **{"26|q|A": np.full(4, value, np.float32)})
    assert difference(tmp_path / "ours.npz", tmp_path / "same.npz", start) == 0
    assert difference(tmp_path / "ours.npz", tmp_path / "half.npz", start) == pytest.approx(0.5)


def test_ratios_come_first_and_are_of_processor_seconds():
    cost = {"seconds": 9.0, "up": 1000}
    found = {
        "ours": {**cost, "processor": 2.0, "memory": 3e8},
        "ours, micro-batch 4": {**cost, "processor": 2.5, "memory": 2e8},
        "plain, full model": {**cost, "processor": 8.0, "memory": 6e8},
    }
    printed = table_lines(0.5, 4, found, {"down": 1000, "down_first": 9000})
    assert printed[2] == "| 0.5 | 4 | plain, full model | 4.0x, 3.2x | 50 %, 33 % | 8.0 | 9.0 | 600 | 1 | 1 |"

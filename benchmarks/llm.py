"""`python -m benchmarks.llm`: a site's local round on a language model, ours beside the same round written plainly.

Plain means PEFT and a loop of torch steps: (a) on the full model, (b) on the pruned model of the same split. Same rows,
batches, start, optimizer and loss; each arm in a process of its own, and what it needed beyond a process that has
imported the same and done nothing. Ours and (b) must come to the same adapter, or the comparison is worth nothing.
Then the bytes of a split of LLaMA-2-7B, computed from its configuration alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.llm_arms import BATCH, FULL, LEAN, OURS, PADDED, PADDING, PLAIN, PRUNED, ROWS, TOKENS, export, one

ARMS = (*OURS, *PLAIN)
SAME = {**dict.fromkeys((*OURS, PRUNED + LEAN), PRUNED), PLAIN[-1]: FULL}
"""Arms that must come to the adapter of another one: of plain PEFT on the pruned model, or on the full one."""
BETAS = (0.2, 0.5)
EPOCHS = (1, 4)
TOLERANCE = 3.0
"""Ours and (b) may differ by so many times what (b) differs from itself with a few more columns of padding: nothing but
float32 sums in another order, through Adam, whose first steps are as large for a small gradient as for a large one."""
LIMIT_S = 1200

# LLaMA-2-7B, from its config.json.
LLAMA2_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "tie_word_embeddings": False,
}
# (a, beta) -> what the reference counts: layers held, GB of the compressed base in bf16, MiB of adapter and emulator.
REFERENCE = {
    (2, 0.2): (26, 11.05, 1.0, 12.0),
    (2, 0.5): (17, 7.41, 1.0, 7.5),
    (4, 0.2): (26, 11.05, 2.0, 11.0),
    (4, 0.5): (18, 7.81, 2.0, 7.0),
}


def in_child(arm: str, given: Mapping[str, Any], epochs: int, beta: float, threads: int) -> dict[str, Any]:
    """The same in a fresh process.

    Raises:
        RuntimeError: the process failed.
    """
    asked = json.dumps([arm, dict(given), epochs, beta, threads])
    command = [sys.executable, "-m", "benchmarks.llm", "--one", asked]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{arm}: {done.stderr.strip()[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def difference(ours: Path, other: Path, start: Mapping[str, Any]) -> float:
    """Distance of two final adapters over the size of the change."""
    import numpy as np

    with np.load(ours) as mine, np.load(other) as theirs:
        apart = sum(float(((mine[key] - theirs[key]) ** 2).sum()) for key in mine.files)
        moved = sum(float(((mine[key] - start[f"adapter/{key.replace('|', '/')}"]) ** 2).sum()) for key in mine.files)
    return float(np.sqrt(apart / moved))


def compare(betas: tuple[float, ...], epochs: tuple[int, ...], threads: int) -> None:
    """Measure and print the table."""
    from safetensors.numpy import load_file

    lines, checks, floors = [], [], []
    for beta in betas:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            given = export_in_child(folder, beta)
            given |= {"sent": str(folder / "sent.safetensors")}
            nothing = in_child("nothing", given, 1, beta, threads)["peak"]
            for count in epochs:
                found = {}
                for place, arm in enumerate(ARMS):
                    given["out"] = str(folder / f"{place}.npz")
                    found[arm] = in_child(arm, given, count, beta, threads)
                    found[arm]["memory"] = found[arm]["peak"] - nothing
                start = load_file(given["sent"])
                ends = {arm: folder / f"{place}.npz" for place, arm in enumerate(ARMS)}
                plain = ends[PRUNED]
                checks += [difference(ends[arm], ends[other], start) for arm, other in SAME.items()]
                lines += table_lines(beta, count, found, given)
                if count == min(epochs):
                    given["out"] = str(folder / "padded.npz")
                    in_child(PADDED, given, count, beta, threads)
                    floors.append(difference(plain, folder / "padded.npz", start))
    print(
        f"\n{ROWS} rows of {TOKENS - 16} to {TOKENS} tokens, {BATCH} a step, SmolLM2-135M in float32, "
        f"{threads} thread(s).\nRatios are of processor seconds: other work on the machine hardly changes them.\n"
        "Ratios against ours with whole batches, and with language.micro-batch (the same gradient); the plain arms run "
        "whole batches where they don't say otherwise. Plain makes logits at every position, as transformers does "
        "unasked; ours, and the arms that say so, at the answers alone.\n"
        "Memory: peak of the process beyond one that imported the same and did nothing.\n"
        "Bytes down: the adapter (with the emulator's update, once).\n"
    )
    titles = "beta | epochs | arm | ours is faster | ours needs of its memory | processor s | wall s | MB | kB down"
    print(f"| {titles} | kB up |\n|{'---|' * 10}")
    print("\n".join(lines))
    same = max(checks) <= TOLERANCE * max(floors)
    apart, floor = (", ".join(f"{value:.1e}" for value in values) for values in (checks, floors))
    print(
        f"\nOurs, lean and plain on one model: {'the same' if same else 'NOT the same'} adapter. Differences over the "
        f"change: {apart}; of plain with {PADDING} more columns of padding from plain: {floor}; allowed: "
        f"{TOLERANCE:g} times the largest of these."
    )
    if not same:
        raise SystemExit(1)


def export_in_child(folder: Path, beta: float) -> dict[str, Any]:
    """The server's work in a process of its own.

    Raises:
        RuntimeError: the process failed.
    """
    command = [sys.executable, "-m", "benchmarks.llm", "--export", str(folder), str(beta)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"export: {done.stderr.strip()[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def table_lines(
    beta: float, epochs: int, found: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]
) -> list[str]:
    """Markdown lines of one setting, ratios first: against ours with whole batches, and with micro-batches."""
    ours = [found[name] for name in OURS]
    lines = []
    for arm, got in found.items():
        faster = ", ".join(f"{got['processor'] / one['processor']:.1f}x" for one in ours)
        less = ", ".join(f"{100 * one['memory'] / got['memory']:.0f} %" for one in ours)
        ratios = "| | |" if arm in OURS else f"| {faster} | {less} |"
        down = f"{given['down'] / 1e3:.0f}"
        down += "" if arm.startswith(FULL) else f" ({given['down_first'] / 1e3:.0f})"
        cost = f"{got['processor']:.1f} | {got['seconds']:.1f} | {got['memory'] / 1e6:.0f}"
        lines.append(f"| {beta:g} | {epochs} | {arm} {ratios} {cost} | {down} | {got['up'] / 1e3:.0f} |")
    return lines


def llama_lines() -> list[str]:
    """The bytes of four splits of LLaMA-2-7B beside the reference's table."""
    from transformers import LlamaConfig

    from llm_qfl.language.lora import LoraSpec
    from llm_qfl.language.sizes import split_sizes
    from llm_qfl.language.split import SplitPlan

    config, spec = LlamaConfig(**LLAMA2_7B), LoraSpec(8, 16.0, modules="attention")
    lines = [
        "| a, beta | layers held (reference) | compressed base, bf16, GB (reference) | share of the full model | "
        "adapter each way, fp32, MiB (reference) | emulator down, fp32, MiB (reference) |",
        "|---|---|---|---|---|---|",
    ]
    for (a, beta), (held, base, adapter, emulator) in REFERENCE.items():
        plan = SplitPlan(32, a, beta)
        sizes = split_sizes(config, plan, {"adapter": spec, "emulator": spec})
        lines.append(
            f"| {a}, {beta:g} | {len(plan.held)} ({held}) | {sizes.model_bytes() / 1e9:.2f} ({base:g}) | "
            f"{100 * sizes.share:.1f} % | {sizes.wire_bytes('adapter') / 2**20:.2f} ({adapter:g}) | "
            f"{sizes.wire_bytes('emulator') / 2**20:.2f} ({emulator:g}) |"
        )
    return lines


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--export", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--betas", type=float, nargs="*", default=list(BETAS))
    parser.add_argument("--epochs", type=int, nargs="*", default=list(EPOCHS))
    parser.add_argument("--threads", type=int, default=1, help="more only on an idle machine")
    parser.add_argument("--llama-only", action="store_true", help="only the bytes of LLaMA-2-7B")
    arguments = parser.parse_args()
    if arguments.one:
        arm, given, epochs, beta, threads = json.loads(arguments.one)
        print(json.dumps(one(arm, given, epochs, beta, threads)))
        return
    if arguments.export:
        print(json.dumps(export(Path(arguments.export[0]), float(arguments.export[1]))))
        return
    if not arguments.llama_only:
        compare(tuple(arguments.betas), tuple(arguments.epochs), arguments.threads)
    print("\nLLaMA-2-7B, from its configuration alone; LoRA of rank 8 on queries and values:\n")
    print("\n".join(llama_lines()))


if __name__ == "__main__":
    main()

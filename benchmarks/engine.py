"""`python -m benchmarks.engine`: the exact engine beside its peers, and its cost against the floor.

Each peer runs each problem in a process of its own. *First call*: from the imported modules to the first gradient
(build and compile included). *Steady*: the best of repeated calls. A peer that cannot be imported prints `not
installed`. Rows that a slow peer was given are scaled to all rows, and said.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time

import numpy as np

from benchmarks.peers import CIRCUITS, MODULES, PEERS, Problem

SIZES = ((4, 80), (8, 80), (10, 500), (12, 200))
SLOW_ROWS = {
    "qiskit-ml statevector": {4: 16, 8: 4, 10: 4, 12: 4},
    "qiskit-ml Aer": {4: 16, 8: 4, 10: 4, 12: 4},
    "PennyLane lightning": {4: 80, 8: 16, 10: 16, 12: 16},
    "qulacs": {4: 80, 8: 80, 10: 100, 12: 50},
}
LIMIT_S = 300
SECONDS = 1.5
LONG_S = 8.0


def steady(call, seconds=SECONDS, most=2000):
    """Milliseconds, best of the repeats: other processes share the machine. A warm-up call comes first."""
    before = time.perf_counter()
    call()
    times, start = [], time.perf_counter()
    if start - before > LONG_S:
        return 1e3 * (start - before)
    while not times or (time.perf_counter() - start < seconds and len(times) < most):
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return 1e3 * min(times)


def measure(peer, circuit, qubits, rows):
    """One peer, one problem, in this process."""
    before = time.perf_counter()
    try:
        importlib.import_module(MODULES[peer])
        if peer.startswith("PennyLane"):
            importlib.import_module("pennylane")
        if peer.startswith("qiskit-ml"):
            importlib.import_module("qiskit_machine_learning.gradients")
        importlib.import_module("qiskit.circuit.library")
    except ImportError as error:
        return {"missing": str(error)}
    imports = time.perf_counter() - before
    given = min(rows, SLOW_ROWS.get(peer, {}).get(qubits, rows))
    problem = Problem(circuit, qubits, given)
    before = time.perf_counter()
    forward, gradient = PEERS[peer](problem)
    result = gradient()
    first = time.perf_counter() - before
    scale = rows / given
    row = np.asarray(result)[0]
    if peer == "PennyLane + jax":
        forward()  # compiles; its own first call, not a slow peer's
    return {
        "import_s": imports,
        "first_s": first,
        "gradient_ms": (1e3 * first if first > LONG_S and peer in SLOW_ROWS else steady(gradient)) * scale,
        "forward_ms": steady(forward) * scale,
        "rows": given,
        "check": (row[0] * (1.0 if circuit == CIRCUITS[0] or peer not in ("ours", "ours, new rows") else 2.0)).tolist(),
    }


def in_child(*arguments):
    """Measure in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.engine", "--one", *map(str, arguments)]
    # Qulacs shares out one small state: its threads cost more than they give below 13 qubits (tried both ways).
    environment = os.environ | {"QULACS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=environment)
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {LIMIT_S} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:90]}
    return json.loads(done.stdout.splitlines()[-1])


def compare(peers, sizes):
    """Print the table of peers."""
    for circuit in CIRCUITS:
        print(f"\n{circuit}: milliseconds for all rows; gradient = per-sample Jacobian by all weights")
        print(
            f"{'qubits, rows':14}{'':24}{'gradient':>11}{'forward':>11}{'first call s':>14}{'imports s':>11}"
            f"{'ours is':>10}{'  |difference|':>15}"
        )
        for qubits, rows in sizes:
            reference = None
            for peer in peers:
                got = in_child(peer, circuit, qubits, rows)
                label = f"({qubits}, {rows})" if peer == peers[0] else ""
                if "gradient_ms" not in got:
                    what = "not installed" if "missing" in got else f"failed: {got['failed']}"
                    print(f"{label:14}{peer:24}{what:>22}", flush=True)
                    continue
                check = np.array(got["check"])
                reference = reference or (got["gradient_ms"], check)
                note = "" if got["rows"] == rows else f"  on {got['rows']} rows, scaled"
                print(
                    f"{label:14}{peer:24}{got['gradient_ms']:11.3f}{got['forward_ms']:11.3f}{got['first_s']:14.2f}"
                    f"{got['import_s']:11.2f}{got['gradient_ms'] / reference[0]:9.1f}x"
                    f"{np.abs(check - reference[1]).max():15.1e}{note}",
                    flush=True,
                )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=4, metavar=("PEER", "CIRCUIT", "QUBITS", "ROWS"))
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    parser.add_argument("--no-scaling", action="store_true")
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args()
    if options.one:
        peer, circuit, qubits, rows = options.one
        print(json.dumps(measure(peer, circuit, int(qubits), int(rows))))
        return
    if not options.no_peers:
        compare(options.peers, SIZES)
    if not options.no_scaling:
        from benchmarks.floor import scaling

        scaling()


if __name__ == "__main__":
    main()

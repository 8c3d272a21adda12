"""`python -m benchmarks.devices`: circuits with shots, ideal and noisy, beside qiskit-machine-learning on the same Aer.

An *evaluation* is a loss at one point over all rows, a *gradient* the loss's gradient over them; 1,024 shots a circuit.
Each line is measured in a process of its own, on two threads. Where 80 rows would take a minute, it is a line through
two smaller numbers of rows, or one row times 80; where one row's gradient would, it is the evaluation times its
circuits; the last column says it.
qiskit-machine-learning's networks get the device's whole noise model, as `SamplerV2.from_backend(device)` gives it,
and their circuit transpiled beforehand, as its documentation asks. *Jobs* and *PUBs* of ours are what a device gets for
the gradient (the contract tests count them at the loopback service); of the peers, calls of the primitive.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

SIZES = ((4, 80), (8, 80))
DEVICES = (None, "FakeManilaV2", "FakeFez")
SIDES = ("ours", "SamplerQNN", "EstimatorQNN", "VQC")
SHOTS = 1024
SLOW_ROWS = 4
LIMIT_S = 240


def best(call, seconds=2.0):
    """Seconds, best of the repeats."""
    times, start = [], time.perf_counter()
    while not times or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return min(times)


def over_rows(call, rows, *, few, enough):
    """Seconds of `call` over so many rows, and on how many they were measured.

    Where that would be long (`enough` seconds) it is a line through two smaller numbers of rows: what a call costs
    whatever its rows is counted once. Where one row alone takes as long, it is that times the rows.
    """
    once = best(lambda: call(1), 0.0)  # compiles and caches too
    if once < enough:
        once = best(lambda: call(1), 0.0)
    if once > enough:
        return once * rows, 1
    low, high = best(lambda: call(few), 0.0), best(lambda: call(3 * few), 0.0)
    slope = max(high - low, 0.0) / (2 * few)
    expected = low + slope * (rows - few)
    if expected < enough:
        return best(lambda: call(rows), 0.0), rows
    return expected, 3 * few


def setting(qubits):
    """The default circuit at this width, and rows."""
    from llm_qfl.federation.config import QuantumConfig
    from llm_qfl.quantum.circuits import build_circuit

    config = QuantumConfig(qubits=qubits, shots=SHOTS)
    rng = np.random.default_rng(0)
    circuit = build_circuit(config, 2)
    x = rng.uniform(-1, 1, (80, qubits))
    return config, circuit, x, rng.normal(scale=0.4, size=len(circuit.weight_parameters))


def ours(qubits, device):
    """Our backend: seconds and what a gradient takes."""
    from llm_qfl.quantum.backends import make_backend
    from llm_qfl.quantum.scope import Place, Scope

    config, circuit, x, weights = setting(qubits)
    config = config.model_copy(update={"backend": "aer" if device is None else f"aer-{device}"})
    with tempfile.TemporaryDirectory() as folder:
        before = time.perf_counter()
        backend = make_backend(config, circuit, Place(Path(folder)))
        built = time.perf_counter() - before
        backend.expectations(x[:1], weights)  # loads what is compiled
        evaluation = best(lambda: backend.expectations(x, weights))
        gradient, rows = over_rows(lambda n: backend.jacobian(x[:n], weights), 80, few=SLOW_ROWS, enough=60)
        counted = backend.at(Scope(shots=SHOTS))
        counted.jacobian(x[:1], weights)
    runner, calls = backend._runner, counted.meter.calls
    return {
        "built": built,
        "evaluation": evaluation,
        "gradient": gradient,
        "rows": rows,
        "touched": runner.qubits_touched,
        "jobs": calls,
        "pubs": calls * len(runner._measured),
        "circuits": 80 * counted.meter.spent.shots // SHOTS,
    }


class Counting:
    """Counts calls, PUBs and circuits of the primitive that it is mixed into."""

    jobs = pubs = circuits = 0

    def run(self, pubs, **options):
        """As the primitive's."""
        pubs = list(pubs)
        self.jobs += 1
        self.pubs += len(pubs)
        self.circuits += sum(math.prod(np.shape(tuple(pub)[self.values])[:-1]) for pub in pubs)
        return super().run(pubs, **options)


def peer(side, qubits, device):
    """A network of qiskit-machine-learning on Aer's primitive."""
    from qiskit.quantum_info import SparsePauliOp
    from qiskit.transpiler import generate_preset_pass_manager
    from qiskit_aer import AerSimulator
    from qiskit_aer.primitives import EstimatorV2, SamplerV2
    from qiskit_machine_learning.neural_networks import EstimatorQNN, SamplerQNN

    from llm_qfl.quantum.sampled.noise import load_fake_device

    _, circuit, x, weights = setting(qubits)
    before = time.perf_counter()
    fake = None if device is None else load_fake_device(device)
    simulator = AerSimulator() if fake is None else AerSimulator.from_backend(fake)
    run, observables = circuit.circuit, [SparsePauliOp(op) for op in circuit.observables]
    if side == "SamplerQNN":
        run = run.measure_all(inplace=False)
    if fake is not None:
        run = generate_preset_pass_manager(3, backend=fake, seed_transpiler=0).run(run)
        observables = [op.apply_layout(run.layout) for op in observables]
        if side == "SamplerQNN":
            run._layout = None  # its gradient fails on circuits with a layout (0.9.1); these measure the right qubits
    common = {
        "circuit": run,
        "input_params": list(circuit.input_parameters),
        "weight_params": list(circuit.weight_parameters),
    }
    if side == "SamplerQNN":
        # a sampler's PUB is (circuit, values, shots), an estimator's (circuit, observables, values, precision)
        primitive = type("", (Counting, SamplerV2), {"values": 1}).from_backend(simulator, default_shots=SHOTS, seed=0)
        network = SamplerQNN(sampler=primitive, interpret=lambda k: k, output_shape=2**qubits, **common)
    else:
        options = {"default_precision": 1 / np.sqrt(SHOTS)}
        primitive = type("", (Counting, EstimatorV2), {"values": 2}).from_backend(simulator, options=options)
        network = EstimatorQNN(estimator=primitive, observables=observables, **common)
    built = time.perf_counter() - before
    evaluation, _ = over_rows(lambda n: network.forward(x[:n], weights), 80, few=SLOW_ROWS, enough=60)
    if evaluation / 80 * 2 * circuit.gates > 60:  # of one row: two circuits an angle for one
        return {"built": built, "evaluation": evaluation, "gradient": evaluation * 2 * circuit.gates, "rows": 0}
    gradient, rows = over_rows(lambda n: network.backward(x[:n], weights), 80, few=1, enough=60)
    primitive.jobs = primitive.pubs = primitive.circuits = 0
    network.backward(x[:1], weights)
    return {"built": built, "evaluation": evaluation, "gradient": gradient, "rows": rows, "jobs": primitive.jobs,
            "pubs": primitive.pubs * 80, "circuits": primitive.circuits * 80}  # fmt: skip


def vqc(qubits):
    """VQC with its defaults: its own encoding, ansatz and sampler (exact state vectors, then shots)."""
    from qiskit_machine_learning.algorithms import VQC

    _, _, x, _ = setting(qubits)
    before = time.perf_counter()
    network = VQC(num_qubits=qubits).neural_network
    built = time.perf_counter() - before
    weights = np.random.default_rng(1).normal(size=network.num_weights)
    evaluation, _ = over_rows(lambda n: network.forward(x[:n], weights), 80, few=SLOW_ROWS, enough=60)
    gradient, rows = over_rows(lambda n: network.backward(x[:n], weights), 80, few=1, enough=60)
    return {"built": built, "evaluation": evaluation, "gradient": gradient, "rows": rows}


def measure(side, qubits, device):
    """One line, in this process."""
    warnings.simplefilter("ignore")
    if side == "ours":
        return ours(qubits, device)
    return vqc(qubits) if side == "VQC" else peer(side, qubits, device)


def in_process(side, qubits, device):
    """One line, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.devices", "--one", side, str(qubits), str(device)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"longer than {LIMIT_S} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["?"])[-1][:120]}
    return json.loads(done.stdout.splitlines()[-1])


def main():
    """Print the table as Markdown."""
    if sys.argv[1:2] == ["--one"]:
        side, qubits, device = sys.argv[2:5]
        print(json.dumps(measure(side, int(qubits), None if device == "None" else device)))
        return
    print(f"{SHOTS} shots; times relative to ours in brackets; one gradient over 80 rows\n")
    print("| qubits, rows | noise | | evaluations/s | gradient, s | jobs | PUBs | circuits | gradient measured on |")
    print("|---|---|---|---|---|---|---|---|---|")
    for qubits, rows in SIZES:
        for device in DEVICES:
            if device == "FakeManilaV2" and qubits > 5:
                print(f"| {qubits}, {rows} | {device} | | the device has 5 qubits | | | | | |", flush=True)
                continue
            first = None
            for side in SIDES:
                if side == "VQC" and device is not None:
                    continue
                found = in_process(side, qubits, device)
                where = f"| {qubits}, {rows} | {device or 'none'} | {side} |"
                if "failed" in found:
                    print(f"{where} {found['failed']} | | | | | |", flush=True)
                    continue
                first = first or found
                slower = [
                    f" ({found[k] / first[k]:.1f}x)" if found is not first else "" for k in ("evaluation", "gradient")
                ]
                cost = " | ".join(f"{found[k]:,}" if k in found else "" for k in ("jobs", "pubs", "circuits"))
                times = f"{1 / found['evaluation']:.3g}{slower[0]} | {found['gradient']:.3g}{slower[1]}"
                measured = f"up to {found['rows']} rows" if found["rows"] else "evaluations"
                print(f"{where} {times} | {cost} | {measured} |", flush=True)


if __name__ == "__main__":
    main()

"""Cost of the engine against qubits, samples and parameters, beside the floor that arithmetic and memory set.

Operations are counted from the tape: a multiply-add on one real number. The peak is what a compiled loop of independent
multiply-adds on this machine does with all threads; bytes are those that passes move between states and local copies.
"""

from __future__ import annotations

import time

import numpy as np

from benchmarks.peers import Problem, _engine
from llm_qfl.quantum.exact.compile import PASS
from llm_qfl.quantum.exact.lanes import LANES
from llm_qfl.quantum.exact.threads import available_threads, run_shares

CACHE_BYTES = 32 * 1024**2
"""States of all threads that fit the last-level cache of the machine measured move nothing to memory."""


def _best(call, repeats=7):
    call()
    times = []
    for _ in range(repeats):
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return min(times)


def peak_operations():
    """Multiply-adds a second, all threads."""
    from numba import njit

    from llm_qfl.quantum.exact.lanes import load, store

    @njit(nogil=True)
    def chains(data, out, count, tag):
        a, b, c, d, e = (
            load(data, 0, tag),
            load(data, 8, tag),
            load(data, 16, tag),
            load(data, 24, tag),
            load(data, 32, tag),
        )
        x = load(data, 40, tag)
        for _ in range(count):
            a, b, c, d, e = a + x * a, b + x * b, c + x * c, d + x * d, e + x * e
        store(out, 0, a + b + c + d + e)

    count, data = 2_000_000, np.full(48, 1e-9)
    threads = available_threads()

    def work(first, last):
        chains(data, np.empty(8), count, (0,) * LANES)

    return threads * count * 5 * LANES / _best(lambda: run_shares(work, threads, threads))


def peak_bytes():
    """Bytes a second that a copy reads and writes, on data that no cache holds."""
    source = np.ones(16_000_000)
    target = np.empty_like(source)
    return 2 * source.nbytes / _best(lambda: np.copyto(target, source))


def count_work(engine, samples, bras, gradient):
    """Multiply-adds and bytes of one call, encoded states at hand."""
    tape, rows = engine._tape, 1 << engine.num_qubits
    kept = tape.encoding_steps
    last_layer = tape.first_step[1]
    operations = bytes_moved = 0
    for number, step in enumerate(tape.steps):
        if number < kept:
            continue
        forward, backward = 0, 0
        if step[0] == PASS:
            for group in tape.groups[step[3] : step[3] + step[4]]:
                apply, measure = (16 if group[0] == 0 else 8), (0, 4, 12)[group[5]]
                forward += apply * rows // 2
                backward += rows // 2 * (bras * measure + (1 + bras) * apply * (step[1] > last_layer))
            copies = 2
        else:
            terms = int(tape.terms[step[2] : step[2] + step[3], 1].sum())
            wanted = int((tape.terms[step[2] : step[2] + step[3], 3] >= 0).sum())
            apply = 4 * (step[4] >= 0) + 4 * terms
            forward, copies = apply * rows, 1
            backward = rows * (bras * (2 + wanted) + (1 + bras) * apply * (step[1] > last_layer))
        operations += forward + backward * gradient
        moved = copies + gradient * (1 + bras) * (copies if step[1] > last_layer else 1)
        bytes_moved += moved * rows * 16
    operations += rows * 4 * bras
    return operations * samples, bytes_moved * samples


def _line(problem, peak, bandwidth):
    engine = _engine(problem)
    elapsed = _best(lambda: engine.jacobian(problem.inputs, problem.weights))
    operations, moved = count_work(engine, problem.rows, engine._sweeper.readout.num_bras, True)
    held = engine._sweeper.threads * engine._sweeper.state_bytes * (1 + engine._sweeper.readout.num_bras)
    floor = max(operations / peak, moved / bandwidth if held > CACHE_BYTES else 0.0)
    print(
        f"{problem.circuit:20}{problem.qubits:7}{problem.rows:7}{len(problem.weights):9}{elapsed * 1e3:11.3f}"
        f"{operations / 1e6:12.2f}{moved / 1e6:11.2f}{operations / peak * 1e3:10.3f}{moved / bandwidth * 1e3:10.3f}"
        f"{floor / elapsed:10.0%}",
        flush=True,
    )


def scaling():
    """Print the table."""
    peak, bandwidth = peak_operations(), peak_bytes()
    print(
        f"\nours: gradient against qubits, rows and parameters; peak {peak / 1e9:.1f} billion multiply-adds/s, "
        f"{bandwidth / 1e9:.1f} GB/s to memory (bytes count towards the floor where the states leave the cache)"
    )
    print(
        f"{'circuit':20}{'qubits':>7}{'rows':>7}{'weights':>9}{'ms':>11}{'mega-ops':>12}{'megabytes':>11}"
        f"{'ops ms':>10}{'bytes ms':>10}{'of floor':>10}"
    )
    for qubits in (2, 4, 6, 8, 10, 12, 14, 16):
        _line(Problem("reuploading", qubits, 80 if qubits < 14 else 16), peak, bandwidth)
    for rows in (1, 8, 80, 800, 8000):
        _line(Problem("reuploading", 6, rows), peak, bandwidth)
    for layers in (1, 3, 6, 12):
        _line(Problem("reuploading", 8, 80, layers), peak, bandwidth)
    for qubits in (4, 8, 12):
        _line(Problem("zz-real-amplitudes", qubits, 80), peak, bandwidth)

"""`python -m llm_qfl.quantum.exact.precompile`: compile all kernels into the cache, for this processor and portably.

Run once when the package is installed or an image is built: a process that finds the code starts in a fraction of a
second instead of compiling. Each target needs a process of its own, since numba fixes its target at first use.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from llm_qfl.quantum.exact import cache


def compile_everything() -> None:
    """Call every kernel with every signature that the engine uses."""
    import numpy as np
    from qiskit.circuit import ParameterVector, QuantumCircuit
    from qiskit.quantum_info import SparsePauliOp

    from llm_qfl.quantum.exact.engine import ExactEngine

    x, w = ParameterVector("x", 1), ParameterVector("w", 1)
    circuit = QuantumCircuit(2)
    circuit.ry(w[0] * x[0], 0)
    circuit.rzz(w[0], 0, 1)
    inputs, weights = np.zeros((1, 1)), np.zeros(1)
    for dtype in ("float64", "float32"):
        engine = ExactEngine(circuit, [SparsePauliOp("ZX")], input_parameters=x, weight_parameters=w, dtype=dtype)
        engine.expectations(inputs, weights)
        engine.jacobian(inputs, weights, input_gradient=True)
        engine.vjp(inputs, weights, np.ones((1, 1)))
        engine.states(inputs, weights)


def main(arguments: list[str] | None = None) -> int:
    """Compile for the host and, unless told otherwise, for portable targets.

    Args:
        arguments: command line; default: that of the process.

    Returns:
        Exit code: 0, or that of the target that failed.
    """
    parser = argparse.ArgumentParser(prog="python -m llm_qfl.quantum.exact.precompile", description=__doc__)
    parser.add_argument("--host-only", action="store_true", help="this processor only (half a minute less)")
    parser.add_argument("--target", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    targets = [cache.host_target(), *([] if options.host_only else cache.portable_targets())]
    if options.target:
        target = next(t for t in targets if t.name == options.target)
        cache.log.setLevel("ERROR")  # that nothing is installed yet is no news here
        cache.use_target(target)
        compile_everything()
        cache.mark(target)
        return 0
    for target in targets:
        if not cache.runs_here(target):
            continue  # compiling runs the kernels
        started = time.perf_counter()
        command = [sys.executable, "-m", "llm_qfl.quantum.exact.precompile", "--target", target.name]
        code = subprocess.run(command, check=False).returncode
        if code:
            print(f"kernels for {target.name}: failed with exit code {code}", file=sys.stderr)
            return code
        print(f"kernels for {target.name}: {time.perf_counter() - started:.1f} s, in {cache.cache_folder()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Backends that draw shots: Aer, fake devices, IBM Quantum. One circuit, many points, one PUB.

- `angles`: a circuit whose gates take plain angles; the chain rule back to weights is arithmetic outside it.
- `shift`: expectation values and parameter-shift gradients of a batch as one array of points.
- `isa`: transpiled once for a circuit and device, kept on the node's disk.
- `noise`: a device's noise model, cut to the qubits that a circuit touches.
- `counts`: expectation values from counts, all commuting observables from the same ones.
- `mitigation`: read-out correction (mthree) and zero-noise extrapolation (qiskit-mitigation).
- `aer`: AerSimulator behind all this.
- `ibm`: the job runner of `llm_qfl.quantum.ibm` behind all this.
"""

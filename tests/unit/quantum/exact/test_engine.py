"""The engine's contract beside random circuits: read-outs, dtypes, chunks, threads, kept states, errors."""

import os
import threading

import numpy as np
import pytest
from qiskit.circuit import Parameter, ParameterVector, QuantumCircuit
from qiskit.circuit.library import QFTGate, real_amplitudes, zz_feature_map
from qiskit.quantum_info import Clifford, SparsePauliOp, Statevector

from llm_qfl.federation.errors import CircuitError
from llm_qfl.quantum.exact import engine as engine_module
from llm_qfl.quantum.exact.engine import ExactEngine


def reuploading(n, layers=2):
    x, w = ParameterVector("x", n), ParameterVector("w", 4 * n * layers)
    circuit, k = QuantumCircuit(n), iter(w)
    for _ in range(layers):
        for q in range(n):
            circuit.ry(next(k) * x[q] + next(k), q)
            circuit.rz(next(k), q)
            circuit.ry(next(k), q)
        for q in range(n):
            circuit.cx(q, (q + 1) % n)
    return circuit, list(x), list(w)


def classifier(n):
    encoding, ansatz = zz_feature_map(n, reps=1), real_amplitudes(n, reps=2)
    return encoding.compose(ansatz), list(encoding.parameters), list(ansatz.parameters)


def z_observables(n):
    return [SparsePauliOp.from_sparse_list([("Z", [q], 1.0)], n) for q in range(n)]


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_closed_form():
    w = ParameterVector("w", 1)
    circuit = QuantumCircuit(1)
    circuit.ry(w[0], 0)
    engine = ExactEngine(circuit, [SparsePauliOp("Z"), SparsePauliOp("X")], weight_parameters=w)
    values, jacobian, by_inputs = engine.jacobian(np.zeros((3, 0)), np.array([0.7]))
    np.testing.assert_allclose(values, np.tile([np.cos(0.7), np.sin(0.7)], (3, 1)), atol=1e-15)
    np.testing.assert_allclose(jacobian[:, :, 0], np.tile([-np.sin(0.7), np.cos(0.7)], (3, 1)), atol=1e-15)
    assert by_inputs is None


def test_gradients_equal_qiskit_machine_learning(rng):
    from qiskit.primitives import StatevectorEstimator
    from qiskit_machine_learning.gradients import LinCombEstimatorGradient, ParamShiftEstimatorGradient

    circuit, x, w = classifier(3)
    observable = SparsePauliOp(["ZZZ", "XIY"], [1.0, 0.5])
    engine = ExactEngine(circuit, [observable], input_parameters=x, weight_parameters=w)
    inputs, weights = rng.uniform(0, 3, (1, 3)), rng.uniform(-3, 3, len(w))
    jacobian = engine.jacobian(inputs, weights)[1]
    bound = circuit.assign_parameters(dict(zip(x, inputs[0], strict=True)))
    for gradient in (ParamShiftEstimatorGradient, LinCombEstimatorGradient):
        job = gradient(StatevectorEstimator()).run([bound], [observable], [weights], [w])
        np.testing.assert_allclose(jacobian[0, 0], job.result().gradients[0], atol=1e-9)


@pytest.mark.parametrize("classes", [[0, 1, 1, 0], [0, 1, 2, 2], [0, 0, 0, 0], [2, 0, 2, 2], [0, 1, 2, 3]])
def test_class_probabilities(classes, rng):
    circuit, x, w = reuploading(2)
    engine = ExactEngine(circuit, input_parameters=x, weight_parameters=w, classes=np.array(classes), num_outputs=4)
    inputs, weights = rng.normal(size=(9, 2)), rng.normal(size=len(w))
    values, jacobian, _ = engine.jacobian(inputs, weights)
    p = engine.probabilities(inputs, weights)
    expected = np.stack([p[:, np.array(classes) == k].sum(axis=1) for k in range(4)], axis=1)
    np.testing.assert_allclose(values, expected, atol=1e-12)
    np.testing.assert_allclose(engine.expectations(inputs, weights), expected, atol=1e-12)
    np.testing.assert_allclose(values.sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(jacobian.sum(axis=1), 0.0, atol=1e-12)


def test_forward_mode_equals_adjoint(rng, monkeypatch):
    """Every bitstring an output: tangents and bras must agree, also in chunks of samples."""
    circuit, x, w = classifier(3)
    circuit.rzz(w[0] * x[1], 0, 2)
    circuit.rx(w[1].sin() * x[0], 1)
    inputs, weights = rng.normal(size=(20, 3)), rng.normal(size=len(w))
    options = {"input_parameters": x, "weight_parameters": w, "classes": np.arange(8)}
    adjoint = ExactEngine(circuit, **options)
    monkeypatch.setattr(engine_module, "_BRAS_PER_ANGLE", 0)
    wide = ExactEngine(circuit, **options)
    chunked = ExactEngine(circuit, **options, memory_budget=8 * 8 * 16 * 8)
    bar = rng.normal(size=(20, 8))
    for other in (wide, chunked):
        for a, b in zip(
            adjoint.jacobian(inputs, weights, input_gradient=True),
            other.jacobian(inputs, weights, input_gradient=True),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, atol=1e-12)
        got, expected = (e.expectations(inputs, weights) for e in (other, adjoint))
        np.testing.assert_allclose(got, expected, atol=1e-12)
        np.testing.assert_allclose(other.vjp(inputs, weights, bar)[1], adjoint.vjp(inputs, weights, bar)[1], atol=1e-12)


def test_float32_is_close(rng):
    circuit, x, w = reuploading(5)
    inputs, weights = rng.normal(size=(10, 5)), rng.normal(size=len(w))
    results = [
        ExactEngine(circuit, z_observables(5), input_parameters=x, weight_parameters=w, dtype=dtype).jacobian(
            inputs, weights, input_gradient=True
        )
        for dtype in ("float64", "float32")
    ]
    for double, single in zip(*results, strict=True):
        assert single.dtype == np.float64
        np.testing.assert_allclose(single, double, atol=2e-5)
        assert not np.array_equal(single, double)


def test_chunks_of_bras_equal_all_at_once(rng):
    circuit, x, w = reuploading(4)
    inputs, weights = rng.normal(size=(11, 4)), rng.normal(size=len(w))
    options = {"observables": z_observables(4), "input_parameters": x, "weight_parameters": w}
    whole = ExactEngine(circuit, **options, threads=1)
    tight = ExactEngine(circuit, **options, threads=2, memory_budget=9216)  # 4.5 states
    assert tight._sweeper.chunk < whole._sweeper.chunk
    for a, b in zip(whole.jacobian(inputs, weights), tight.jacobian(inputs, weights), strict=False):
        np.testing.assert_array_equal(a, b) if a is not None else None


def test_threads_give_the_same_bits(rng, monkeypatch):
    from llm_qfl.quantum.exact import adjoint

    monkeypatch.setattr(adjoint, "_INLINE", 0.0)
    circuit, x, w = classifier(5)
    inputs, weights = rng.normal(size=(50, 5)), rng.normal(size=len(w))
    results = []
    for threads in (1, 3):
        engine = ExactEngine(circuit, z_observables(5), input_parameters=x, weight_parameters=w, threads=threads)
        _, jacobian, by_inputs = engine.jacobian(inputs, weights, input_gradient=True)
        results.append([jacobian, by_inputs, engine.vjp(inputs, weights, np.ones((50, 5)))[1]])
    for one, three in zip(*results, strict=True):
        np.testing.assert_array_equal(one, three)


def test_concurrent_calls_do_not_share_workspaces(rng):
    circuit, x, w = reuploading(4)
    engine = ExactEngine(circuit, z_observables(4), input_parameters=x, weight_parameters=w)
    points = [(rng.normal(size=(16, 4)), rng.normal(size=len(w))) for _ in range(8)]
    expected = [engine.jacobian(*point)[1] for point in points]
    got = [None] * len(points)

    def work(i):
        for _ in range(5):
            got[i] = engine.jacobian(*points[i])[1]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(points))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_pool_is_made_anew_after_a_fork():
    from llm_qfl.quantum.exact.threads import run_shares

    def total():
        parts = []
        run_shares(lambda first, last: parts.append(last - first), 10, 3)
        return sum(parts)

    assert total() == 10
    child = os.fork()
    if child == 0:
        os._exit(0 if total() == 10 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_an_error_in_a_share_is_raised():
    from llm_qfl.quantum.exact.threads import run_shares

    def work(first, last):
        if first > 0:
            raise CircuitError("share")

    with pytest.raises(CircuitError, match="share"):
        run_shares(work, 10, 2)


def test_kept_encoded_states_equal_new_ones(rng):
    circuit, x, w = classifier(4)
    options = {"observables": z_observables(4), "input_parameters": x, "weight_parameters": w}
    keeps, never = ExactEngine(circuit, **options), ExactEngine(circuit, **options)
    never._sweeper._encodes = False
    sets = [rng.normal(size=(12, 4)) for _ in range(6)]
    for weights in rng.normal(size=(2, len(w))):
        for inputs in [*sets, sets[0].copy(), sets[0][::-1].copy()]:
            kept, new = (e.jacobian(inputs, weights)[1] for e in (keeps, never))
            np.testing.assert_allclose(kept, new, atol=1e-13)
    assert 1 <= len(keeps._sweeper._kept) <= 4
    changed = sets[0]
    before = keeps.expectations(changed, weights)
    changed[3, 1] += 0.5  # in place: the content counts, not the array
    assert not np.allclose(before, keeps.expectations(changed, weights))


def test_the_encoding_ends_at_the_first_weight():
    circuit, x, w = classifier(4)
    tape = ExactEngine(circuit, z_observables(4), input_parameters=x, weight_parameters=w)._tape
    assert 0 < tape.encoding_steps < len(tape.steps)
    circuit, x, w = reuploading(4)
    assert ExactEngine(circuit, z_observables(4), input_parameters=x, weight_parameters=w)._tape.encoding_steps == 0


def test_parity_needs_one_bra():
    circuit, x, w = classifier(3)
    parity = np.bitwise_count(np.arange(8)).astype(np.intp) & 1
    engine = ExactEngine(circuit, input_parameters=x, weight_parameters=w, classes=parity)
    assert engine._sweeper.readout.num_bras == 1
    assert engine.num_outputs == 2


def test_barriers_final_measurements_and_operations_without_a_definition(rng):
    circuit = QuantumCircuit(3, 3)
    circuit.h(0)
    circuit.append(QFTGate(3), range(3))
    circuit.barrier()
    circuit.append(Clifford(QuantumCircuit(2).compose(_bell())), [0, 2])
    plain = circuit.copy()
    circuit.measure(range(3), range(3))
    engine = ExactEngine(circuit)
    np.testing.assert_allclose(engine.states(np.zeros((1, 0)), np.zeros(0))[0], Statevector(plain).data, atol=1e-12)


def _bell():
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    return circuit


def test_no_rows_and_no_gates(rng):
    circuit, x, w = reuploading(2)
    engine = ExactEngine(circuit, z_observables(2), input_parameters=x, weight_parameters=w)
    values, jacobian, by_inputs = engine.jacobian(np.zeros((0, 2)), np.zeros(len(w)), input_gradient=True)
    assert values.shape == (0, 2)
    assert jacobian.shape == (0, 2, len(w))
    assert by_inputs.shape == (0, 2, 2)
    empty = ExactEngine(QuantumCircuit(2), z_observables(2))
    np.testing.assert_allclose(empty.expectations(np.zeros((1, 0)), np.zeros(0)), 1.0)


def _bad(change):
    circuit = QuantumCircuit(2, 1)
    circuit.h(0)
    change(circuit)
    return circuit


def _loop(circuit):
    with circuit.for_loop(range(2)):
        circuit.x(0)


def _measured(circuit):
    circuit.measure(0, 0)
    circuit.x(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.reset(0), "'reset' is no unitary gate"),
        (_measured, "after a measurement"),
        (_loop, "'for_loop' is no unitary gate"),
        (lambda c: c.initialize([1, 0], 0), "reset"),
        (lambda c: c.ry(Parameter("foreign"), 0), "'foreign' of the circuit is neither"),
    ],
)
def test_what_is_no_unitary_gate_is_refused(change, message):
    with pytest.raises(CircuitError, match=message):
        ExactEngine(_bad(change), z_observables(2))


def test_bad_arguments_are_refused():
    circuit, x, w = reuploading(2)
    roles = {"input_parameters": x, "weight_parameters": w}
    cases = [
        (lambda: ExactEngine(circuit, [SparsePauliOp("ZZZ")], **roles), "acts on 3 qubits, the circuit has 2"),
        (lambda: ExactEngine(circuit, [SparsePauliOp("ZZ", [1j])], **roles), "not Hermitian"),
        (lambda: ExactEngine(circuit, z_observables(2), classes=np.zeros(4, int), **roles), "not both"),
        (lambda: ExactEngine(circuit, classes=np.zeros(3, int), **roles), "one integer for each of the 4"),
        (lambda: ExactEngine(circuit, classes=np.arange(4), num_outputs=3, **roles), r"must lie in 0..2"),
        (lambda: ExactEngine(circuit, z_observables(2), dtype="float16", **roles), "'float16'"),
        (lambda: ExactEngine(circuit, z_observables(2), threads=0, **roles), "at least 1"),
        (lambda: ExactEngine(circuit, z_observables(2), input_parameters=x, weight_parameters=[*w, x[0]]), "both"),
        (lambda: ExactEngine(circuit, z_observables(2), input_parameters=[*x, x[0]], weight_parameters=w), "twice"),
        (lambda: ExactEngine(QuantumCircuit(0)), "no qubits"),
    ]
    for call, message in cases:
        with pytest.raises(CircuitError, match=message):
            call()
    engine = ExactEngine(circuit, z_observables(2), **roles)
    good = np.zeros((3, 2)), np.zeros(len(w))
    with pytest.raises(CircuitError, match=r"inputs must have shape \(samples, 2\), got \(3, 3\)"):
        engine.expectations(np.zeros((3, 3)), good[1])
    with pytest.raises(CircuitError, match=r"weights must have shape \(16,\)"):
        engine.expectations(good[0], np.zeros(3))
    with pytest.raises(CircuitError, match="cotangent must have shape"):
        engine.vjp(*good, np.zeros((3, 3)))
    with pytest.raises(CircuitError, match="not finite"):
        engine.expectations(np.full((3, 2), np.nan), np.ones(len(w)))


def test_too_many_qubits_for_memory_is_refused_before_anything_is_allocated():
    with pytest.raises(CircuitError, match=r"30 qubits .*= 412,316,860,416 bytes; the budget is 536,870,912"):
        ExactEngine(QuantumCircuit(30), z_observables(30))
    circuit, x, w = reuploading(4)
    engine = ExactEngine(circuit, z_observables(4), input_parameters=x, weight_parameters=w, memory_budget=9216)
    with pytest.raises(CircuitError, match="ask for fewer samples"):
        engine.states(np.zeros((64, 4)), np.zeros(len(w)))
    assert engine.memory_estimate(100) > engine.memory_estimate(10) > 8192


def test_thread_limit_from_the_environment(monkeypatch):
    from llm_qfl.quantum.exact.threads import available_threads

    monkeypatch.setenv("LLM_QFL_THREADS", "3")
    assert available_threads() == 3
    monkeypatch.setenv("LLM_QFL_THREADS", "many")
    with pytest.raises(CircuitError, match="'many'"):
        available_threads()

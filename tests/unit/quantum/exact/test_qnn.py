"""The exact networks: what they refuse, shots, seeds, and the exceptions from drop-in behaviour."""

import copy
import subprocess
import sys

import dill
import numpy as np
import pytest
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister, transpile
from qiskit.circuit import ParameterVector
from qiskit.primitives import StatevectorEstimator, StatevectorSampler
from qiskit.quantum_info import SparseObservable, SparsePauliOp, Statevector
from qiskit.transpiler import PassManager
from qiskit_aer import AerSimulator
from qiskit_machine_learning.gradients import ParamShiftEstimatorGradient, ParamShiftSamplerGradient
from qiskit_machine_learning.neural_networks import SamplerQNN
from scipy.stats import chi2, norm

from llm_qfl.federation.errors import CircuitError
from llm_qfl.quantum import ExactEstimator, ExactEstimatorQNN, ExactSampler, ExactSamplerQNN

INPUTS = np.random.default_rng(0).normal(size=(3, 2))
WEIGHTS = np.array([0.4, -1.1])


def circuit(*registers):
    x, w = ParameterVector("x", 2), ParameterVector("w", 2)
    qc = QuantumCircuit(QuantumRegister(2, "q"), *registers)
    qc.ry(x[0], 0)
    qc.ry(2 * x[1], 1)
    qc.cx(0, 1)
    qc.rx(w[0], 0)
    qc.ry(w[1] * x[0] + 0.2, 1)
    return {"circuit": qc, "input_params": list(x), "weight_params": list(w)}


def probabilities(qc, inputs=INPUTS, weights=WEIGHTS):
    """Of every bit string, for every row, from Qiskit."""
    bare = qc.remove_final_measurements(inplace=False)
    names = {p.name: p for p in bare.parameters}
    rows = []
    for row in inputs:
        values = {names[f"x[{i}]"]: v for i, v in enumerate(row)} | {names[f"w[{i}]"]: v for i, v in enumerate(weights)}
        rows.append(Statevector(bare.assign_parameters(values)).probabilities())
    return np.array(rows)


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("estimator", StatevectorEstimator()),
            ("estimator", ExactEstimator()),
            ("gradient", ParamShiftEstimatorGradient(StatevectorEstimator())),
            ("pass_manager", PassManager()),
            ("default_precision", 0.1),
        ],
    )
    def test_estimator(self, name, value):
        with pytest.raises(CircuitError, match=f"ExactEstimatorQNN: argument '{name}' .* would have no effect"):
            ExactEstimatorQNN(**circuit(), **{name: value})

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("sampler", StatevectorSampler()),
            ("gradient", ParamShiftSamplerGradient(StatevectorSampler())),
            ("pass_manager", PassManager()),
        ],
    )
    def test_sampler(self, name, value):
        with pytest.raises(CircuitError, match=f"ExactSamplerQNN: argument '{name}' .* would have no effect"):
            ExactSamplerQNN(**circuit(), **{name: value})

    def test_later(self):
        estimator, sampler = ExactEstimatorQNN(**circuit()), ExactSamplerQNN(**circuit())
        for network, name in (
            (estimator, "estimator"),
            (estimator, "gradient"),
            (sampler, "sampler"),
            (sampler, "gradient"),
        ):
            with pytest.raises(CircuitError, match=name):
                setattr(network, name, object())

    @pytest.mark.parametrize("precision", [0, 0.0, 0.015625])
    def test_precision_that_is_no_claim(self, precision):
        """The original's default, without effect there too, and 0, which is true."""
        assert ExactEstimatorQNN(**circuit(), default_precision=precision).default_precision == precision

    @pytest.mark.parametrize("shots", [0, -1, 1.5, True, "10"])
    @pytest.mark.parametrize("kind", [ExactEstimatorQNN, ExactSamplerQNN])
    def test_shots(self, kind, shots):
        with pytest.raises(CircuitError, match="shots must be a positive integer"):
            kind(**circuit(), shots=shots)

    @pytest.mark.parametrize("kind", [ExactEstimatorQNN, ExactSamplerQNN])
    def test_circuit(self, kind):
        """Before anything runs: no surprise in the middle of a training."""
        arguments = circuit()
        arguments["circuit"].reset(0)
        with pytest.raises(CircuitError, match="reset"):
            kind(**arguments)
        arguments = circuit(ClassicalRegister(1, "c"))
        arguments["circuit"].measure(0, 0)
        arguments["circuit"].h(0)
        with pytest.raises(CircuitError, match="measure"):
            kind(**arguments)

    @pytest.mark.parametrize("kind", [ExactEstimatorQNN, ExactSamplerQNN])
    def test_missing_values(self, kind):
        network = kind(**circuit())
        for run in (network.forward, network.backward):
            with pytest.raises(CircuitError, match="2 inputs, got 0"):
                run(None, WEIGHTS)
            with pytest.raises(CircuitError, match="2 weights, got 0"):
                run(INPUTS, None)

    def test_dtype(self):
        with pytest.raises(CircuitError, match="float64"):
            ExactEstimatorQNN(**circuit(), dtype="float16")

    def test_memory(self):
        with pytest.raises(CircuitError, match="memory"):
            ExactEstimatorQNN(**circuit(), memory_budget=100)


class TestInterpret:
    @pytest.mark.parametrize(
        ("interpret", "shape"),
        [
            (lambda key: key, 2),
            (lambda key: key % 2, (2, 3)),
            (lambda key: float(key % 2), 2),
            (lambda key: (key, 0), 4),
            (lambda key: -3, 2),
            (lambda key: None, 2),
        ],
    )
    def test_wrong_index(self, interpret, shape):
        with pytest.raises(CircuitError, match=r"interpret\(\d\) gives"):
            ExactSamplerQNN(**circuit(), interpret=interpret, output_shape=shape).forward(INPUTS, WEIGHTS)

    def test_set_later(self):
        """As VQC does at every fit."""
        network = ExactSamplerQNN(**circuit())
        exact = probabilities(network.circuit)
        np.testing.assert_allclose(network.forward(INPUTS, WEIGHTS), exact, atol=1e-12)
        network.set_interpret(lambda key: key % 2, 2)
        expected = np.stack([exact[:, ::2].sum(1), exact[:, 1::2].sum(1)], axis=1)
        np.testing.assert_allclose(network.forward(INPUTS, WEIGHTS), expected, atol=1e-12)
        assert network.backward(INPUTS, WEIGHTS)[1].shape == (3, 2, 2)

    def test_many_outputs(self):
        """Beyond some number of outputs, values come another way; in pieces where memory is short."""
        x, w = ParameterVector("x", 6), ParameterVector("w", 6)
        qc = QuantumCircuit(6)
        for q in range(6):
            qc.ry(x[q], q)
            qc.rx(w[q], q)
            qc.cx(q, (q + 1) % 6)
        rng = np.random.default_rng(1)
        inputs, weights = rng.normal(size=(20, 6)), rng.normal(size=6)
        network = ExactSamplerQNN(circuit=qc, input_params=x, weight_params=w, memory_budget=3 * 8 * 16 * 64)
        got = network.forward(inputs, weights)
        np.testing.assert_allclose(got, probabilities(qc, inputs, weights), atol=1e-12)
        assert got.shape == (20, 64)


class TestExceptions:
    """Where the exact networks differ from the originals on purpose."""

    def test_rows_of_a_named_register(self):
        """`SamplerQNN` gives every row the average over the batch where the register is not called `meas`."""
        arguments = circuit(ClassicalRegister(2, "c"))
        arguments["circuit"].measure([0, 1], [0, 1])
        network = ExactSamplerQNN(**arguments)
        np.testing.assert_allclose(network.forward(INPUTS, WEIGHTS), probabilities(arguments["circuit"]), atol=1e-12)

    def test_several_registers(self):
        """The first register is the lowest; `SamplerQNN.backward` fails on such names."""
        arguments = circuit(ClassicalRegister(1, "a"), ClassicalRegister(1, "b"))
        arguments["circuit"].measure([1, 0], [0, 1])
        exact = probabilities(arguments["circuit"])[:, [0, 2, 1, 3]]
        network = ExactSamplerQNN(**arguments)
        np.testing.assert_allclose(network.forward(INPUTS, WEIGHTS), exact, atol=1e-12)
        assert_derivative(network)

    def test_meas_among_others(self):
        """The register `meas` alone counts, as in the original."""
        arguments = circuit(ClassicalRegister(1, "first"), ClassicalRegister(1, "meas"))
        arguments["circuit"].measure([0, 1], [0, 1])
        exact = probabilities(arguments["circuit"])
        got = ExactSamplerQNN(**arguments).forward(INPUTS, WEIGHTS)
        np.testing.assert_allclose(got[:, :2], np.stack([exact[:, :2].sum(1), exact[:, 2:].sum(1)], axis=1), atol=1e-12)
        assert not got[:, 2:].any()
        np.testing.assert_allclose(got, SamplerQNN(**arguments).forward(INPUTS, WEIGHTS), atol=1e-9)

    def test_nothing_measured(self):
        with pytest.raises(CircuitError, match="no final measurement"):
            ExactSamplerQNN(**circuit(ClassicalRegister(2, "c")))

    def test_no_parameters(self):
        """`SamplerQNN` gives zeros."""
        qc = QuantumCircuit(1)
        qc.h(0)
        network = ExactSamplerQNN(circuit=qc)
        np.testing.assert_allclose(network.forward(None, None), [[0.5, 0.5]])
        assert network.backward(None, None) == (None, None)

    def test_layout_in_backward(self):
        """`SamplerQNN` undoes a transpiler's layout in `forward` alone."""
        arguments = circuit()
        moved = transpile(
            arguments["circuit"], coupling_map=[[0, 1], [1, 2]], initial_layout=[2, 1], optimization_level=0
        )
        plain, network = ExactSamplerQNN(**arguments), ExactSamplerQNN(**arguments | {"circuit": moved})
        np.testing.assert_allclose(network.forward(INPUTS, WEIGHTS), plain.forward(INPUTS, WEIGHTS), atol=1e-12)
        np.testing.assert_allclose(network.backward(INPUTS, WEIGHTS)[1], plain.backward(INPUTS, WEIGHTS)[1], atol=1e-12)

    def test_measured_before_transpilation(self):
        """The bits are in the old order already; `SamplerQNN.forward` moves them once more."""
        arguments = circuit()
        measured = arguments["circuit"].measure_all(inplace=False)
        moved = transpile(measured, coupling_map=[[0, 1], [1, 2]], initial_layout=[2, 1], optimization_level=0)
        got = ExactSamplerQNN(**arguments | {"circuit": moved}).forward(INPUTS, WEIGHTS)
        np.testing.assert_allclose(got, probabilities(arguments["circuit"]), atol=1e-12)
        assert not np.allclose(got, SamplerQNN(**arguments | {"circuit": moved}).forward(INPUTS, WEIGHTS), atol=1e-3)

    def test_measured_estimator(self):
        """`EstimatorQNN` fails."""
        arguments = circuit()
        measured = arguments["circuit"].measure_all(inplace=False)
        got = ExactEstimatorQNN(**arguments | {"circuit": measured}).forward(INPUTS, WEIGHTS)
        np.testing.assert_allclose(got, ExactEstimatorQNN(**arguments).forward(INPUTS, WEIGHTS), atol=1e-14)

    def test_projectors(self):
        """`EstimatorQNN` fails on an observable of projectors: here |0><0| on qubit 1."""
        network = ExactEstimatorQNN(**circuit(), observables=[SparseObservable("0I")])
        exact = probabilities(network.circuit)[:, :2].sum(1)
        np.testing.assert_allclose(network.forward(INPUTS, WEIGHTS)[:, 0], exact, atol=1e-12)

    @pytest.mark.parametrize("kind", [ExactEstimatorQNN, ExactSamplerQNN])
    def test_no_rows(self, kind):
        network = kind(**circuit(), input_gradients=True)
        assert network.forward(np.zeros((0, 2)), WEIGHTS).shape == (0, *network.output_shape)
        assert network.backward(np.zeros((0, 2)), WEIGHTS) == (None, None)


def assert_derivative(network):
    """`backward` is the derivative of `forward` by the weights: central differences."""
    _, got = network.backward(INPUTS, WEIGHTS)
    step = 1e-5
    for j in range(len(WEIGHTS)):
        shift = step * np.eye(len(WEIGHTS))[j]
        slope = (network.forward(INPUTS, WEIGHTS + shift) - network.forward(INPUTS, WEIGHTS - shift)) / (2 * step)
        np.testing.assert_allclose(got[..., j], slope, atol=1e-8)


class TestShots:
    SHOTS = 2000

    def test_distribution(self):
        """Chi-square of 50 forward passes against Qiskit's probabilities."""
        network = ExactSamplerQNN(**circuit(), shots=self.SHOTS, seed=1)
        counts = sum(network.forward(INPUTS, WEIGHTS) * self.SHOTS for _ in range(50))
        expected = probabilities(network.circuit) * self.SHOTS * 50
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert statistic < chi2.isf(1e-4, df=expected.size - len(expected))
        assert np.all(counts == np.round(counts))

    def test_equals_aer(self):
        """Two-sample chi-square against Aer's counts."""
        network = ExactSamplerQNN(**circuit(), shots=20000, seed=2)
        ours = network.forward(INPUTS[0], WEIGHTS)[0] * 20000
        qc = network.circuit.measure_all(inplace=False)
        names = {p.name: p for p in qc.parameters}
        values = {names["x[0]"]: INPUTS[0, 0], names["x[1]"]: INPUTS[0, 1]} | {
            names["w[0]"]: WEIGHTS[0],
            names["w[1]"]: WEIGHTS[1],
        }
        found = AerSimulator(seed_simulator=3).run(qc.assign_parameters(values), shots=20000).result().get_counts()
        aer = np.array([found.get(f"{key:02b}", 0) for key in range(4)])
        assert ((ours - aer) ** 2 / (ours + aer)).sum() < chi2.isf(1e-4, df=3)

    def test_expectation(self):
        """Mean and spread of an observable of two groups, X Y and I Z: variance (1 - <P>^2) a^2 / shots each."""
        observable = SparsePauliOp(["XY", "IZ"], [0.7, -0.5])
        exact = ExactEstimatorQNN(**circuit(), observables=observable).forward(INPUTS, WEIGHTS)[:, 0]
        single = ExactEstimatorQNN(**circuit(), observables=[SparsePauliOp("XY"), SparsePauliOp("IZ")])
        parts = single.forward(INPUTS, WEIGHTS)
        variance = (0.49 * (1 - parts[:, 0] ** 2) + 0.25 * (1 - parts[:, 1] ** 2)) / self.SHOTS
        network = ExactEstimatorQNN(**circuit(), observables=observable, shots=self.SHOTS, seed=3)
        draws = np.array([network.forward(INPUTS, WEIGHTS)[:, 0] for _ in range(200)])
        z = (draws.mean(0) - exact) / np.sqrt(variance / 200)
        assert np.all(np.abs(z) < norm.isf(1e-4))
        ratio = draws.var(0, ddof=1) / variance * 199
        assert np.all((ratio > chi2.ppf(1e-4, 199)) & (ratio < chi2.isf(1e-4, 199)))

    @pytest.mark.parametrize("kind", [ExactEstimatorQNN, ExactSamplerQNN])
    def test_gradient(self, kind):
        """Parameter shifts with shots: unbiased, and not exact."""
        exact = kind(**circuit(), input_gradients=True).backward(INPUTS[:1], WEIGHTS)
        network = kind(**circuit(), input_gradients=True, shots=400, seed=4)
        draws = [network.backward(INPUTS[:1], WEIGHTS) for _ in range(40)]
        for part in (0, 1):
            found = np.array([draw[part] for draw in draws])
            error = found.std(0, ddof=1) / np.sqrt(len(draws))
            assert found.std(0).max() > 1e-3
            assert np.all(np.abs(found.mean(0) - exact[part]) < 5 * error + 1e-9)

    @pytest.mark.parametrize("kind", [ExactEstimatorQNN, ExactSamplerQNN])
    def test_seed(self, kind):
        """Equal seeds, equal runs; and within a run no two draws are the same."""
        first, second = (kind(**circuit(), shots=1000, seed=5) for _ in range(2))
        a, b = first.forward(INPUTS, WEIGHTS), first.forward(INPUTS, WEIGHTS)
        assert not np.array_equal(a, b)
        np.testing.assert_array_equal(a, second.forward(INPUTS, WEIGHTS))
        np.testing.assert_array_equal(b, second.forward(INPUTS, WEIGHTS))
        np.testing.assert_array_equal(first.backward(INPUTS, WEIGHTS)[1], second.backward(INPUTS, WEIGHTS)[1])
        assert not np.array_equal(a, kind(**circuit(), shots=1000, seed=6).forward(INPUTS, WEIGHTS))

    def test_measured_registers(self):
        """Gradients with shots where the registers have names that the original cannot read."""
        arguments = circuit(ClassicalRegister(1, "a"), ClassicalRegister(1, "b"))
        arguments["circuit"].measure([1, 0], [0, 1])
        exact = ExactSamplerQNN(**arguments).backward(INPUTS, WEIGHTS)[1]
        noisy = ExactSamplerQNN(**arguments, shots=40000, seed=1).backward(INPUTS, WEIGHTS)[1]
        np.testing.assert_allclose(noisy, exact, atol=0.03)


class TestBehaviour:
    def test_input_gradients_later(self):
        """TorchConnector's users switch them on afterwards."""
        network = ExactEstimatorQNN(**circuit())
        assert network.backward(INPUTS, WEIGHTS)[0] is None
        network.input_gradients = True
        assert network.backward(INPUTS, WEIGHTS)[0].shape == (3, 1, 2)

    @pytest.mark.parametrize("kind", [ExactEstimatorQNN, ExactSamplerQNN])
    def test_single_precision(self, kind):
        double, single = (kind(**circuit(), dtype=dtype) for dtype in ("float64", "float32"))
        gap = np.abs(double.forward(INPUTS, WEIGHTS) - single.forward(INPUTS, WEIGHTS)).max()
        assert 0 < gap < 1e-6
        np.testing.assert_allclose(single.backward(INPUTS, WEIGHTS)[1], double.backward(INPUTS, WEIGHTS)[1], atol=1e-5)

    @pytest.mark.parametrize("kind", [ExactEstimatorQNN, ExactSamplerQNN])
    def test_copies(self, kind):
        """Deep copies and dill, which qiskit-machine-learning saves its models with."""
        network = kind(**circuit())
        expected = network.forward(INPUTS, WEIGHTS)
        for twin in (copy.deepcopy(network), dill.loads(dill.dumps(network))):
            np.testing.assert_array_equal(twin.forward(INPUTS, WEIGHTS), expected)
            np.testing.assert_array_equal(twin.backward(INPUTS, WEIGHTS)[1], network.backward(INPUTS, WEIGHTS)[1])

    def test_sparse_stays_sparse(self):
        """Zeros are not stored."""
        qc = QuantumCircuit(3)
        theta = ParameterVector("theta", 1)
        qc.ry(theta[0], 0)
        network = ExactSamplerQNN(circuit=qc, weight_params=theta, sparse=True)
        assert network.forward(None, [0.5]).nnz == 2
        assert network.backward(None, [0.5])[1].nnz == 2

    def test_the_network_keeps_its_circuit(self):
        arguments = circuit(ClassicalRegister(2, "meas"))
        arguments["circuit"].measure([0, 1], [0, 1])
        before = arguments["circuit"].copy()
        assert ExactSamplerQNN(**arguments).circuit == before
        assert ExactEstimatorQNN(**arguments).circuit == before
        assert arguments["circuit"] == before

    def test_primitives_behind(self):
        assert isinstance(ExactEstimatorQNN(**circuit()).estimator, ExactEstimator)
        sampler = ExactSamplerQNN(**circuit(), shots=77).sampler
        assert isinstance(sampler, ExactSampler)
        assert sampler.default_shots == 77


def test_import_is_light():
    """The names are there without torch, and the package alone without Qiskit."""
    script = (
        "import sys, llm_qfl.quantum; assert 'qiskit' not in sys.modules\n"
        "from llm_qfl.quantum import ExactEstimator, ExactEstimatorQNN, ExactSampler, ExactSamplerQNN\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_unknown_name():
    import llm_qfl.quantum

    with pytest.raises(AttributeError, match="ExactCat"):
        _ = llm_qfl.quantum.ExactCat

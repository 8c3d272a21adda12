"""One battery, run on qiskit's own classes and on the exact ones: the same code must give the same results.

Expected values are those of the originals on exact simulation. They round probabilities to 1e-12, so 1e-9 is what
"the same" means here; where noise is drawn, both draw it from the same seed.
"""

import numpy as np
import pytest
import sparse
import torch
from qiskit import ClassicalRegister, QuantumCircuit, transpile
from qiskit.circuit import ParameterVector
from qiskit.circuit.library import real_amplitudes, zz_feature_map
from qiskit.primitives import StatevectorEstimator, StatevectorSampler
from qiskit.quantum_info import SparsePauliOp
from qiskit_machine_learning.algorithms import VQC, VQR, NeuralNetworkClassifier, NeuralNetworkRegressor
from qiskit_machine_learning.circuit.library import qnn_circuit
from qiskit_machine_learning.connectors import TorchConnector
from qiskit_machine_learning.gradients import (
    DerivativeType,
    LinCombEstimatorGradient,
    LinCombSamplerGradient,
    ParamShiftEstimatorGradient,
    ParamShiftSamplerGradient,
    SPSAEstimatorGradient,
    SPSASamplerGradient,
)
from qiskit_machine_learning.kernels import FidelityQuantumKernel
from qiskit_machine_learning.neural_networks import (
    EffectiveDimension,
    EstimatorQNN,
    NeuralNetwork,
    SamplerQNN,
)
from qiskit_machine_learning.optimizers import ADAM, COBYLA, L_BFGS_B, NELDER_MEAD, SPSA
from qiskit_machine_learning.primitives import QMLEstimator
from qiskit_machine_learning.state_fidelities import ComputeUncompute
from qiskit_machine_learning.utils import algorithm_globals

from llm_qfl.quantum import ExactEstimator, ExactEstimatorQNN, ExactSampler, ExactSamplerQNN

# The originals' own: qiskit-machine-learning hands SciPy an option that SciPy is about to drop, and PyTorch says once
# per process that the sparse tensors which TorchConnector makes are not checked.
pytestmark = [
    pytest.mark.filterwarnings("ignore:scipy.optimize. The `disp` and `iprint` options:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning"),
]

SAME = 1e-9
OBSERVABLES = [SparsePauliOp("ZZ"), SparsePauliOp(["XY", "IZ", "II"], [0.3, -0.4, 0.2])]


def assert_same(got, expected):
    """Equal in kind, shape and value; tuples and None included."""
    if isinstance(expected, tuple | list):
        assert len(got) == len(expected)
        for g, e in zip(got, expected, strict=True):
            assert_same(g, e)
        return
    if expected is None:
        assert got is None
        return
    assert isinstance(got, sparse.COO) == isinstance(expected, sparse.COO)
    if isinstance(expected, sparse.COO):
        got, expected = got.todense(), expected.todense()
    assert np.shape(got) == np.shape(expected)
    np.testing.assert_allclose(got, expected, rtol=0, atol=SAME)


def circuit(num_inputs, num_weights):
    """Expressions, a repeated input, a parameter shared by gates; two qubits, entangled."""
    x, w = ParameterVector("x", num_inputs), ParameterVector("w", num_weights)
    qc = QuantumCircuit(2)
    qc.h([0, 1])
    for i in range(num_inputs):
        qc.ry(0.5 * x[i] + 0.1, i % 2)
        qc.p((np.pi - x[i]) * x[(i + 1) % num_inputs], 1)
    qc.cx(0, 1)
    for j in range(num_weights):
        qc.rx(w[j], j % 2)
        qc.rzz(0.7 * w[j], 0, 1)
        if num_inputs:
            qc.ry(w[j] * x[j % num_inputs] - 0.2, 1)
    return qc, list(x), list(w)


def parity(key):
    return key.bit_count() % 2


RNG = np.random.default_rng(11)
CASES = {
    "weights only": (0, 3, None, RNG.normal(size=3)),
    "one weight, a number": (0, 1, None, 0.7),
    "inputs only": (2, 0, RNG.normal(size=(3, 2)), None),
    "one input, a number": (1, 2, 0.4, [0.1, -0.8]),
    "one input, column": (1, 2, RNG.normal(size=(3, 1)), [0.1, -0.8]),
    "one row": (2, 3, RNG.normal(size=2), RNG.normal(size=3)),
    "one row, list": (2, 3, [0.1, 0.2], [0.3, 0.4, 0.5]),
    "integers": (2, 1, [[1, 2], [0, 1]], [1]),
    "2-d, one row": (2, 3, RNG.normal(size=(1, 2)), RNG.normal(size=3)),
    "2-d": (2, 3, RNG.normal(size=(3, 2)), RNG.normal(size=3)),
    "3-d": (2, 3, RNG.normal(size=(2, 2, 2)), RNG.normal(size=3)),
    "4-d": (3, 2, RNG.normal(size=(2, 1, 1, 3)), RNG.normal(size=2)),
}
READOUTS = {
    "integers": {},
    "parity": {"interpret": parity, "output_shape": 2},
    "tuples": {"interpret": lambda key: (key % 2, key // 2 + 1), "output_shape": (2, 4)},
    "numpy shape": {"interpret": lambda key: np.int64(key % 3), "output_shape": np.int64(3)},
}


def run_network(network, inputs, weights):
    return (
        network.num_inputs,
        network.num_weights,
        network.output_shape,
        network.forward(inputs, weights),
        network.backward(inputs, weights),
    )


class TestNetworks:
    """`forward` and `backward` for every shape of input and every option."""

    @pytest.mark.parametrize("input_gradients", [False, True])
    @pytest.mark.parametrize("observables", [None, OBSERVABLES[1], OBSERVABLES], ids=["default", "one", "two"])
    @pytest.mark.parametrize("case", CASES)
    def test_estimator(self, case, observables, input_gradients):
        num_inputs, num_weights, inputs, weights = CASES[case]
        qc, x, w = circuit(num_inputs, num_weights)

        def run(kind):
            network = kind(
                circuit=qc,
                observables=observables,
                input_params=x or None,
                weight_params=w or None,
                input_gradients=input_gradients,
            )
            return run_network(network, inputs, weights)

        assert_same(run(ExactEstimatorQNN), run(EstimatorQNN))

    @pytest.mark.parametrize(
        ("readout", "as_sparse", "input_gradients"),
        [
            ("integers", False, True),
            ("integers", True, True),
            ("parity", False, False),
            ("parity", True, False),
            ("tuples", True, True),
            ("numpy shape", False, True),
        ],
    )
    @pytest.mark.parametrize("case", CASES)
    def test_sampler(self, case, readout, as_sparse, input_gradients):
        num_inputs, num_weights, inputs, weights = CASES[case]
        qc, x, w = circuit(num_inputs, num_weights)

        def run(kind):
            network = kind(
                circuit=qc,
                input_params=x or None,
                weight_params=w or None,
                sparse=as_sparse,
                input_gradients=input_gradients,
                **READOUTS[readout],
            )
            return run_network(network, inputs, weights)

        assert_same(run(ExactSamplerQNN), run(SamplerQNN))

    @pytest.mark.parametrize(
        ("kind", "base"),
        [(ExactEstimatorQNN, EstimatorQNN), (ExactSamplerQNN, SamplerQNN)],
        ids=["estimator", "sampler"],
    )
    def test_is_one_of_them(self, kind, base):
        qc, x, w = circuit(1, 1)
        network = kind(circuit=qc, input_params=x, weight_params=w)
        assert isinstance(network, base)
        assert isinstance(network, NeuralNetwork)
        original = base(circuit=qc, input_params=x, weight_params=w)
        for name in ("circuit", "input_params", "weight_params", "sparse", "input_gradients", "output_shape"):
            assert getattr(network, name) == getattr(original, name)

    def test_no_parameters(self):
        qc, _, _ = circuit(0, 0)
        assert_same(
            run_network(ExactEstimatorQNN(circuit=qc), None, None), run_network(EstimatorQNN(circuit=qc), None, None)
        )

    @pytest.mark.parametrize("pair", [(EstimatorQNN, ExactEstimatorQNN), (SamplerQNN, ExactSamplerQNN)])
    def test_same_mistakes(self, pair):
        """What the originals refuse is refused with the same kind of error."""
        qc, x, w = circuit(2, 3)
        for kind in pair:
            with pytest.raises(ValueError, match="does not match the sum"):
                kind(circuit=qc, input_params=x)
            with pytest.raises(ValueError, match="not present"):
                kind(circuit=qc, input_params=x[:1] + list(ParameterVector("y", 1)), weight_params=w)
            network = kind(circuit=qc, input_params=x, weight_params=w)
            with pytest.raises(Exception, match="not equal to the number of inputs"):
                network.forward(np.zeros((2, 3)), np.zeros(3))
            with pytest.raises(ValueError, match="reshape"):
                network.forward(np.zeros((2, 2)), np.zeros(4))
            with pytest.raises(ValueError):  # noqa: PT011 - the originals' text is about parameter names
                network.forward(None, np.zeros(3))

    def test_measured_circuit(self):
        """Bits in another order than qubits, fewer of them, and more: the originals drop integers beyond 2**qubits."""
        for qubits in ((1, 0), (1,), (0, 1, 0)):
            qc, x, w = circuit(2, 2)
            measured = QuantumCircuit(2)
            measured.compose(qc, inplace=True)
            measured.add_register(ClassicalRegister(len(qubits), "meas"))
            measured.measure(qubits, range(len(qubits)))

            def run(kind, measured=measured, x=x, w=w):
                network = kind(circuit=measured, input_params=x, weight_params=w, input_gradients=True)
                return run_network(network, RNG_INPUTS, [0.3, -0.9])

            assert_same(run(ExactSamplerQNN), run(SamplerQNN))

    def test_qnn_circuit(self):
        qc, inputs, weights = qnn_circuit(feature_map=zz_feature_map(2, reps=1), ansatz=real_amplitudes(2, reps=1))
        rng = np.random.default_rng(5)
        x, w = rng.normal(size=(2, 2)), rng.normal(size=len(weights))
        for ours, original in ((ExactEstimatorQNN, EstimatorQNN), (ExactSamplerQNN, SamplerQNN)):
            got, expected = (
                run_network(kind(circuit=qc, input_params=inputs, weight_params=weights, input_gradients=True), x, w)
                for kind in (ours, original)
            )
            assert_same(got, expected)

    def test_transpiled_circuit(self):
        """A layout: the network reads the qubits in their order before transpilation."""
        qc, x, w = circuit(2, 2)
        moved = transpile(qc, coupling_map=[[0, 1], [1, 2]], initial_layout=[2, 1], optimization_level=0)
        observable = OBSERVABLES[1].apply_layout(moved.layout)
        arguments = {"circuit": moved, "input_params": x, "weight_params": w}
        values = [kind(**arguments).forward(RNG_INPUTS, [0.3, -0.9]) for kind in (ExactSamplerQNN, SamplerQNN)]
        assert_same(*values)
        for observables in (None, observable):
            assert_same(
                run_network(ExactEstimatorQNN(observables=observables, **arguments), RNG_INPUTS, [0.3, -0.9]),
                run_network(EstimatorQNN(observables=observables, **arguments), RNG_INPUTS, [0.3, -0.9]),
            )


RNG_INPUTS = np.random.default_rng(2).normal(size=(3, 2))


def two_classes(rows=12):
    rng = np.random.default_rng(3)
    x = rng.uniform(-1, 1, size=(rows, 2))
    return x, (x[:, 0] + 0.3 * x[:, 1] > 0).astype(int)


def estimator_network(kind, **options):
    qc, x, w = circuit(2, 3)
    return kind(circuit=qc, input_params=x, weight_params=w, **options)


def sampler_network(kind, **options):
    return estimator_network(kind, interpret=parity, output_shape=2, **options)


class TestTorch:
    @pytest.mark.parametrize("rows", [None, 1, 4])
    @pytest.mark.parametrize(
        "kinds", [(EstimatorQNN, ExactEstimatorQNN), (SamplerQNN, ExactSamplerQNN)], ids=["estimator", "sampler"]
    )
    def test_dense(self, kinds, rows):
        def run(kind):
            network = estimator_network(kind, input_gradients=True)
            layer = TorchConnector(network, initial_weights=np.array([0.1, 0.2, -0.3]))
            shape = (2,) if rows is None else (rows, 2)
            x = torch.linspace(-1, 1, int(np.prod(shape))).reshape(shape).requires_grad_()
            out = layer(x)
            (out**2).sum().backward()
            return [t.detach().numpy() for t in (out, x.grad, layer.weight.grad)]

        got, expected = run(kinds[1]), run(kinds[0])
        for g, e in zip(got, expected, strict=True):
            assert g.shape == e.shape
            np.testing.assert_allclose(g, e, rtol=0, atol=2e-6)  # torch computes in float32

    def test_sparse(self):
        def run(kind):
            layer = TorchConnector(
                sampler_network(kind, sparse=True, input_gradients=True), initial_weights=np.array([0.1, 0.2, -0.3])
            )
            x = torch.tensor(RNG_INPUTS, requires_grad=True)
            out = layer(x)
            torch.sparse.sum(out).backward()
            return out.detach().to_dense().numpy(), layer.weight.grad.to_dense().numpy()

        for g, e in zip(run(ExactSamplerQNN), run(SamplerQNN), strict=True):
            np.testing.assert_allclose(g, e, rtol=0, atol=2e-6)

    def test_hybrid_training(self):
        """Weights of a layer before and of the network itself after some steps of Adam."""

        def run(kind):
            torch.manual_seed(0)
            network = TorchConnector(estimator_network(kind, input_gradients=True), initial_weights=np.zeros(3))
            model = torch.nn.Sequential(torch.nn.Linear(2, 2), network)
            optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
            x, y = two_classes()
            inputs, target = torch.tensor(x, dtype=torch.float32), torch.tensor(2.0 * y - 1, dtype=torch.float32)
            for _ in range(3):
                optimizer.zero_grad()
                ((model(inputs)[:, 0] - target) ** 2).mean().backward()
                optimizer.step()
            return [p.detach().numpy() for p in model.parameters()]

        for g, e in zip(run(ExactEstimatorQNN), run(EstimatorQNN), strict=True):
            np.testing.assert_allclose(g, e, rtol=0, atol=1e-4)


# COBYLA's later steps hang on comparisons that a difference of 1e-16 turns over, so it gets few.
OPTIMIZERS = {
    "adam": lambda: ADAM(maxiter=3, lr=0.1),
    "l-bfgs-b": lambda: L_BFGS_B(maxiter=3),
    "cobyla": lambda: COBYLA(maxiter=6),
    "spsa": lambda: SPSA(maxiter=3, learning_rate=0.1, perturbation=0.1),
}


class TestTrainers:
    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_classifier_estimator(self, optimizer):
        x, y = two_classes()

        def run(kind):
            algorithm_globals.random_seed = 6
            model = NeuralNetworkClassifier(
                estimator_network(kind), optimizer=OPTIMIZERS[optimizer](), initial_point=np.array([0.1, 0.2, 0.3])
            ).fit(x, 2 * y - 1)
            return model.weights, model.predict(x), np.array(model.score(x, 2 * y - 1))

        for g, e in zip(run(ExactEstimatorQNN), run(EstimatorQNN), strict=True):
            np.testing.assert_allclose(g, e, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("one_hot", [False, True])
    def test_classifier_sampler(self, one_hot):
        x, y = two_classes()

        def run(kind):
            model = NeuralNetworkClassifier(
                sampler_network(kind),
                loss="cross_entropy" if one_hot else "squared_error",
                one_hot=one_hot,
                optimizer=ADAM(maxiter=3, lr=0.1),
                initial_point=np.array([0.1, 0.2, 0.3]),
            )
            model.fit(x, np.eye(2)[y] if one_hot else y)
            return model.weights, np.asarray(model.predict(x), dtype=float)

        for g, e in zip(run(ExactSamplerQNN), run(SamplerQNN), strict=True):
            np.testing.assert_allclose(g, e, rtol=0, atol=1e-6)

    def test_regressor(self):
        x, _ = two_classes()
        y = np.sin(x[:, 0])

        def run(kind):
            model = NeuralNetworkRegressor(
                estimator_network(kind), optimizer=L_BFGS_B(maxiter=4), initial_point=np.array([0.1, 0.2, 0.3])
            ).fit(x, y)
            return model.weights, model.predict(x)

        for g, e in zip(run(ExactEstimatorQNN), run(EstimatorQNN), strict=True):
            np.testing.assert_allclose(g, e, rtol=0, atol=1e-6)

    def test_vqc(self):
        """With shots from one seed the whole training is the same, bit for bit."""
        x, y = two_classes(8)

        def run(sampler):
            model = VQC(
                feature_map=zz_feature_map(2, reps=1),
                ansatz=real_amplitudes(2, reps=1),
                optimizer=COBYLA(maxiter=8),
                initial_point=np.array([0.1, 0.2, 0.3, 0.4]),
                sampler=sampler,
            ).fit(x, np.eye(2)[y])
            return model.weights, model.predict(x)

        for g, e in zip(run(ExactSampler(seed=4)), run(StatevectorSampler(seed=4)), strict=True):
            np.testing.assert_array_equal(g, e)

    def test_vqc_as_a_classifier(self):
        """What VQC does, by the exact network: same weights as VQC with its exact sampler."""
        x, y = two_classes(8)
        features, ansatz = zz_feature_map(2, reps=1), real_amplitudes(2, reps=1)
        common = {"optimizer": L_BFGS_B(maxiter=3), "initial_point": np.array([0.1, 0.2, 0.3, 0.4])}
        original = VQC(feature_map=features, ansatz=ansatz, **common).fit(x, np.eye(2)[y])
        network = ExactSamplerQNN(
            circuit=features.compose(ansatz),
            input_params=features.parameters,
            weight_params=ansatz.parameters,
            interpret=lambda key: key % 2,
            output_shape=2,
        )
        ours = NeuralNetworkClassifier(network, loss="cross_entropy", one_hot=True, **common).fit(x, np.eye(2)[y])
        np.testing.assert_allclose(ours.weights, original.weights, rtol=0, atol=1e-6)

    def test_vqr(self):
        x = np.linspace(-1, 1, 6).reshape(-1, 1)

        def run(estimator):
            phi, theta = ParameterVector("phi", 1), ParameterVector("theta", 1)
            features, ansatz = QuantumCircuit(1), QuantumCircuit(1)
            features.ry(phi[0], 0)
            ansatz.ry(theta[0], 0)
            model = VQR(
                feature_map=features,
                ansatz=ansatz,
                optimizer=COBYLA(maxiter=8),
                initial_point=np.array([0.3]),
                estimator=estimator,
            ).fit(x, np.sin(x[:, 0]))
            return model.weights, model.predict(x)

        for g, e in zip(run(ExactEstimator(seed=1)), run(StatevectorEstimator(seed=1)), strict=True):
            np.testing.assert_allclose(g, e, rtol=0, atol=SAME)

    def test_effective_dimension(self):
        def run(kind):
            algorithm_globals.random_seed = 3
            return EffectiveDimension(estimator_network(kind), 2, 2).get_effective_dimension([100, 1000])

        np.testing.assert_allclose(run(ExactEstimatorQNN), run(EstimatorQNN), rtol=1e-9)


class TestGradients:
    """Qiskit's gradient classes on the primitives."""

    VALUES = ((0.2, -0.4, 0.3), (1.0, 0.5, -2.0))

    @pytest.mark.parametrize(
        "make",
        [
            ParamShiftEstimatorGradient,
            LinCombEstimatorGradient,
            lambda e: LinCombEstimatorGradient(e, derivative_type=DerivativeType.COMPLEX),
            lambda e: SPSAEstimatorGradient(e, epsilon=0.01, batch_size=3, seed=2),
        ],
        ids=["parameter shift", "linear combination", "complex", "spsa"],
    )
    def test_estimator(self, make):
        qc = self.plain()

        def run(estimator):
            job = make(estimator).run([qc] * 4, OBSERVABLES * 2, [*self.VALUES, *self.VALUES])
            return np.array(job.result().gradients)

        np.testing.assert_allclose(run(ExactEstimator()), run(StatevectorEstimator()), rtol=0, atol=1e-9)

    @pytest.mark.parametrize(
        "make",
        [
            ParamShiftSamplerGradient,
            LinCombSamplerGradient,
            lambda s: SPSASamplerGradient(s, epsilon=0.1, batch_size=2, seed=2),
        ],
        ids=["parameter shift", "linear combination", "spsa"],
    )
    def test_sampler(self, make):
        qc = self.plain().measure_all(inplace=False)

        def run(sampler):
            gradients = make(sampler).run([qc] * 2, self.VALUES).result().gradients
            return np.array([[[g.get(key, 0.0) for key in range(4)] for g in row] for row in gradients])

        # The same seed gives the same shots, so even noisy gradients agree.
        np.testing.assert_allclose(run(ExactSampler(seed=9)), run(StatevectorSampler(seed=9)), rtol=0, atol=1e-12)

    @staticmethod
    def plain():
        """Rotations by bare parameters only: what the linear-combination gradients take."""
        w = ParameterVector("w", 3)
        qc = QuantumCircuit(2)
        qc.ry(0.7, [0, 1])
        qc.rx(w[0], 0)
        qc.ry(w[1], 1)
        qc.cx(0, 1)
        qc.rz(w[2], 1)
        qc.ry(0.4, 1)
        return qc


class TestPrimitivesInside:
    """The exact primitives inside qiskit-machine-learning's own classes."""

    def test_estimator_qnn(self):
        def run(estimator, precision):
            network = estimator_network(
                EstimatorQNN,
                estimator=estimator,
                observables=OBSERVABLES,
                default_precision=precision,
                input_gradients=True,
            )
            return run_network(network, RNG_INPUTS, [0.1, 0.2, 0.3])

        assert_same(run(ExactEstimator(), 0.0), run(QMLEstimator(), 0.0))
        # Precision adds the same noise from the same seed.
        assert_same(run(ExactEstimator(seed=3), 0.05), run(StatevectorEstimator(seed=3), 0.05))

    def test_sampler_qnn(self):
        def run(sampler):
            return run_network(
                sampler_network(SamplerQNN, sampler=sampler, input_gradients=True), RNG_INPUTS, [0.1, 0.2, 0.3]
            )

        assert_same(run(ExactSampler(seed=3)), run(StatevectorSampler(seed=3)))

    def test_fidelity_kernel(self):
        def run(sampler):
            fidelity = ComputeUncompute(sampler=sampler)
            return FidelityQuantumKernel(feature_map=zz_feature_map(2, reps=1), fidelity=fidelity).evaluate(RNG_INPUTS)

        np.testing.assert_array_equal(run(ExactSampler(seed=5)), run(StatevectorSampler(seed=5)))

    @pytest.mark.parametrize(
        "optimizer",
        [
            lambda: COBYLA(maxiter=6),
            lambda: L_BFGS_B(maxiter=5),
            lambda: NELDER_MEAD(maxiter=15),
            lambda: SPSA(maxiter=8),
            lambda: ADAM(maxiter=4, lr=0.1),
        ],
        ids=["cobyla", "l-bfgs-b", "nelder-mead", "spsa", "adam"],
    )
    def test_optimizers(self, optimizer):
        """An energy as the objective, read from the primitive."""
        qc = TestGradients.plain()

        def run(estimator):
            algorithm_globals.random_seed = 1

            def energy(point):
                return float(estimator.run([(qc, OBSERVABLES[1], point)]).result()[0].data.evs)

            return optimizer().minimize(energy, np.array([0.1, 0.2, 0.3])).x

        # Three of them form quotients over steps of 1e-8 or so, which turn 1e-16 into 1e-6.
        np.testing.assert_allclose(run(ExactEstimator()), run(StatevectorEstimator()), rtol=0, atol=1e-4)

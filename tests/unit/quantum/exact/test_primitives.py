"""The exact primitives against `StatevectorEstimator` and `StatevectorSampler`, PUB by PUB."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister
from qiskit.circuit import Parameter, ParameterVector
from qiskit.circuit.library import PauliEvolutionGate, UnitaryGate, efficient_su2
from qiskit.primitives import (
    BackendEstimatorV2,
    BaseEstimatorV2,
    BaseSamplerV2,
    BitArray,
    PrimitiveJob,
    StatevectorEstimator,
    StatevectorSampler,
)
from qiskit.quantum_info import Pauli, SparseObservable, SparsePauliOp, random_unitary
from qiskit_aer import AerSimulator
from scipy.stats import chi2, norm

from llm_qfl.federation.errors import CircuitError
from llm_qfl.quantum import ExactEstimator, ExactSampler
from llm_qfl.quantum.exact.engine_cache import EngineCache, circuit_key
from llm_qfl.quantum.exact.estimator import shots_for

SAME = 1e-12
XY = SparsePauliOp(["XYZ", "ZII", "III"], [0.5, -1.5, 0.25])


def ansatz(measured=False):
    qc = efficient_su2(3, reps=1)
    if measured:
        qc.measure_all()
    return qc


def values(*shape):
    """Parameter sets, the same ones for a shape whatever ran before."""
    return np.random.default_rng([8, *shape]).normal(size=(*shape, ansatz().num_parameters))


def assert_same_estimates(pubs, *, seed=None, precision=None, tolerance=SAME):
    pubs = list(pubs)
    got = ExactEstimator(seed=seed).run(pubs, precision=precision).result()
    expected = StatevectorEstimator(seed=seed).run(pubs, precision=precision).result()
    assert got.metadata == expected.metadata
    assert len(got) == len(expected)
    for g, e in zip(got, expected, strict=True):
        assert g.data.shape == e.data.shape
        assert np.shape(g.data.evs) == np.shape(e.data.evs)
        np.testing.assert_allclose(g.data.evs, e.data.evs, rtol=0, atol=tolerance)
        np.testing.assert_array_equal(g.data.stds, e.data.stds)
        assert g.metadata == e.metadata


class TestEstimator:
    SHAPES: ClassVar = {
        "no arrays": (values, lambda: XY),
        "points": (lambda: values(4), lambda: "ZZI"),
        "observables": (values, lambda: ["ZZI", Pauli("-XIX"), XY]),
        "zipped": (lambda: values(3), lambda: ["ZZI", "XIX", XY]),
        "outer product": (lambda: values(4), lambda: [["ZZI"], ["XIX"], [XY]]),
        "three axes": (lambda: values(2, 1, 3), lambda: [[["III"]], [["YII"]]]),
        "repeated observable": (lambda: values(3), lambda: [["ZII"], ["ZII"], ["IIZ"]]),
        "many zipped": (lambda: values(8), lambda: [SparsePauliOp("ZIZ", k + 1.0) for k in range(8)]),
        "dictionary": (lambda: values(2), lambda: {"ZZZ": 0.5, "XII": 2.0}),
        "one point, axis": (lambda: values(1), lambda: ["ZZI", "IZZ"]),
    }

    def test_is_a_primitive(self):
        estimator = ExactEstimator()
        assert isinstance(estimator, BaseEstimatorV2)
        assert isinstance(estimator.run([]), PrimitiveJob)
        assert len(estimator.run([]).result()) == 0

    @pytest.mark.parametrize("name", SHAPES)
    def test_broadcasting(self, name):
        points, observables = (make() for make in self.SHAPES[name])
        assert_same_estimates([(ansatz(), observables, points)])

    def test_named_values(self):
        """Bindings by parameter, in several arrays."""
        rng = np.random.default_rng(1)
        a, b, c = Parameter("a"), Parameter("b"), ParameterVector("c", 2)
        qc = QuantumCircuit(2)
        qc.ry(a, 0)
        qc.rx(b * a, 1)
        qc.cx(0, 1)
        qc.rz(c[0], 0)
        qc.ry(c[1], 1)
        bindings = {b: rng.normal(size=5), (a,): rng.normal(size=(5, 1)), c: rng.normal(size=(5, 2))}
        assert_same_estimates([(qc, ["XZ"], bindings)])

    def test_several_pubs(self):
        """Shared circuits and points, other circuits, and what takes no points; each result in its place."""
        qc, points = ansatz(), values(3)
        other = QuantumCircuit(2, metadata={"note": "bell"})
        other.h(0)
        other.cx(0, 1)
        assert_same_estimates(
            [
                (qc, "ZZI", points),
                (qc, "XIX", points),
                (other, ["ZZ", "XX"]),
                (qc, XY, points[0]),
                (ansatz(), ["ZII", "ZZI"], points[:2]),
                (qc, [["ZZI"], [XY]], points),
                (qc, XY, values(0)),
            ]
        )

    @settings(max_examples=15, deadline=None)
    @given(st.data())
    def test_any_shapes(self, data):
        """Points and observables of any shapes that broadcast."""
        shape = data.draw(st.lists(st.integers(1, 3), max_size=3))
        sides = []
        for _ in range(2):
            kept = shape[data.draw(st.integers(0, len(shape))) :]
            sides.append([1 if data.draw(st.booleans()) else n for n in kept])
        rng = np.random.default_rng(data.draw(st.integers(0, 100)))
        points = rng.normal(size=(*sides[0], ansatz().num_parameters))
        labels = np.array(["ZZI", "XIX", "IYI"], dtype=object)[rng.integers(0, 3, size=sides[1])]
        assert_same_estimates([(ansatz(), labels.tolist() if sides[1] else str(labels), points)])

    def test_precision_is_normal_noise_from_the_seed(self):
        """As in the original: std is the precision, an integer seed starts each PUB anew, `stds` stay 0."""
        pubs = [
            (ansatz(), [["ZZI"], ["XIX"]], values(3)),
            (ansatz(), "ZZI", values(2), 0.5),
            (ansatz(), "ZZI", values()),
        ]
        assert_same_estimates(pubs, seed=12, precision=0.1)
        estimator = ExactEstimator(default_precision=0.1, seed=12)
        assert estimator.default_precision == 0.1
        assert estimator.seed == 12
        first, again = (estimator.run(pubs).result()[0].data.evs for _ in range(2))
        np.testing.assert_array_equal(first, again)
        exact = ExactEstimator().run(pubs[:1]).result()[0].data.evs
        assert not np.allclose(first, exact)
        np.testing.assert_allclose(estimator.run(pubs[:1], precision=0).result()[0].data.evs, exact, atol=1e-14)

    def test_generator_goes_on(self):
        pubs = [(ansatz(), "ZZI", values(2))] * 2
        got, expected = (
            [r.data.evs for r in kind(seed=np.random.default_rng(3)).run(pubs, precision=0.2).result()]
            for kind in (ExactEstimator, StatevectorEstimator)
        )
        np.testing.assert_allclose(got, expected, rtol=0, atol=SAME)
        assert not np.allclose(got[0], got[1])

    def test_projectors(self):
        """The original cannot read them; |0><0| on the middle qubit is (1 + Z) / 2."""
        qc, point = ansatz(), values()
        got = ExactEstimator().run([(qc, SparseObservable("I0I"), point)]).result()[0].data.evs
        z = StatevectorEstimator().run([(qc, "IZI", point)]).result()[0].data.evs
        assert got == pytest.approx((1 + z) / 2, abs=SAME)

    def test_final_measurements_are_left_out(self):
        point = values()
        got = ExactEstimator().run([(ansatz(measured=True), XY, point)]).result()[0].data.evs
        assert got == pytest.approx(StatevectorEstimator().run([(ansatz(), XY, point)]).result()[0].data.evs, abs=SAME)

    @pytest.mark.parametrize(
        "pub", [(ansatz(), "ZZ", np.zeros(12)), (ansatz(), "ZZI", np.zeros(3)), (ansatz(), SparsePauliOp("ZZI", 1j))]
    )
    def test_same_mistakes(self, pub):
        for kind in (StatevectorEstimator, ExactEstimator):
            with pytest.raises(ValueError):  # noqa: PT011 - Qiskit's own texts
                kind().run([pub])
        with pytest.raises(ValueError, match="precision"):
            ExactEstimator().run([(ansatz(), "ZZI", np.zeros(12))], precision=-1)

    def test_not_unitary(self):
        qc = QuantumCircuit(1)
        qc.reset(0)
        with pytest.raises(CircuitError, match="reset"):
            ExactEstimator().run([(qc, "Z")]).result()

    def test_single_precision(self):
        pub = (ansatz(), XY, values(3))
        exact, rough = (ExactEstimator(dtype=d).run([pub]).result()[0].data.evs for d in ("float64", "float32"))
        assert 0 < np.abs(exact - rough).max() < 1e-5
        assert rough.dtype == np.float64


class TestSampledEstimator:
    """`sampled=True`: shots in each measurement basis, as a device."""

    def test_like_backend_estimator(self):
        """Values agree with `BackendEstimatorV2` on Aer within both standard errors."""
        qc, points = ansatz(), values(6)
        observables = [[XY], [SparsePauliOp(["XXI", "ZZI", "IIY"], [1.0, 0.5, -0.7])]]
        pub = (qc, observables, points)
        ours = ExactEstimator(default_precision=0.02, seed=1, sampled=True).run([pub]).result()[0]
        backend = BackendEstimatorV2(backend=AerSimulator(), options={"default_precision": 0.02, "seed_simulator": 5})
        aer = backend.run([(qc.decompose(), observables, points)]).result()[0]
        assert ours.data.evs.shape == aer.data.evs.shape == (2, 6)
        z = (ours.data.evs - aer.data.evs) / np.sqrt(2 * aer.data.stds**2)
        assert np.abs(z).max() < norm.isf(1e-4)

    def test_standard_errors(self):
        """`stds` are the spread of the values."""
        qc, point = ansatz(), values()
        estimator = ExactEstimator(default_precision=0.05, seed=np.random.default_rng(2), sampled=True)
        found = estimator.run([(qc, XY, np.tile(point, (300, 1)))]).result()[0].data
        ratio = found.evs.var(ddof=1) / np.mean(found.stds**2) * 299
        assert chi2.ppf(1e-4, 299) < ratio < chi2.isf(1e-4, 299)

    def test_zero_precision_is_exact(self):
        pub = (ansatz(), XY, values(2))
        got = ExactEstimator(sampled=True).run([pub]).result()[0].data
        np.testing.assert_allclose(got.evs, StatevectorEstimator().run([pub]).result()[0].data.evs, atol=SAME)
        assert not got.stds.any()

    def test_in_pieces(self):
        """A budget for few states changes nothing."""
        pub = (ansatz(), XY, values(30))
        budget = 3 * 8 * 16 * 2**3
        short = ExactEstimator(default_precision=0.1, sampled=True, seed=3, memory_budget=budget).run([pub]).result()[0]
        exact = StatevectorEstimator().run([pub]).result()[0].data.evs
        assert np.abs((short.data.evs - exact) / 0.1).max() < 8

    @pytest.mark.parametrize(("precision", "shots"), [(0.1, 100), (1 / np.sqrt(1000), 1000), (0.3, 12), (1.0, 1)])
    def test_shots(self, precision, shots):
        assert shots_for(precision) == shots


def assert_same_shots(pubs, *, seed=7, shots=None):
    pubs = list(pubs)
    got = ExactSampler(seed=seed).run(pubs, shots=shots).result()
    expected = StatevectorSampler(seed=seed).run(pubs, shots=shots).result()
    assert got.metadata == expected.metadata
    for g, e in zip(got, expected, strict=True):
        assert g.metadata == e.metadata
        assert g.data.shape == e.data.shape
        assert list(g.data) == list(e.data)
        for name in e.data:
            assert isinstance(g.data[name], BitArray)
            assert g.data[name].num_bits == e.data[name].num_bits
            assert g.data[name] == e.data[name]


class TestSampler:
    """From the same seed the shots are those of the original, bit for bit."""

    def test_is_a_primitive(self):
        sampler = ExactSampler(default_shots=9, seed=3)
        assert isinstance(sampler, BaseSamplerV2)
        assert (sampler.default_shots, sampler.seed) == (9, 3)
        assert isinstance(sampler.run([]), PrimitiveJob)
        assert sampler.run([(ansatz(measured=True), values())]).result()[0].data.meas.num_shots == 9

    @pytest.mark.parametrize("shape", [(), (3,), (2, 3), (1,), (0,)])
    def test_broadcasting(self, shape):
        assert_same_shots([(ansatz(measured=True), values(*shape))])

    def test_several_pubs(self):
        qc = ansatz(measured=True)
        bell = QuantumCircuit(2, metadata={"note": "bell"})
        bell.h(0)
        bell.cx(0, 1)
        bell.measure_all()
        assert_same_shots([(qc, values(2)), (bell,), (ansatz(measured=True), values(), 5), (qc, values(1), 300), bell])

    def test_registers(self):
        """Several registers, some bits unmeasured, order turned, over eight bits, a qubit and a bit used twice."""
        x = ParameterVector("x", 3)
        qc = QuantumCircuit(
            QuantumRegister(3, "q"), ClassicalRegister(2, "a"), ClassicalRegister(11, "b"), ClassicalRegister(1, "none")
        )
        for q in range(3):
            qc.ry(x[q], q)
        qc.cx(0, 1)
        qc.measure(0, qc.cregs[0][1])
        qc.measure(2, qc.cregs[0][1])
        qc.barrier()
        qc.measure(0, qc.cregs[1][10])
        qc.measure(0, qc.cregs[1][3])
        qc.measure(1, qc.cregs[1][0])
        assert_same_shots([(qc, np.random.default_rng(2).normal(size=(4, 3)))])

    def test_joint_distribution(self):
        """Registers of one shot belong together."""
        qc = QuantumCircuit(QuantumRegister(2), ClassicalRegister(1, "a"), ClassicalRegister(1, "b"))
        qc.h(0)
        qc.cx(0, 1)
        qc.measure([0, 1], [0, 1])
        data = ExactSampler(seed=1).run([qc], shots=200).result()[0].data
        np.testing.assert_array_equal(data.a.array, data.b.array)
        assert 60 < data.a.array.sum() < 140

    def test_part_of_the_qubits(self):
        qc = ansatz()
        qc.add_register(ClassicalRegister(1, "c"))
        qc.measure(1, 0)
        assert_same_shots([(qc, values(3))])

    def test_nothing_measured(self):
        with pytest.warns(UserWarning, match="no output classical registers"):
            assert ExactSampler().run([(ansatz(), values(2))]).result()[0].data.shape == (2,)
        qc = ansatz()
        qc.add_register(ClassicalRegister(2, "c"))
        assert_same_shots([(qc, values(2))])

    def test_generator_goes_on(self):
        """In the order of the PUBs, though two of them share a circuit."""
        qc, bell = ansatz(measured=True), QuantumCircuit(2)
        bell.h([0, 1])
        bell.measure_all()
        pubs = [(qc, values(2)), bell, (qc, values(1))]
        got, expected = (
            kind(seed=np.random.default_rng(5)).run(pubs).result() for kind in (ExactSampler, StatevectorSampler)
        )
        for g, e in zip(got, expected, strict=True):
            assert g.data.meas == e.data.meas

    def test_no_seed(self):
        sampler, pub = ExactSampler(), (ansatz(measured=True), values())
        first, second = (sampler.run([pub]).result()[0].data.meas for _ in range(2))
        assert first != second

    def test_middle_of_the_circuit(self):
        qc = QuantumCircuit(1, 1)
        qc.h(0)
        qc.measure(0, 0)
        qc.h(0)
        with pytest.raises(CircuitError, match="at the end only"):
            ExactSampler().run([qc]).result()

    def test_in_pieces(self):
        pub = (ansatz(measured=True), values(30))
        got, expected = (
            ExactSampler(seed=2, memory_budget=budget).run([pub]).result()[0].data.meas
            for budget in (3 * 8 * 16 * 2**3, None)
        )
        assert got == expected

    def test_aer_agrees(self):
        """Two-sample chi-square."""
        qc = ansatz(measured=True).assign_parameters(values())
        ours = ExactSampler(seed=2).run([qc], shots=20000).result()[0].data.meas.get_int_counts()
        aer = AerSimulator(seed_simulator=3).run(qc.decompose(), shots=20000).result().get_counts().int_outcomes()
        pairs = np.array([(ours.get(k, 0), aer.get(k, 0)) for k in range(8)])
        pairs = pairs[pairs.sum(1) > 0]
        assert ((pairs[:, 0] - pairs[:, 1]) ** 2 / pairs.sum(1)).sum() < chi2.isf(1e-4, df=len(pairs) - 1)


class TestEngines:
    def test_once_per_circuit(self):
        """Equal circuits share an engine, also when they were built anew."""
        estimator = ExactEstimator()
        for _ in range(3):
            estimator.run([(ansatz(), "ZZI", values(2)), (ansatz(), "ZZI", values())]).result()
        assert len(estimator._engines) == 1

    def test_bounded(self):
        sampler = ExactSampler()
        sampler._engines = EngineCache("float64", None, capacity=3)
        for k in range(6):
            qc = QuantumCircuit(1)
            qc.ry(0.1 * k, 0)
            qc.measure_all()
            sampler.run([qc]).result()
            assert len(sampler._engines) == min(k + 1, 3)
            assert circuit_key(qc) in sampler._engines._engines

    def test_a_circuit_changed_in_place(self):
        estimator, qc = ExactEstimator(), QuantumCircuit(1)
        assert estimator.run([(qc, "Z")]).result()[0].data.evs == pytest.approx(1.0)
        qc.x(0)
        assert estimator.run([(qc, "Z")]).result()[0].data.evs == pytest.approx(-1.0)

    def test_keys_tell_circuits_apart(self):
        """Angles, order of qubits, gates under one name, control states, global phases, registers."""
        a, b = Parameter("a"), Parameter("b")
        rng = np.random.default_rng(0)

        def built(build, *extra):
            qc = QuantumCircuit(2, *extra)
            build(qc)
            return qc

        def custom(angle):
            inner = QuantumCircuit(1, name="mine")
            inner.ry(angle, 0)
            return inner.to_gate()

        circuits = [
            built(lambda qc: qc.ry(a, 0)),
            built(lambda qc: qc.ry(b, 0)),
            built(lambda qc: qc.ry(2 * a, 0)),
            built(lambda qc: qc.ry((2 + 4e-16) * a, 0)),
            built(lambda qc: qc.ry(a, 1)),
            built(lambda qc: qc.rx(a, 0)),
            built(lambda qc: qc.cx(0, 1)),
            built(lambda qc: qc.cx(1, 0)),
            built(lambda qc: qc.cx(0, 1, ctrl_state=0)),
            built(lambda qc: qc.append(custom(0.1), [0])),
            built(lambda qc: qc.append(custom(0.2), [0])),
            built(lambda qc: qc.append(custom(0.2).control(1, ctrl_state=0), [0, 1])),
            built(lambda qc: qc.append(custom(0.2).control(1), [0, 1])),
            built(lambda qc: qc.append(UnitaryGate(random_unitary(2, seed=rng)), [0])),
            built(lambda qc: qc.append(UnitaryGate(random_unitary(2, seed=rng)), [0])),
            built(lambda qc: qc.append(PauliEvolutionGate(SparsePauliOp("ZZ"), a), [0, 1])),
            built(lambda qc: qc.append(PauliEvolutionGate(SparsePauliOp("XX"), a), [0, 1])),
            built(lambda qc: qc.measure(0, 0), 2),
            built(lambda qc: qc.measure(0, 1), 2),
            QuantumCircuit(2, global_phase=0.5),
            QuantumCircuit(2),
            QuantumCircuit(3),
        ]
        assert len({circuit_key(qc) for qc in circuits}) == len(circuits)
        assert all(circuit_key(qc) == circuit_key(qc.copy()) for qc in circuits)

    def test_pickle(self):
        """Without engines, which hold compiled code."""
        pub = (ansatz(), XY, values(2))
        estimator = ExactEstimator(default_precision=0.1, seed=4)
        twin_before = estimator.run([pub]).result()[0].data.evs
        twin = pickle.loads(pickle.dumps(estimator))
        np.testing.assert_array_equal(twin.run([pub]).result()[0].data.evs, twin_before)

    def test_jobs_side_by_side(self):
        """Every job has a thread; they share the primitive's engines."""
        estimator = ExactEstimator()
        points = values(8)
        expected = StatevectorEstimator().run([(ansatz(), XY, points)]).result()[0].data.evs
        with ThreadPoolExecutor(4) as pool:
            jobs = list(pool.map(lambda p: estimator.run([(ansatz(), XY, p)]), points))
        got = [job.result()[0].data.evs for job in jobs]
        np.testing.assert_allclose(got, expected, rtol=0, atol=SAME)

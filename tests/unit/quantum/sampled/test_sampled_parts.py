"""The parts behind sampled backends, each against Qiskit, Aer or numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp, Statevector
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel
from scipy.stats import chi2

from llm_qfl.federation.config import QuantumConfig
from llm_qfl.federation.errors import BackendError, CircuitError
from llm_qfl.quantum import isa
from llm_qfl.quantum.backends import make_backend
from llm_qfl.quantum.circuits import ModelCircuit, build_circuit
from llm_qfl.quantum.sampled.angles import AngleCircuit
from llm_qfl.quantum.sampled.counts import bases, mappings
from llm_qfl.quantum.sampled.mitigation import NOISE_FACTORS, ReadoutCorrection, folded, line_at_zero
from llm_qfl.quantum.sampled.noise import CutDevice, cut_circuit, cut_noise, load_fake_device
from llm_qfl.quantum.sampled.simulate import Simulation, measured_qubits
from llm_qfl.quantum.scope import Place, Scope


def model_of(circuit, inputs, weights, observables=("Z",)):
    operators = tuple(SparsePauliOp(label) for label in observables)
    return ModelCircuit("made", circuit, tuple(inputs), tuple(weights), operators)


# --- angles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("circuit", ["reuploading", "zz-real-amplitudes", "qcnn"])
def test_the_circuit_of_angles_is_the_circuit(circuit):
    made = build_circuit(QuantumConfig(circuit=circuit, qubits=4, layers=2), 2)
    angles = AngleCircuit(made)
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(3, len(made.input_parameters))), rng.normal(size=len(made.weight_parameters))
    for row, point in zip(x, angles.values(x, weights), strict=True):
        bound = dict(zip(made.input_parameters + made.weight_parameters, [*row, *weights], strict=True))
        expected = Statevector(made.circuit.assign_parameters(bound))
        got = Statevector(angles.circuit.assign_parameters(dict(zip(angles.angles, point, strict=True))))
        assert abs(expected.inner(got)) == pytest.approx(1, abs=1e-12)
    assert len(angles.trained) == made.gates


@given(st.integers(0, 10_000))
@settings(max_examples=30)
def test_the_chain_rule_equals_central_differences_for_any_expression(seed):
    rng = np.random.default_rng(seed)
    a, b, u, v = (Parameter(name) for name in "abuv")
    pool = [a, a * u, a * u + b, a.sin() * v, (a * b) + u, u * v + a, (b * u).cos(), a * a, b.exp() * u]
    chosen = [pool[i] for i in rng.integers(0, len(pool), 4)]
    circuit = QuantumCircuit(1)
    for expression in [*chosen, a + 0 * b, b + 0 * u + 0 * v]:
        circuit.ry(expression, 0)
    inputs = [p for p in (u, v) if p in circuit.parameters]
    angles = AngleCircuit(model_of(circuit, inputs, [a, b]))
    x, weights = rng.uniform(-1, 1, (3, len(inputs))), rng.uniform(-1, 1, 2)
    by_angle = rng.normal(size=(3, 2, len(angles.trained)))
    got = angles.pull_back(by_angle, x, weights)
    step = 1e-6
    for p in range(2):
        shift = step * np.eye(2)[p]
        slope = (angles.values(x, weights + shift) - angles.values(x, weights - shift)) / (2 * step)
        expected = np.einsum("nkg,ng->nk", by_angle, slope[:, angles.trained])
        np.testing.assert_allclose(got[:, :, p], expected, atol=1e-7)


def test_a_weight_in_a_gate_without_the_two_term_rule_is_refused():
    weight = Parameter("w")
    circuit = QuantumCircuit(2)
    circuit.crx(weight, 0, 1)
    with pytest.raises(CircuitError, match="'crx' depends on a weight and has no two-term shift rule"):
        AngleCircuit(model_of(circuit, [], [weight], ["ZZ"]))


def test_an_input_may_sit_in_any_gate():
    x, w = Parameter("x"), Parameter("w")
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.crx(x, 0, 1)
    circuit.ry(w, 1)
    angles = AngleCircuit(model_of(circuit, [x], [w], ["ZZ"]))
    assert angles.trained.tolist() == [1]


# --- observables ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000))
@settings(max_examples=25)
def test_grouped_observables_are_statevector_expectations(seed):
    rng = np.random.default_rng(seed)
    width, number = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    observables = []
    for _ in range(number):
        labels = ["".join(rng.choice(list("IXYZ"), width)) for _ in range(3)]
        observables.append(SparsePauliOp(labels, rng.normal(size=3)).simplify())
    circuit = QuantumCircuit(width)
    for qubit in range(width):
        circuit.u(*rng.uniform(-3, 3, 3), qubit)
    for qubit in range(width - 1):
        circuit.cx(qubit, qubit + 1)
        circuit.ry(rng.normal(), qubit)
    found, constant = bases(observables)
    values = constant.copy()
    for basis in found:
        measured = basis.measured(circuit)
        measured.remove_final_measurements()
        probabilities = Statevector(measured).probabilities()[None, :]
        values += basis.values(probabilities)[0]
        np.testing.assert_allclose(basis.values(mappings(probabilities)), basis.values(probabilities), atol=1e-12)
    expected = [Statevector(circuit).expectation_value(op).real for op in observables]
    np.testing.assert_allclose(values, expected, atol=1e-10)


def test_observables_that_commute_qubit_by_qubit_share_one_measurement():
    circuits = [build_circuit(QuantumConfig(qubits=6, readout=readout), 2) for readout in ("linear", "parity", "bit")]
    assert [len(bases(made.observables)[0]) for made in circuits] == [1, 1, 1]
    assert len(bases([SparsePauliOp(["XX", "ZZ", "IX"])])[0]) == 2


def test_a_complex_coefficient_is_refused():
    with pytest.raises(ValueError, match="expected real coefficients"):
        bases([SparsePauliOp(["Z"], [1j])])


# --- noise ----------------------------------------------------------------------------------------------------------


def transpiled(device, qubits=3, layers=1):
    made = build_circuit(QuantumConfig(qubits=qubits, layers=layers), 2)
    angles = AngleCircuit(made)
    (basis,), _ = bases(made.observables)
    manager = generate_preset_pass_manager(3, backend=device, seed_transpiler=1)
    point = np.random.default_rng(2).normal(size=len(angles.angles))
    return manager.run(basis.measured(angles.circuit)), angles, point


@pytest.mark.parametrize("name", ["FakeManilaV2", "FakeGuadalupeV2"])
def test_cutting_the_noise_model_changes_nothing(name):
    """Density matrices under the whole device's noise model and under the cut one; and both models, error by error."""
    device = load_fake_device(name)
    circuit, _angles, point = transpiled(device)
    cut, touched = cut_circuit(circuit)
    assert len(touched) < device.num_qubits

    def diagonal(of, noise, on):
        bare = of.copy()
        bare.data = [step for step in of.data if step.operation.name not in ("measure", "barrier")]
        bare.save_probabilities(on)
        bound = bare.assign_parameters(dict(zip(bare.parameters, point, strict=True)))
        simulator = AerSimulator(method="density_matrix", noise_model=noise)
        return simulator.run(bound, shots=1).result().data()["probabilities"]

    whole_model = NoiseModel.from_backend(device)
    if device.num_qubits <= 7:  # a density matrix of 16 qubits fits nowhere: there the models are compared, below
        whole = diagonal(circuit, whole_model, [touched[q] for q in measured_qubits(cut)])
        part = diagonal(cut, NoiseModel.from_backend(CutDevice(device, touched)), list(measured_qubits(cut)))
        np.testing.assert_allclose(part, whole, atol=1e-12)
    cut_model = NoiseModel.from_backend(CutDevice(device, touched)).to_dict()
    kept = [e for e in whole_model.to_dict()["errors"] if set(e["gate_qubits"][0]) <= set(touched)]
    assert len(kept) == len(cut_model["errors"])
    place = {qubit: number for number, qubit in enumerate(touched)}
    for whole_error in kept:
        on = tuple(place[q] for q in whole_error["gate_qubits"][0])
        (same,) = [
            e for e in cut_model["errors"]
            if e["gate_qubits"][0] == on and all(e[k] == whole_error[k] for k in ("operations", "type"))
        ]  # fmt: skip
        np.testing.assert_allclose(same["probabilities"], whole_error["probabilities"], atol=1e-15)


@pytest.mark.parametrize("noisy", [False, True])
def test_drawn_outcomes_are_aers_own_shots_in_law(noisy):
    """Chi-square between our draws from the distribution and 200,000 shots that Aer drew itself."""
    device = load_fake_device("FakeManilaV2")
    circuit, _, point = transpiled(device)
    cut, touched = cut_circuit(circuit)
    noise = cut_noise(device, touched, measured_qubits(cut)) if noisy else None
    shots = 200_000
    ours = Simulation(cut, noise).frequencies(point[None, :], shots, 5)[0]
    bound = cut.assign_parameters(dict(zip(cut.parameters, point, strict=True)))
    simulator = AerSimulator(method="density_matrix", noise_model=noise.model if noise else None)
    counts = simulator.run(bound, shots=shots, seed_simulator=7).result().get_counts()
    theirs = np.array([counts.get(format(i, "03b"), 0) for i in range(8)])
    statistic = ((ours - theirs) ** 2 / (ours + theirs)).sum()
    assert chi2.sf(statistic, 7) > 1e-6
    shuffled = theirs.reshape(2, 2, 2).transpose(2, 1, 0).ravel()  # the test sees qubits in another order
    assert chi2.sf(((ours - shuffled) ** 2 / (ours + shuffled)).sum(), 7) < 1e-9


def test_cutting_a_call_into_parts_changes_no_number():
    device = load_fake_device("FakeManilaV2")
    circuit, _, point = transpiled(device)
    cut, touched = cut_circuit(circuit)
    simulation = Simulation(cut, cut_noise(device, touched, measured_qubits(cut)))
    points = np.random.default_rng(0).normal(size=(7, len(point)))
    whole = np.concatenate(list(simulation._distributions(points, 7)))
    np.testing.assert_allclose(np.concatenate(list(simulation._distributions(points, 2))), whole, atol=1e-14)
    assert simulation._drawn_by_aer(points, 50, 3, 7) == simulation._drawn_by_aer(points, 50, 3, 2)


@pytest.mark.parametrize("way", ["distribution", "trajectories", "aer"])
def test_all_ways_have_one_law(way, monkeypatch):
    device = load_fake_device("FakeManilaV2")
    circuit, _, point = transpiled(device)
    cut, touched = cut_circuit(circuit)
    simulation = Simulation(cut, cut_noise(device, touched, measured_qubits(cut)))
    (law,) = next(simulation._distributions(point[None, :], 1))
    shots = 40_000
    monkeypatch.setattr(Simulation, "seconds", lambda *_: (1.0, way))
    (drawn,) = simulation.frequencies(point[None, :], shots, 2)
    counts = np.array([drawn.get(i, 0) for i in range(8)]) if isinstance(drawn, dict) else drawn
    assert counts.sum() == shots
    assert chi2.sf(((counts - shots * law) ** 2 / (shots * law)).sum(), 7) > 1e-6


def test_the_quickest_way_is_taken():
    """No noise: a distribution. Noise: shared trajectories, until so many shots that a density matrix is cheaper."""
    device = load_fake_device("FakeManilaV2")
    circuit, _, _ = transpiled(device)
    cut, touched = cut_circuit(circuit)
    noise = cut_noise(device, touched, measured_qubits(cut))
    assert Simulation(cut, None).seconds(1024)[1] == "distribution"
    assert [Simulation(cut, noise).seconds(shots)[1] for shots in (1024, 10**7)] == ["trajectories", "distribution"]


def test_a_circuit_that_would_take_minutes_a_point_is_refused():
    circuit = QuantumCircuit(30, 30)
    for qubit in range(30):
        circuit.ry(0.1, qubit)
    circuit.measure(range(30), range(30))
    with pytest.raises(BackendError, match=r"30 qubits take about .* lower quantum\.qubits"):
        Simulation(circuit, None).check("aer", 1024)


# --- mitigation -----------------------------------------------------------------------------------------------------


def test_the_line_at_zero_is_numpys_fit():
    values = np.array([0.83, 0.61, 0.47])
    assert line_at_zero() @ values == pytest.approx(np.polyfit(NOISE_FACTORS, values, 1)[1], abs=1e-12)


def test_folding_repeats_two_qubit_gates_and_nothing_else():
    circuit, _, _ = transpiled(load_fake_device("FakeManilaV2"))
    before, after = circuit.count_ops(), folded(circuit, 3).count_ops()
    assert after["cx"] == 3 * before["cx"]
    assert {name: n for name, n in after.items() if name != "cx"} == {n: c for n, c in before.items() if n != "cx"}
    assert folded(circuit, 1) is circuit


def test_readout_correction_brings_a_basis_state_back():
    device = load_fake_device("FakeManilaV2")
    circuit = QuantumCircuit(3, 3)
    circuit.x([0, 2])
    circuit.measure([0, 1, 2], [0, 1, 2])
    noise = cut_noise(device, [0, 1, 2], (0, 1, 2))
    raw = Simulation(circuit, noise)._read(np.eye(8)[[0b101]]) * 100_000
    correction = ReadoutCorrection(noise.model, [0, 1, 2], 3)
    (quasi,) = correction.quasi(np.rint(raw))
    rng = np.random.default_rng(0)
    counts = rng.multinomial(5000, rng.dirichlet(np.ones(8), size=3)) + 1  # every outcome seen: mthree's own solution
    theirs = correction.quasi(mappings(counts))
    np.testing.assert_allclose(correction.quasi(counts), [[one[k] for k in range(8)] for one in theirs], atol=1e-6)
    assert raw[0, 0b101] / 100_000 < 0.93
    assert quasi[0b101] == pytest.approx(1, abs=0.02)
    assert correction.executions == 2 * 3 * 4096


@pytest.mark.parametrize("mitigation", ["readout", "zne"])
def test_mitigation_is_nearer_to_the_truth_and_its_cost_is_counted(mitigation, tmp_path):
    x = np.random.default_rng(0).uniform(-1, 1, (20, 3))
    values, spent = {}, {}
    for kind in ("none", mitigation):
        config = QuantumConfig(qubits=3, layers=1, backend="aer-FakeManilaV2", mitigation=kind)
        made = build_circuit(config, 2)
        weights = np.random.default_rng(1).normal(scale=0.4, size=len(made.weight_parameters))
        backend = make_backend(config, made, Place(tmp_path)).at(Scope(shots=20_000))
        values[kind], spent[kind] = backend.expectations(x, weights), backend.meter.spent.shots
        exact = make_backend(QuantumConfig(qubits=3, layers=1), made).expectations(x, weights)
    worse, better = (np.abs(values[kind] - exact).mean() for kind in ("none", mitigation))
    assert better < 0.7 * worse
    factors = 3 if mitigation == "zne" else 1
    assert spent[mitigation] == 20 * factors * 20_000 + 2 * 3 * 4096
    assert spent["none"] == 20 * 20_000


# --- transpiled once ------------------------------------------------------------------------------------------------


def test_a_circuit_is_transpiled_once_for_a_device_and_found_on_disk(tmp_path, monkeypatch):
    device = load_fake_device("FakeManilaV2")
    made = build_circuit(QuantumConfig(qubits=3, layers=1), 2)
    cache, how = isa.IsaCache(tmp_path), {"key": "manila", "optimization_level": 3, "seed": 0}
    first = cache.get(made.circuit, "d", device, **how)
    monkeypatch.setattr("qiskit.transpiler.generate_preset_pass_manager", lambda *a, **k: pytest.fail("again"))
    assert cache.get(made.circuit, "d", device, **how) is first
    monkeypatch.setattr(isa, "_KEPT", {})  # another process
    again = cache.get(made.circuit, "d", device, **how)
    assert again == first
    assert [p.name for p in again.parameters] == [p.name for p in first.parameters]


def test_a_damaged_file_is_made_anew(tmp_path, monkeypatch):
    made = build_circuit(QuantumConfig(qubits=3, layers=1), 2)
    cache, how = isa.IsaCache(tmp_path), {"key": "aer", "optimization_level": 1, "seed": 0}
    first = cache.get(made.circuit, "d", AerSimulator(), **how)
    (path,) = tmp_path.glob("*.qpy")
    path.write_bytes(path.read_bytes()[:-20])
    monkeypatch.setattr(isa, "_KEPT", {})
    assert cache.get(made.circuit, "d", AerSimulator(), **how) == first

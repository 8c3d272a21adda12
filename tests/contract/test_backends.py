"""One battery for every backend: values and gradients against a computation of another kind, within what shots allow.

Without noise the mark is the exact engine. With noise it is a density matrix carried by Qiskit's own SuperOp through
the same transpiled circuit, with the whole device's errors: it knows nothing of Aer's simulator, of the cut noise model
or of the shift rule. The tolerance is computed: 6 standard deviations of a mean of that many shots.
"""

from __future__ import annotations

import numpy as np
import pytest
from backend_marks import marks, noisy_values
from ibm_service.loopback import LoopbackService
from scipy.stats import chi2

from llm_qfl.federation.config import QuantumConfig
from llm_qfl.federation.errors import BackendError
from llm_qfl.quantum.backends import make_backend
from llm_qfl.quantum.circuits import build_circuit
from llm_qfl.quantum.ibm.calibration import calibration_key as ibm_key
from llm_qfl.quantum.sampled.noise import calibration_key, load_fake_device
from llm_qfl.quantum.scope import Place, Scope

SIGMAS = 6.0
SHOTS = 4096
SMALL = {"qubits": 2, "layers": 1}
BACKENDS = ["exact", "aer", "aer-FakeManilaV2", "aer-FakeFez", "ibm-local:FakeManilaV2", "ibm:loop_manila"]
CIRCUITS = {
    "reuploading": {"circuit": "reuploading", "qubits": 3, "layers": 1, "readout": "linear"},
    "parity": {"circuit": "zz-real-amplitudes", "qubits": 3, "layers": 1, "readout": "parity"},
}


@pytest.fixture(params=BACKENDS)
def name(request, monkeypatch):
    """A backend's name; `ibm:...` is the real client against the loopback service, whose results Aer computes."""
    if not request.param.startswith("ibm:"):
        yield request.param
        return
    service = LoopbackService()
    for key, value in service.environment().items():
        monkeypatch.setenv(key, value)
    with service.running():
        yield request.param
    assert service.errors == []


@pytest.fixture(params=list(CIRCUITS))
def shape(request):
    return CIRCUITS[request.param]


def made(name, shape, place, **more):
    config = QuantumConfig(backend=name, shots=SHOTS, **shape, **more)
    circuit = build_circuit(config, 2)
    return make_backend(config, circuit, place).at(Scope(purpose="battery", seed=3, shots=SHOTS)), circuit


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def some(circuit, rows, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (rows, len(circuit.input_parameters)))
    return x, rng.normal(scale=0.4, size=len(circuit.weight_parameters))


def mark_of(name, backend, circuit, x, weights):
    """The mark, through the circuit as IBM's client sends it where that is who runs it."""
    if not name.startswith("ibm"):
        return marks(name, circuit, x, weights)
    work = backend._runner.work(x)
    device = load_fake_device("FakeManilaV2")
    runner = backend._runner.runner(SHOTS)
    target = runner._checked(1) if name.startswith("ibm:") else device
    key = ibm_key(target) if name.startswith("ibm:") else calibration_key(target)
    how = {"optimization_level": runner._options.optimization_level, "seed": runner._options.seed}
    isa = runner._isas.get(work.circuit, work.digest, target, key=key, **how)
    return noisy_values(device, circuit, x, weights, isa)


def deviations(values, circuit, shots):
    """Standard deviation of each drawn mean: a Pauli sum's variance is at most the square of its coefficients' sum."""
    most = np.array([np.abs(op.coeffs[np.any(op.paulis.x | op.paulis.z, axis=1)]).sum() for op in circuit.observables])
    return np.broadcast_to(most / np.sqrt(shots), values.shape)


def chances(values, mark, circuit):
    """For each output, how likely squared deviations are to be larger (and smaller) than these, if the mark is right.

    Outputs are c + a P with a Pauli string P of mean m: a mean of shots has variance a^2 (1 - m^2) / shots.
    """
    found = []
    for k, op in enumerate(circuit.observables):
        scale = np.abs(op.coeffs[np.any(op.paulis.x | op.paulis.z, axis=1)]).sum().real
        shift = sum(c.real for label, c in op.to_list() if set(label) == {"I"})
        mean = (mark[:, k] - shift) / scale
        square = ((values[:, k] - mark[:, k]) / scale) ** 2 * SHOTS / (1 - mean**2)
        found += [chi2.sf(square.sum(), len(mark)), chi2.cdf(square.sum(), len(mark))]
    return np.array(found)


def test_values_are_those_of_the_mark(name, shape, place):
    backend, circuit = made(name, shape, place)
    x, weights = some(circuit, 12)
    values, mark = backend.expectations(x, weights), mark_of(name, backend, circuit, x, weights)
    assert values.shape == (12, len(circuit.observables))
    if name == "exact":
        np.testing.assert_allclose(values, mark, atol=1e-10)
    else:
        assert np.all(np.abs(values - mark) <= SIGMAS * deviations(mark, circuit, SHOTS))
        assert chances(values, mark, circuit).min() > 1e-6


@pytest.mark.parametrize("device", ["FakeManilaV2", "FakeFez"])
def test_the_tolerance_would_see_the_wrong_device(device, place):
    """The battery can fail: noise is told from none, from another device's, and qubits from another order of them."""
    backend, circuit = made(f"aer-{device}", CIRCUITS["reuploading"], place)
    x, weights = some(circuit, 30)
    values = backend.expectations(x, weights)
    mark = marks(f"aer-{device}", circuit, x, weights)
    other = marks("aer-FakeFez" if device == "FakeManilaV2" else "aer-FakeManilaV2", circuit, x, weights)
    for wrong in (marks("exact", circuit, x, weights), mark[:, ::-1], other):
        assert chances(values, wrong, circuit).min() < 1e-9
    assert chances(values, mark, circuit).min() > 1e-6


def test_gradients_are_those_of_the_mark(name, shape, place):
    """Along random directions: the mark's by central differences; the shift rule's within its own deviation."""
    backend, circuit = made(name, shape, place)
    x, weights = some(circuit, 1)
    values, jacobian = backend.jacobian(x, weights)
    rng, step = np.random.default_rng(2), 1e-4
    for _ in range(2):
        direction = rng.normal(size=len(weights))
        direction /= np.linalg.norm(direction)
        up, down = (mark_of(name, backend, circuit, x, weights + sign * step * direction) for sign in (1, -1))
        # An angle's slope is half a difference of two means, independent of other angles' slopes; here an angle holds
        # two weights at most, each with |d angle / d weight| <= max(1, |x|).
        slope = np.maximum(1.0, np.abs(x).max(axis=1))[:, None]
        allowed = 1e-7 if name == "exact" else SIGMAS * slope * deviations(values, circuit, SHOTS) + 1e-6
        assert np.all(np.abs(jacobian @ direction - (up - down) / (2 * step)) <= allowed)


def test_the_pull_back_is_the_jacobian_contracted(name, shape, place):
    backend, circuit = made(name, shape, place)
    x, weights = some(circuit, 4)
    back = np.random.default_rng(1).normal(size=(4, len(circuit.observables)))
    seen = []
    values, pulled = backend.pull_back(x, weights, lambda at: (seen.append(at), back)[1])
    np.testing.assert_array_equal(seen[0], values)
    again, _ = made(name, shape, place)  # the same scope and call: the same shots
    drawn, jacobian = again.jacobian(x, weights)
    if name != "exact":  # which may take a sweep of its own for the values
        np.testing.assert_array_equal(values, drawn)
    np.testing.assert_allclose(pulled, np.einsum("nk,nkp->p", back, jacobian), atol=1e-12)


def test_the_same_scope_draws_the_same_shots_and_another_others(name, place):
    backend, circuit = made(name, CIRCUITS["reuploading"], place)
    x, weights = some(circuit, 5)
    first, second = backend.expectations(x, weights), backend.expectations(x, weights)
    fresh, _ = made(name, CIRCUITS["reuploading"], place)
    np.testing.assert_array_equal(fresh.expectations(x, weights), first)
    elsewhere = fresh.at(Scope(purpose="battery", seed=4, shots=SHOTS)).expectations(x, weights)
    if name == "exact":
        np.testing.assert_array_equal(second, first)
        np.testing.assert_array_equal(elsewhere, first)
    elif name.startswith("ibm:"):
        assert fresh.meter.spent.jobs == 1  # found in the ledger: the round done again after a crash pays nothing more
    else:
        assert np.any(second != first)
        assert np.any(elsewhere != first)


def test_what_it_cost_is_counted(name, place):
    backend, circuit = made(name, CIRCUITS["reuploading"], place)
    x, weights = some(circuit, 5)
    backend.expectations(x, weights)
    backend.jacobian(x, weights)
    expected = 0 if name == "exact" else (5 + 5 * (2 * circuit.gates + 1)) * SHOTS
    assert backend.meter.spent.shots == expected
    jobs = 2 if name.startswith("ibm:") else 0  # an evaluation, a gradient: one job each
    assert backend.meter.spent.jobs == jobs
    assert backend.meter.spent.qpu_seconds == 2.0 * jobs  # what the loopback service charges
    assert backend.at(Scope(seed=9)).meter.spent.shots == 0 or name == "exact"


def test_a_device_that_is_not_there_is_refused_with_its_neighbours(place):
    with pytest.raises(BackendError, match="did you mean FakeManilaV2"):
        made("aer-FakeManilla", SMALL, place)


def test_a_circuit_wider_than_the_device_is_refused(place):
    with pytest.raises(BackendError, match="6 qubits, FakeManilaV2 has 5"):
        made("aer-FakeManilaV2", {"qubits": 6, "layers": 1}, place)

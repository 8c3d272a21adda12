import json
import shutil

import numpy as np
import pytest
from qiskit import QuantumCircuit, qpy

from llm_qfl.federation.config import QuantumConfig
from llm_qfl.federation.errors import RunFolderError
from llm_qfl.quantum import circuits
from llm_qfl.quantum.folder import load_model, save_model
from llm_qfl.quantum.model import get_model

FEATURES = {"class_names": ["no", "yes"], "encoding": "columns", "feature_map": {"mean": [0.1, -3e-17]}}


def made(circuit="reuploading", readout="scale", classes=2, **more):
    model = get_model(QuantumConfig(circuit=circuit, readout=readout, **more), classes)
    return model, model.initial_theta(np.random.default_rng(0))


@pytest.fixture
def folder(tmp_path):
    model, theta = made(layers=2)
    save_model(tmp_path / "model", model, theta, FEATURES)
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("circuit", "readout", "classes"),
    [
        ("reuploading", "scale", 2),
        ("reuploading", "linear", 3),
        ("reuploading", "bit", 3),
        ("zz-real-amplitudes", "parity", 2),
        ("zz-real-amplitudes", "scale-bias", 4),
        ("qcnn", "scale", 2),
    ],
)
def test_round_trip(tmp_path, circuit, readout, classes):
    model, theta = made(circuit, readout, classes)
    save_model(tmp_path, model, theta, FEATURES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circuit.qpy", "features.json", "weights.npz"]
    loaded, weights, features = load_model(tmp_path)
    assert features == FEATURES
    np.testing.assert_array_equal(weights, theta)
    assert (loaded.classes, loaded.parameter_names) == (classes, model.parameter_names)
    assert loaded.circuit.digest() == model.circuit.digest()
    x = np.random.default_rng(1).normal(size=(5, 4))
    np.testing.assert_allclose(loaded.log_probabilities(weights, x), model.log_probabilities(theta, x), atol=1e-13)


def test_the_stored_circuit_is_used_and_not_a_rebuilt_one(folder, monkeypatch):
    def forbidden(*_):
        raise AssertionError("rebuilt")

    monkeypatch.setattr(circuits, "build_circuit", forbidden)
    monkeypatch.setattr("llm_qfl.quantum.model.build_circuit", forbidden)
    assert load_model(folder)[0].num_parameters == 33


def test_weights_are_plain_arrays(folder):
    with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
        assert arrays["theta"].dtype == np.float64
        assert arrays["parameter_names"].tolist()[-1] == "readout/log-scale"


@pytest.mark.parametrize("name", ["circuit.qpy", "weights.npz", "features.json"])
def test_a_missing_cut_or_foreign_file_is_named(folder, name):
    path = folder / name
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(RunFolderError, match=name):
        load_model(folder)
    for damaged in (b"", whole[: len(whole) // 2], whole[:12], b"\x00" * 64, b"PK\x03\x04 not really"):
        path.write_bytes(damaged)
        with pytest.raises(RunFolderError):
            load_model(folder)
    path.write_bytes(whole)
    load_model(folder)


def edited(folder, **changes):
    about = json.loads((folder / "features.json").read_text())
    about["model"].update(changes)
    (folder / "features.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 99},
        {"classes": 3},
        {"classes": "two"},
        {"quantum": {"circuit": "abacus"}},
        {"input_parameters": ["x[0]", "x[1]", "x[2]", "y[0]"]},
        {"input_parameters": ["x[1]", "x[0]", "x[2]", "x[3]"]},
        {"weight_parameters": []},
        {"observables": [[["ZZZZ", 1.0]], [["IIIZ", 1.0]]]},
        {"observables": [[["Q", 1.0]]]},
        {"observables": 3},
        {"circuit_digest": "0" * 64},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_does_not_go_together_is_refused(folder, changes):
    edited(folder, **changes)
    with pytest.raises(RunFolderError):
        load_model(folder)


def test_features_that_are_no_object_are_refused(folder):
    for text in ("[]", "3", '{"model": 3}', "{}"):
        (folder / "features.json").write_text(text)
        with pytest.raises(RunFolderError, match=r"features\.json"):
            load_model(folder)


def test_files_of_two_runs_are_refused(folder, tmp_path):
    model, theta = made(layers=1)
    save_model(tmp_path / "other", model, theta, FEATURES)
    for name, reason in (("circuit.qpy", "cannot be read|another circuit"), ("weights.npz", "from one run")):
        mixed = tmp_path / f"mixed-{name}"
        shutil.copytree(folder, mixed)
        shutil.copy(tmp_path / "other" / name, mixed / name)
        with pytest.raises(RunFolderError, match=reason):
            load_model(mixed)


@pytest.mark.parametrize(
    "arrays",
    [
        {"theta": np.full(33, np.nan)},
        {"theta": np.zeros(33, np.float32)},
        {"theta": np.zeros(32)},
        {"theta": np.zeros((33, 1))},
        {"parameter_names": np.array(["a"] * 33)},
        {"parameter_names": np.arange(33.0)},
        {"extra": np.zeros(1)},
        {"theta": np.array([None] * 33, dtype=object)},
    ],
    ids=["nan", "float32", "short", "matrix", "names", "numbers", "extra", "pickle"],
)
def test_odd_weights_are_refused(folder, arrays):
    with np.load(folder / "weights.npz", allow_pickle=False) as stored:
        kept = dict(stored)
    np.savez(folder / "weights.npz", **{**kept, **arrays}, allow_pickle=True)
    with pytest.raises(RunFolderError, match=r"weights\.npz"):
        load_model(folder)


def test_an_old_qpy_is_refused_unread(folder, monkeypatch):
    circuit = QuantumCircuit(1)
    with open(folder / "circuit.qpy", "wb") as file:
        qpy.dump(circuit, file)
    whole = bytearray((folder / "circuit.qpy").read_bytes())
    assert whole[:6] == b"QISKIT"
    whole[6] = 10  # the version
    (folder / "circuit.qpy").write_bytes(bytes(whole))
    monkeypatch.setattr(qpy, "load", lambda file: pytest.fail("an old file was read"))
    with pytest.raises(RunFolderError, match="QPY version 10"):
        load_model(folder)


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    model, theta = made(layers=2)
    with pytest.raises(RunFolderError, match="33 finite weights"):
        save_model(tmp_path / "short", model, theta[:-1], FEATURES)
    with pytest.raises(RunFolderError, match="finite"):
        save_model(tmp_path / "nan", model, theta * np.nan, FEATURES)
    with pytest.raises(RunFolderError, match="'model'"):
        save_model(tmp_path / "key", model, theta, {"model": 1})
    assert not list(tmp_path.iterdir())


def test_a_model_that_was_trained_with_shots_predicts_exactly_and_pays_nothing(tmp_path):
    model, theta = made(layers=2, backend="aer", qubits=3)
    save_model(tmp_path / "model", model, theta, FEATURES)
    loaded, back, _ = load_model(tmp_path / "model")
    assert loaded.backend == "exact"
    x = np.random.default_rng(0).normal(size=(4, 3))
    exact, _ = made(layers=2, qubits=3)
    np.testing.assert_allclose(loaded.log_probabilities(back, x), exact.log_probabilities(theta, x), rtol=0, atol=1e-12)

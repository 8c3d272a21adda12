"""The model folder of a run: `circuit.qpy`, `weights.npz`, `features.json`. All that a prediction needs.

`features.json` holds what the run says about its features, and under `model` what makes a model of the circuit.
Read strictly: such a folder may come from somebody else.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from pydantic import ValidationError
from qiskit import QuantumCircuit, qpy
from qiskit.exceptions import QiskitError
from qiskit.quantum_info import SparsePauliOp

from llm_qfl.federation.config import QuantumConfig
from llm_qfl.federation.errors import CircuitError, RunFolderError
from llm_qfl.federation.types import Array
from llm_qfl.quantum.circuits import ModelCircuit
from llm_qfl.quantum.model import QNNModel

FORMAT = 1
OLDEST_QPY = 13  # older ones hold expressions as text that sympy evaluates
_DAMAGED = (OSError, ValueError, KeyError, TypeError, IndexError, EOFError, struct.error, BadZipFile, QiskitError)


def save_model(folder: Path, model: QNNModel, theta: Array, features: Mapping[str, Any]) -> None:
    """Write the three files.

    Args:
        folder: is made where it is missing.
        model: the QNN.
        theta: (P,).
        features: JSON values: what makes a row's numbers and features, and the class names.

    Raises:
        RunFolderError: theta or the features are not what can be read again.
    """
    if theta.shape != (model.num_parameters,) or not np.isfinite(theta).all():
        raise RunFolderError(f"{folder}: expected {model.num_parameters} finite weights, got shape {theta.shape}")
    if "model" in features:
        raise RunFolderError(f"{folder}/features.json: the key 'model' is the model's own; name yours otherwise")
    folder.mkdir(parents=True, exist_ok=True)
    circuit = model.circuit
    with open(folder / "circuit.qpy", "wb") as file:
        qpy.dump(circuit.circuit, file)
    names = np.array(model.parameter_names, dtype=np.str_)
    np.savez(folder / "weights.npz", theta=theta.astype(np.float64), parameter_names=names)
    about = {
        "format": FORMAT,
        "quantum": model.config.model_dump(by_alias=True),
        "classes": model.classes,
        "input_parameters": [parameter.name for parameter in circuit.input_parameters],
        "weight_parameters": [parameter.name for parameter in circuit.weight_parameters],
        "observables": [[(label, c.real) for label, c in op.to_list()] for op in circuit.observables],
        "circuit_digest": circuit.digest(),
    }
    text = json.dumps({**features, "model": about}, indent=1, allow_nan=False)
    (folder / "features.json").write_text(text + "\n", encoding="utf-8")


def load_model(folder: Path) -> tuple[QNNModel, Array, dict[str, Any]]:
    """Read what `save_model` wrote, from its three files alone.

    Returns:
        The model around the stored circuit (not a rebuilt one), theta (P,), and the features as they were given.

    Raises:
        RunFolderError: a file is missing, damaged, or does not go with the others.
    """
    about = _read_features(folder / "features.json")
    circuit = _read_circuit(folder / "circuit.qpy")
    theta, names = _read_weights(folder / "weights.npz")
    try:
        model = _model(about.pop("model"), circuit)
    except (*_DAMAGED, ValidationError, CircuitError) as error:
        raise _unreadable(folder, error) from error
    if names != model.parameter_names or theta.shape != (model.num_parameters,):
        raise RunFolderError(
            f"{folder / 'weights.npz'}: expected the {model.num_parameters} weights of circuit.qpy by name, got "
            f"{len(names)} names and an array {theta.shape}; take all three files from one run"
        )
    return model, theta, about


def _unreadable(path: Path, error: Exception) -> RunFolderError:
    return RunFolderError(f"{path}: cannot be read as a model's ({type(error).__name__}: {error}); copy it again")


def _read_features(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(about, dict) or not isinstance(about["model"], dict):
            raise TypeError("expected an object with a key 'model'")
        if about["model"]["format"] != FORMAT:
            raise ValueError(f"format {about['model']['format']!r}, this release reads {FORMAT}")
    except _DAMAGED as error:
        raise _unreadable(path, error) from error
    return about


def _read_circuit(path: Path) -> QuantumCircuit:
    try:
        with open(path, "rb") as file:
            written = qpy.get_qpy_version(file)
            if written < OLDEST_QPY:
                raise ValueError(f"QPY version {written}, expected {OLDEST_QPY} or newer")
            file.seek(0)
            (circuit,) = qpy.load(file)
    except _DAMAGED as error:
        raise _unreadable(path, error) from error
    return circuit


def _read_weights(path: Path) -> tuple[Array, tuple[str, ...]]:
    try:
        # np.load leaves a file open that it takes for an archive and cannot read
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            if set(arrays.files) != {"theta", "parameter_names"}:
                raise ValueError(f"expected the arrays theta and parameter_names, got {arrays.files}")
            theta, names = arrays["theta"], arrays["parameter_names"]
        if theta.dtype != np.float64 or not np.isfinite(theta).all() or names.dtype.kind != "U" or names.ndim != 1:
            raise ValueError(f"expected finite float64 and a list of names, got {theta.dtype} and {names.dtype}")
    except _DAMAGED as error:
        raise _unreadable(path, error) from error
    return theta, tuple(names.tolist())


def _model(about: Mapping[str, Any], circuit: QuantumCircuit) -> QNNModel:
    by_name = {parameter.name: parameter for parameter in circuit.parameters}
    # Whatever backend the run had, a prediction is exact: it draws no shots and pays for no job.
    exact = {"backend": "exact", "evaluation_backend": "same"}
    config = QuantumConfig.model_validate(about["quantum"]).model_copy(update=exact)
    stored = ModelCircuit(
        config.circuit,
        circuit,
        tuple(by_name[name] for name in about["input_parameters"]),
        tuple(by_name[name] for name in about["weight_parameters"]),
        tuple(SparsePauliOp.from_list([(label, c) for label, c in terms]) for terms in about["observables"]),
    )
    if config.readout != "linear" and len(stored.observables) != about["classes"]:
        raise ValueError(f"{len(stored.observables)} observables for {about['classes']!r} classes")
    if stored.digest() != about["circuit_digest"]:
        raise ValueError("circuit.qpy holds another circuit than features.json names")
    return QNNModel(config, int(about["classes"]), stored)

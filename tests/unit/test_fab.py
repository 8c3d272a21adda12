"""The FAB: exactly the whitelist travels to a node, and every module in it can be imported from there."""

import ast
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
WHITELIST = ("llm_qfl", "client_app", "server_app", "agent")
POLICY = "agent/policy.json"  # the one exception to "no weights"
ADDED_BY_FLOWER = {"pyproject.toml", "LICENSE", ".info/CONTENT"}


def tracked(*folders: str) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders],
        cwd=PROJECT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [name for name in listed.stdout.splitlines() if (PROJECT / name).is_file()]


@pytest.fixture(scope="module")
def fab(tmp_path_factory) -> zipfile.ZipFile:
    """What `flwr build` packs from a copy of the checkout (whose own folder name may be one that Flower refuses)."""
    copy = tmp_path_factory.mktemp("fab") / "llm-qfl"
    for name in tracked():
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((PROJECT / name).read_bytes())
    (copy / "llm_qfl" / "credentials.json").write_text("{}")  # must not travel
    subprocess.run(
        [Path(sys.executable).with_name("flwr"), "build", "--app", copy],
        cwd=copy.parent, env={**os.environ, "FLWR_HOME": str(copy.parent / "home")}, check=True, capture_output=True,
    )  # fmt: skip
    (built,) = copy.parent.glob("*.fab")
    return zipfile.ZipFile(built)


def test_the_whitelist_in_pyproject_is_the_one_tested():
    app = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["fab-include"] == [*(f"{package}/**/*.py" for package in WHITELIST), POLICY]
    assert set(app["components"]) == {"serverapp", "clientapp"}  # an agentapp would turn the whole FAB into one


def test_the_fab_holds_the_whitelist_and_nothing_else(fab):
    expected = {name for name in tracked(*WHITELIST) if name.endswith(".py")} | {POLICY}
    assert set(fab.namelist()) - ADDED_BY_FLOWER == expected


def test_every_module_of_the_fab_imports_from_the_fab(fab, tmp_path):
    fab.extractall(tmp_path)
    names = sorted(name for name in fab.namelist() if name.endswith(".py") and not name.endswith("__main__.py"))
    modules = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in names]
    code = f"""
import importlib, sys
sys.path.insert(0, {str(tmp_path)!r})
print([m.__file__ for m in map(importlib.import_module, {modules!r})])
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    files = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    assert {str(Path(file).relative_to(tmp_path)) for file in files} == set(names)

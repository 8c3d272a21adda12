"""What is installed against what pyproject.toml asks for, and against the versions that the release was tested with."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from llm_qfl.cli.doctor.check import Check
from llm_qfl.cli.doctor.node import Node

BASE = ""
PURPOSE = {
    "aer": "shots and fake devices: quantum.backend aer, aer-<fake device>, ibm-local:<fake device>",
    "ibm": "IBM Quantum: quantum.backend ibm:<device>",
}
LANGUAGE_AT_SITE = ("peft", "safetensors", "torch", "transformers")
"""What of the extra `language` a site needs; the others are for the server."""
_SHOWN = 4


def check_packages(node: Node | None) -> list[Check]:
    """The base, then each extra of a node: red where the configured backend needs it, else for information."""
    wanted, needed = wanted_packages(), needed_extras(node)
    lines = [_base(wanted[BASE])]
    for extra, purpose in PURPOSE.items():
        missing = problems(wanted.get(extra, []))
        if not missing:
            lines.append(Check(f"extra {extra}", "ok", f"{len(wanted.get(extra, []))} packages as asked"))
        elif extra in needed:
            lines.append(
                Check(f"extra {extra}", "fail", f"{needed[extra]} needs it: {_some(missing)}", _install(extra))
            )
        else:
            lines.append(Check(f"extra {extra}", "skipped", f"not complete ({_some(missing)}); needed for {purpose}"))
    language = [item for item in wanted.get("language", []) if canonicalize_name(item.name) in LANGUAGE_AT_SITE]
    lines.append(_language(node, language))
    used = [item for extra in (BASE, *needed) for item in wanted.get(extra, [])]
    return [*lines, _tested(used)]


def _language(node: Node | None, requirements: list[Requirement]) -> Check:
    """Red only where the rows become numbers by the model; else the site goes on without it."""
    name, missing = "extra language", problems(requirements)
    if not missing:
        return Check(name, "ok", f"{len(requirements)} packages as asked")
    if node is not None and node.config.data.encoding == "language":
        return Check(name, "fail", f"data.encoding=language needs it: {_some(missing)}", _install("language"))
    if node is not None and node.takes_language:
        said = f"not complete ({_some(missing)}): this site will train the QNN and take no part in the language model"
        return Check(name, "warn", said, _install("language"))
    return Check(name, "skipped", f"not complete ({_some(missing)}); needed for language models")


def _install(extra: str) -> str:
    return f"pip install '.[{extra}]' -c constraints.txt  (in the checkout)"


def needed_extras(node: Node | None) -> dict[str, str]:
    """Extra -> the backend that needs it."""
    found: dict[str, str] = {}
    for name in () if node is None else node.places:
        if name.startswith("ibm:"):
            found["ibm"] = name
        elif name != "exact":  # IBM's client in its local mode simulates with Aer
            found["aer"] = name
    return found


def wanted_packages() -> dict[str, list[Requirement]]:
    """Extra (the base is the empty one) -> what it asks for: of the checkout, else of the installed distribution."""
    checkout = _checkout()
    if checkout is not None:
        project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        groups = {BASE: project["dependencies"], **project["optional-dependencies"]}
        return {extra: [Requirement(line) for line in lines] for extra, lines in groups.items()}
    found: dict[str, list[Requirement]] = {BASE: []}
    for line in metadata.requires("llm-qfl") or []:
        requirement = Requirement(line)
        marker = requirement.marker
        extras = [
            extra for extra in (BASE, *PURPOSE, "language") if marker is None or marker.evaluate({"extra": extra})
        ]
        for extra in extras[:1] if extras[:1] == [BASE] else extras:  # what holds without an extra is the base's
            found.setdefault(extra, []).append(requirement)
    return found


def problems(requirements: list[Requirement]) -> list[str]:
    """Packages that are missing or of another version than asked for."""
    out = []
    for item in requirements:
        version = installed(item.name)
        if version is None:
            out.append(f"{item.name} is missing")
        elif not item.specifier.contains(version, prereleases=True):
            out.append(f"{item.name} {version}, expected {item.specifier}")
    return out


def installed(name: str) -> str | None:
    """The version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def tested_versions() -> dict[str, str]:
    """Package -> version in constraints.txt; empty where there is no checkout."""
    checkout = _checkout()
    if checkout is None:
        return {}
    lines = (checkout / "constraints.txt").read_text(encoding="utf-8").splitlines()
    split = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(name): version.strip() for name, version in split}


def _base(requirements: list[Requirement]) -> Check:
    missing = problems(requirements)
    if missing:
        return Check("packages", "fail", _some(missing), "pip install . -c constraints.txt  (in the checkout), or make")
    return Check("packages", "ok", f"{len(requirements)} packages as asked")


def _tested(requirements: list[Requirement]) -> Check:
    name, tested = "versions", tested_versions()
    if not tested:
        return Check(name, "skipped", "no constraints.txt here: not compared with the tested versions")
    found = {item.name: installed(item.name) for item in requirements}
    other = [
        f"{package} {version} (tested: {tested[key]})"
        for package, version in found.items()
        if version is not None
        and (key := canonicalize_name(package)) in tested
        and Version(version).public != Version(tested[key]).public
    ]
    if other:
        advice = "to have the tested ones: pip install with -c constraints.txt"
        return Check(name, "warn", f"{len(other)} differ from the tested ones: {_some(other)}", advice)
    return Check(name, "ok", "those that this release was tested with")


def _checkout() -> Path | None:
    folder = Path(__file__).resolve().parents[3]
    return folder if (folder / "pyproject.toml").is_file() and (folder / "constraints.txt").is_file() else None


def _some(lines: list[str]) -> str:
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return ", ".join(lines[:_SHOWN]) + more

"""The `[tool.flwr.app.config...]` tables of pyproject.toml, written from `RunConfig`.

`python -m llm_qfl.cli.config_table --write` writes them, without `--write` it compares.
"""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

from llm_qfl.federation.config import Scalar, default_run_config
from llm_qfl.federation.errors import ConfigError

PREFIX = "tool.flwr.app.config"
AFTER = "[tool.flwr.app.components]"
NOTE = "# Written from RunConfig by `python -m llm_qfl.cli.config_table --write`; every key is explained there."


def render_table(values: Mapping[str, Scalar] | None = None) -> str:
    """The tables as TOML, a section of the run config each.

    Args:
        values: flat run config; the defaults where it is not given.
    """
    sections: dict[str, list[str]] = {}
    for key, value in (default_run_config() if values is None else values).items():
        section, name = key.split(".", 1)
        sections.setdefault(section, []).append(f"{name} = {toml_value(value)}")
    blocks = ["\n".join([f"[{PREFIX}.{section}]", *lines]) for section, lines in sections.items()]
    return NOTE + "\n" + "\n\n".join(blocks) + "\n"


def toml_value(value: Scalar) -> str:
    """A scalar as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    # A JSON string is a TOML basic string, but for DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)


def read_table(pyproject: Path) -> dict[str, Scalar]:
    """The flat run config that the file holds; empty where it has no such table.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        found = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{pyproject}: cannot be read ({error}); name the project's pyproject.toml") from error
    for part in PREFIX.split("."):
        found = found.get(part, {})
    flat: dict[str, Scalar] = {}
    for section, keys in found.items():
        if isinstance(keys, dict):
            flat |= {f"{section}.{name}": value for name, value in keys.items()}
        else:
            flat[section] = keys
    return flat


def differences(pyproject: Path) -> list[str]:
    """One line per key that differs, in either direction; types count (1 is not 1.0)."""
    there, wanted = read_table(pyproject), default_run_config()
    lines = [f"{key}: missing, expected {toml_value(value)}" for key, value in wanted.items() if key not in there]
    lines += [f"{key}: RunConfig has no such key" for key in there if key not in wanted]
    for key in wanted.keys() & there.keys():
        if (type(there[key]), there[key]) != (type(wanted[key]), wanted[key]):
            lines.append(f"{key}: expected {toml_value(wanted[key])}, got {toml_value(there[key])}")
    return sorted(lines)


def check_table(pyproject: Path) -> None:
    """Compare.

    Raises:
        ConfigError: with every difference and the command that writes the table.
    """
    found = differences(pyproject)
    if found:
        raise ConfigError([f"{pyproject}: {line}" for line in found] + ["run `llm-qfl config-table --write`"])


def write_table(pyproject: Path) -> None:
    """Put the tables in place of those that are there, or behind the app's components.

    Raises:
        ConfigError: the file cannot be read, or has no `[tool.flwr.app.components]`.
    """
    read_table(pyproject)  # refuse what is not TOML
    lines = pyproject.read_text(encoding="utf-8").splitlines()
    kept: list[str] = []
    inside = False
    for line in lines:
        if line.startswith("["):
            inside = line.startswith((f"[{PREFIX}.", f"[{PREFIX}]"))
        if not inside and line != NOTE:
            kept.append(line)
    if AFTER not in kept:
        raise ConfigError(f"{pyproject}: expected a table {AFTER}; this is no Flower app")
    at = kept.index(AFTER) + 1
    while at < len(kept) and not kept[at].startswith("["):
        at += 1
    while not kept[at - 1].strip():
        at -= 1
    rest = kept[at:]
    while rest and not rest[0].strip():
        rest.pop(0)
    text = "\n".join([*kept[:at], "", render_table(), *rest]) + "\n"
    partial = pyproject.with_name(pyproject.name + ".partial")
    partial.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    os.replace(partial, pyproject)


def _main() -> None:
    from typer.main import get_command

    from llm_qfl.cli.main import app

    get_command(app).main(["config-table", *sys.argv[1:]])


if __name__ == "__main__":
    _main()

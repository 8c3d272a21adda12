"""pyproject.toml and RunConfig, compared in both directions; writing is repeatable and leaves the rest alone."""

import tomllib
from pathlib import Path

import pytest

from llm_qfl.cli.config_table import check_table, differences, read_table, render_table, toml_value, write_table
from llm_qfl.federation.config import RunConfig, default_run_config
from llm_qfl.federation.errors import ConfigError

PROJECT = Path(__file__).parents[3] / "pyproject.toml"


def test_the_project_file_equals_run_config():
    assert differences(PROJECT) == []
    found = read_table(PROJECT)
    assert found == default_run_config()
    assert set(found) == set(RunConfig().flat())


@pytest.fixture
def copy(tmp_path):
    path = tmp_path / "pyproject.toml"
    path.write_text(PROJECT.read_text(encoding="utf-8"), encoding="utf-8")
    write_table(path)
    return path


def test_each_direction_is_seen(copy):
    text, given = copy.read_text(encoding="utf-8"), default_run_config()
    rows, rounds = given["data.min-rows"], given["server.rounds"]
    copy.write_text(
        text.replace(f"min-rows = {rows}\n", "min-row = 5\n").replace(f"rounds = {rounds}\n", "rounds = 9.0\n")
    )
    assert differences(copy) == [
        "data.min-row: RunConfig has no such key",
        f"data.min-rows: missing, expected {rows}",
        f"server.rounds: expected {rounds}, got 9.0",
    ]
    with pytest.raises(ConfigError, match="llm-qfl config-table --write"):
        check_table(copy)
    write_table(copy)
    check_table(copy)


def test_writing_twice_changes_nothing_and_keeps_the_rest(copy):
    once = copy.read_bytes()
    write_table(copy)
    assert copy.read_bytes() == once

    def rest(path):
        value = tomllib.loads(path.read_text(encoding="utf-8"))
        value["tool"]["flwr"]["app"].pop("config", None)
        return value

    assert rest(copy) == rest(PROJECT)


def test_flower_reads_the_table_as_dotted_keys(copy):
    from flwr.common.config import flatten_dict

    table = tomllib.loads(copy.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"]
    assert flatten_dict(table) == default_run_config()


def test_a_file_that_is_no_app(tmp_path):
    path = tmp_path / "pyproject.toml"
    path.write_text("[project]\nname = 'x'\n")
    with pytest.raises(ConfigError, match="this is no Flower app"):
        write_table(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_table(tmp_path / "missing.toml")


@pytest.mark.parametrize("value", [True, 3, 0.5, 1e-6, 'a "quoted" \\ path\t\x7f ü'])
def test_values_survive_toml(value):
    assert tomllib.loads(f"x = {toml_value(value)}")["x"] == value


def test_the_rendered_table_is_toml():
    assert "[tool.flwr.app.config.server]" in render_table()

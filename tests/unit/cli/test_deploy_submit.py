"""The one-shot run: overrides that meet, the connection that is written, the path that is printed."""

import tomllib
from pathlib import Path

import pytest

from llm_qfl.cli.deploy_nodes import SuperLink
from llm_qfl.cli.deploy_submit import RUNS, merge, seen_from_outside, write_connection
from llm_qfl.federation.errors import ConfigError, RunFolderError


def test_the_last_word_counts_where_a_key_is_given_twice():
    found = merge(['server.sites=3 data.test="federated"', "", 'server.sites=2 language.model="none"'])
    assert tomllib.loads("\n".join(found.split(" "))) == {
        "server": {"sites": 2}, "data": {"test": "federated"}, "language": {"model": "none"},
    }  # fmt: skip


@pytest.mark.parametrize("wrong", ["server.sitez=3", "server.sites=three"])
def test_wrong_overrides_are_refused_before_anything_is_asked(wrong):
    with pytest.raises(ConfigError):
        merge(["server.rounds=2", wrong])


def test_the_connection_names_the_authority_or_says_that_there_is_none(tmp_path):
    ca = tmp_path / "ca.crt"
    write_connection(tmp_path / "home", SuperLink("superlink:8000", ca))
    found = tomllib.loads((tmp_path / "home" / "config.toml").read_text())["superlink"]
    assert found[found["default"]] == {"address": "superlink:8000", "root-certificates": str(ca)}
    write_connection(tmp_path / "home", SuperLink("superlink:8000", None))
    found = tomllib.loads((tmp_path / "home" / "config.toml").read_text())["superlink"]
    assert found[found["default"]] == {"address": "superlink:8000", "insecure": True}


def test_the_folder_is_printed_as_the_host_sees_it(tmp_path, monkeypatch):
    inside = tmp_path / "runs"
    (inside / "one").mkdir(parents=True)
    monkeypatch.delenv(RUNS, raising=False)
    assert seen_from_outside(inside / "one", inside) == str(inside / "one")
    monkeypatch.setenv(RUNS, "/host/runs")
    assert Path(seen_from_outside(inside / "one", inside)) == Path("/host/runs/one")
    with pytest.raises(RunFolderError, match="mounted from /host/runs"):
        seen_from_outside(tmp_path / "elsewhere", inside)

"""Where a node keeps what it must not lose."""

from pathlib import Path

import pytest

from llm_qfl.federation.settings import default_folder, ledger_folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("FLWR_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_ledger_of_paid_jobs_is_never_in_a_cache(home, monkeypatch):
    assert default_folder() == home / ".cache" / "llm-qfl"
    assert ledger_folder(default_folder()) == home / ".local" / "share" / "llm-qfl" / "jobs"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert ledger_folder(default_folder()) == Path("/data/llm-qfl/jobs")
    assert ledger_folder(Path("/srv/lab")) == Path("/srv/lab/jobs")
    monkeypatch.setenv("FLWR_HOME", str(home / "node"))
    assert ledger_folder(default_folder()) == home / "node" / "llm-qfl" / "jobs"


def test_a_ledger_that_is_in_the_cache_already_is_not_left(home):
    (home / ".cache" / "llm-qfl" / "jobs").mkdir(parents=True)
    assert ledger_folder(default_folder()) == home / ".cache" / "llm-qfl" / "jobs"

"""Resume with a tiny language model: adapter, emulator, what sites keep between rounds, and what decisions are made of.

The server dies when sites have answered a round that is not closed: they are a round ahead of the checkpoint.
"""

import json

import numpy as np
import pytest
import torch

from client_app import app as site_app
from client_app.language import Held
from llm_qfl.federation.settings import NodeSettings
from llm_qfl.language.export import read_adapter
from server_app.checkpoint import read_checkpoint
from simulation.run import run_federation

pytestmark = pytest.mark.slow  # federations with torch

TINY = {
    "server.rounds": 4,
    "training.steps": 2,
    "quantum.layers": 1,
    "quantum.qubits": 2,
    "language.model": "tiny-4",
    "language.adapter-layers": 1,
    "language.beta": 0.4,
    "language.every": 1,
    "language.steps": 2,
    "language.batch-size": 4,
    "language.rank": 2,
    "language.emulator-rank": 2,
    "language.align-first": 2,
    "language.align-every": 1,
    "language.align-batch": 4,
    "language.public-rows": 8,
    "language.columns": 2,
    "language.max-tokens": 60,
    "language.label-words": "letters",
    "language.dtype": "float32",
    "data.test-fraction": 0.15,
    "data.partitioner": "iid",
}
CASES = {
    "error feedback": {"language.wire": "int8"},
    "half precision, every other round": {"language.wire": "fp16", "language.every": 2, "server.rounds": 5},
    "own adapters": {"language.method": "local", "language.align-every": 0},
    "a rule, soft labels": {"agent.mode": "llm-qfl-selected", "language.every": 2, "agent.distill-weight": 0.3},
    "language features": {"data.encoding": "language"},
}
TIMED = ("seconds", "milliseconds", "align_seconds", "fill_seconds", "step_seconds", "peak_bytes", "peak_exact")
AGAIN = ("computed",)  # boundary states lie on the sites' disks already
SITES = 3


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture(autouse=True)
def _small_and_apart(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    values = rng.normal(size=(80, 3)) + labels[:, None]
    lines = [",".join([*(f"{v:.4f}" for v in row), "AB"[y]]) for row, y in zip(values, labels, strict=True)]
    (tmp_path / "rows.csv").write_text("\n".join(["width,height,depth,label", *lines]) + "\n")
    words = ["tiny small low", "big large high"]
    texts = [f"{words[y]} {rng.integers(9)} {rng.integers(9)},{'AB'[y]}" for y in labels]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *texts]) + "\n")
    monkeypatch.setitem(TINY, "data.source", f"csv:{tmp_path / 'rows.csv'}")
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def federate(tmp_path, keys):
    more = {"data.source": f"csv:{tmp_path / 'texts.csv'}"} if keys.get("data.encoding") == "language" else {}
    nodes = [{"partition-id": n, "num-partitions": SITES, "folder": str(tmp_path / f"node-{n}")} for n in range(SITES)]
    return run_federation({**TINY, **more, **keys}, nodes=nodes, output=tmp_path / "runs")


def plain(value):
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items() if key not in (*TIMED, *AGAIN)}
    return [plain(one) for one in value] if isinstance(value, list) else value


def ledger(folder, name):
    path = folder / name
    return [plain(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def killed_in_round(tmp_path, monkeypatch, keys, server_round):
    """A run whose sites have all answered this round when the server dies."""
    folders = set((tmp_path / "runs").iterdir())
    original, answered = site_app.encode_report, []

    def counted(report, names, mark):
        content = original(report, names, mark)
        answered.append(report.server_round)
        if answered.count(server_round) == len({*ASKED[server_round]}):
            raise Killed
        return content

    with monkeypatch.context() as context:
        context.setattr(site_app, "encode_report", counted)
        with pytest.raises(Killed):
            federate(tmp_path, keys)
    (folder,) = set((tmp_path / "runs").iterdir()) - folders
    return folder


ASKED: dict[int, list[str]] = {}


@pytest.mark.parametrize("case", CASES)
def test_a_site_that_is_a_round_ahead(tmp_path, monkeypatch, case):
    keys = CASES[case]
    whole = federate(tmp_path, keys)
    lines = ledger(whole.folder, "rounds.jsonl")
    ASKED.clear()
    ASKED.update({line["round"]: line["plan"]["sites"] for line in lines})
    folder = killed_in_round(tmp_path, monkeypatch, keys, 3)
    assert read_checkpoint(folder).server_round == 2
    again = federate(tmp_path, {**keys, "server.resume": str(folder)})

    assert np.array_equal(again.theta, whole.theta)
    assert ledger(folder, "rounds.jsonl") == lines
    assert ledger(folder, "decisions.jsonl") == ledger(whole.folder, "decisions.jsonl")
    for key in ("test_accuracy", "validation_loss", "evaluations"):
        assert again.summary[key] == whole.summary[key]
    for key in ("test", "validation", "rounds", "bytes_up", "adap_fu_accuracy"):
        assert again.summary["language"][key] == whole.summary["language"][key], key
    if keys.get("language.method") == "local":
        found, expected = (run.finished.opened.language.exchange.own for run in (again, whole))
        assert found.keys() == expected.keys() != set()
        for site, arrays in expected.items():
            assert all(np.array_equal(found[site][key], value) for key, value in arrays.items())
    else:
        found, expected = (read_adapter(run.folder / "adapter").arrays for run in (again, whole))
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[key], value) for key, value in expected.items())


def test_a_run_that_a_language_model_decides(tmp_path, monkeypatch, deciding):
    keys = {**deciding, "agent.choice": "sample", "language.every": 2, "server.rounds": 5}
    whole = federate(tmp_path, keys)
    lines, decisions = ledger(whole.folder, "rounds.jsonl"), ledger(whole.folder, "decisions.jsonl")
    assert [line["by"] for line in decisions] == ["rule", *["policy"] * 4]
    ASKED.clear()
    ASKED.update({line["round"]: line["plan"]["sites"] for line in lines})
    folder = killed_in_round(tmp_path, monkeypatch, keys, 4)
    again = federate(tmp_path, {**keys, "server.resume": str(folder)})
    assert np.array_equal(again.theta, whole.theta)
    assert ledger(folder, "rounds.jsonl") == lines
    assert ledger(folder, "decisions.jsonl") == decisions


@pytest.mark.parametrize(("case", "kind"), [("error feedback", "residual"), ("own adapters", "own-adapter")])
def test_two_versions_lie_at_a_site_and_the_task_names_the_one_that_counts(tmp_path, monkeypatch, caplog, case, kind):
    keys = CASES[case]
    whole = federate(tmp_path, keys)
    ASKED.update({line["round"]: line["plan"]["sites"] for line in ledger(whole.folder, "rounds.jsonl")})
    folder = killed_in_round(tmp_path, monkeypatch, keys, 3)
    settings = NodeSettings.from_node_config(
        {"partition-id": 0, "num-partitions": SITES, "folder": str(tmp_path / "node-0")}
    )
    kept = Held(settings, folder.name, "site-0000").folder
    assert sorted(path.name for path in kept.glob(f"{kind}-*")) == [f"{kind}-2.safetensors", f"{kind}-3.safetensors"]
    (kept / f"{kind}-2.safetensors").unlink()
    again = federate(tmp_path, {**keys, "server.resume": str(folder)})
    line = ledger(folder, "rounds.jsonl")[2]
    assert ("site-0000" in line["language"]["rejected"]) == (kind == "own-adapter")  # what it had learned is gone
    told = {"residual": "what rounding took in round 2 is not kept", "own-adapter": "kept after round 2 is gone"}
    assert told[kind] in caplog.text
    assert again.summary["status"] == "finished"

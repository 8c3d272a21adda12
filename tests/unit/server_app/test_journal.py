"""Log lines of a run: the ledger's figures, one line a round, and nothing twice on the terminal."""

import io
import json
import re

import pytest

from client_app.guard import guarded
from llm_qfl.federation import logs
from llm_qfl.federation.config import RunConfig, default_run_config
from llm_qfl.federation.errors import DataError, FederationError
from server_app.display import PlainDisplay
from server_app.journal import Journal, logged
from simulation.run import run_federation

SECRET = "patient-Meier"


def test_without_the_variable_there_is_no_journal(monkeypatch):
    monkeypatch.delenv(logs.VARIABLE, raising=False)
    display = PlainDisplay(io.StringIO())
    assert logged(display, "r") is display


def test_a_round_is_one_line_with_the_ledger_s_figures(json_logs, run_folder, tmp_path):
    folder = run_folder(tmp_path / "run", rounds=2, rejected={2: {"site-0001": "no reply within 600 s"}})
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    shown, plain = io.StringIO(), io.StringIO()
    for display in (logged(PlainDisplay(shown), folder.name), PlainDisplay(plain)):
        display.start(RunConfig.from_run_config(default_run_config()), [{"site": "a", "rows": {"train": 7}}])
        for line in rounds:
            display.round(line)
        display.remark(2, "a remark")
        display.finish(json.loads((folder / "summary.json").read_text()), folder)
    assert shown.getvalue() == plain.getvalue()
    lines = json_logs()
    assert {line["run"] for line in lines} == {"run"}
    assert [line["message"] for line in lines] == [
        "the run begins", "round closed", "reply refused: no reply within 600 s", "round closed", "a remark",
        "the run has ended",
    ]  # fmt: skip
    assert (lines[0]["sites"], lines[0]["train_rows"]) == (1, 7)
    refused, closed = lines[2], lines[3]
    assert (refused["level"], refused["site"], refused["round"]) == ("warning", "site-0001", 2)
    assert (closed["asked"], closed["accepted"], closed["refused"]) == (4, 3, 1)
    assert closed["validation_loss"] == rounds[1]["validation"]["loss"]
    assert closed["bytes_up"] == rounds[1]["bytes_up"]
    assert lines[-1]["test_accuracy"] == 138 / 143


@pytest.mark.parametrize(
    ("error", "told"),
    [(DataError(f"row 3: got {SECRET!r}"), "DataError ("), (FederationError("no sites; wait"), "FederationError: no")],
)
def test_a_failure_is_told_as_an_exception_may_be(json_logs, error, told):
    shown = io.StringIO()
    try:
        raise error
    except (DataError, FederationError) as caught:
        Journal(PlainDisplay(shown), "r").fail(str(caught))
    (line,) = json_logs()
    assert line["error"]["is"].startswith(told)
    assert SECRET not in json.dumps(line)
    assert str(error) in shown.getvalue()


@pytest.mark.usefixtures("json_logs")
def test_sites_say_what_they_answered_for_which_run_and_round(tmp_path, capsys):
    rows = tmp_path / "rows.csv"
    lines = [f"{n},{n % 7},{'sick' if n % 2 else 'well'}" for n in range(60)]
    rows.write_text("\n".join(["a,b,label", *lines]) + "\n")
    bad = tmp_path / "bad.csv"
    bad.write_text("\n".join(["a,b,label", *lines, f"1,{SECRET},well"]) + "\n")
    nodes = [
        {"site": name, "data-path": str(path), "folder": str(tmp_path / name)}
        for name, path in (("one", rows), ("two", rows), ("bad", bad))
    ]
    config = {"server.rounds": 1, "quantum.qubits": 2, "quantum.layers": 1, "training.steps": 1}
    config |= {"data.test": "federated", "server.wait": 1.0}
    made = run_federation(config, nodes=nodes, output=tmp_path / "runs", show="plain")
    assert "bad" not in made.finished.opened.roll.nodes
    seen = capsys.readouterr()
    assert re.search(r"^left out node \d+: DataError", seen.out, re.MULTILINE)
    found = [json.loads(line) for line in seen.err.splitlines()]
    assert SECRET not in json.dumps(found)
    answered = [line for line in found if line["message"] == "answered"]
    assert {(line["site"], line["kind"]) for line in answered} == {
        (site, kind) for site in ("one", "two") for kind in ("query", "train", "evaluate")
    }
    assert {line["round"] for line in answered if line["kind"] == "train"} == {1}
    assert len({line["run"] for line in answered if line["kind"] != "query"}) == 1
    assert None not in {line["run"] for line in answered if line["kind"] != "query"}
    failed = [line for line in found if line["level"] == "error"]
    assert failed
    assert all(line["message"].startswith("handler failed: DataError (its text") for line in failed)
    assert all(line["error"]["at"] for line in failed)


def test_a_word_that_is_none_is_a_refusal_not_a_wedged_node(monkeypatch):
    from flwr.app import Message, RecordDict

    monkeypatch.setenv(logs.VARIABLE, "yes")
    asked = Message(RecordDict(), dst_node_id=1, message_type="query")
    reply = guarded(lambda message, context: message)(asked, None)
    assert reply.error.reason == "ConfigError"

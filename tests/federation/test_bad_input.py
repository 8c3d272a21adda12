"""Bad input: each a clear error, or a rejected reply with its reason in the ledger, and the run goes on."""

import json

import numpy as np
import pytest
from flwr.app import Array, Error, Message

from llm_qfl.federation.errors import ConfigError, DataError, FederationError, LlmQflError
from simulation.run import run_federation

SMALL = {
    "server.rounds": 2,
    "training.steps": 2,
    "quantum.layers": 1,
    "server.deadline": 0.2,
    "server.patience": 0.2,  # who is silent for a round is not waited for
    "language.model": "none",
}


def spoil(change):
    """A fault that changes the content of train replies."""

    def fault(task, reply):
        if task.metadata.message_type == "train" and not reply.has_error():
            change(reply.content)
        return reply

    return fault


def nan(content):
    content["arrays"]["qnn/weights"] = Array(content["arrays"]["qnn/weights"].numpy() * np.nan)


def shape(content):
    content["arrays"]["qnn/weights"] = Array(np.ones(3))


def silent(task, reply):
    return None if task.metadata.message_type == "train" else reply


def crash(task, reply):
    if task.metadata.message_type != "train":
        return reply
    return Message(Error(2, "boom"), reply_to=task)


def impostor(content):
    content["meta"]["site"] = "site-0000"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (spoil(nan), "not finite"),
        (spoil(shape), "expected shape"),
        (spoil(impostor), "the reply is from 'site-0000'"),
        (silent, "no reply within"),
        (crash, "boom"),
    ],
)
def test_a_bad_reply_is_rejected_with_its_reason_and_the_run_goes_on(fault, reason, tmp_path):
    run = run_federation(SMALL, sites=3, faults={2: fault}, output=tmp_path)
    lines = [json.loads(line) for line in (run.folder / "rounds.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert list(line["rejected"]) == ["site-0001"]
        assert reason in line["rejected"]["site-0001"]
        assert [client["site"] for client in line["clients"]] == ["site-0000", "site-0002"]
        assert line["aggregated"]
    assert np.isfinite(run.theta).all()


def test_below_quorum_the_model_stays_and_the_run_goes_on():
    run = run_federation({**SMALL, "server.quorum": 0.9}, sites=3, faults={2: spoil(nan)})
    assert [closed.aggregated for closed in run.finished.rounds] == [False, False]
    digests = {closed.theta_digest for closed in run.finished.rounds}
    assert len(digests) == 1


def write(path, text):
    path.write_text(text)
    return str(path)


GOOD = "a,b,label\n" + "".join(f"{i * 0.1},{(i * 7) % 5},{i % 2}\n" for i in range(40))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a,b\n1,2\n", ["label"]),
        (GOOD.replace("0.1,2", "nan,2", 1), ["not finite", "column 'a'"]),
        (GOOD.replace("0.1,2", "x,2", 1), ["column 'a'"]),
        ("a,b,label\n", ["row"]),
    ],
)
def test_a_file_that_is_off_is_a_clear_error(text, parts, tmp_path):
    path = write(tmp_path / "rows.csv", text)
    with pytest.raises((DataError, FederationError)) as caught:
        run_federation({**SMALL, "data.source": f"csv:{path}", "quantum.qubits": 2}, sites=2)
    message = str(caught.value).lower()
    assert all(part.lower() in message for part in parts), message


def test_one_class_in_the_whole_federation_is_an_error(tmp_path):
    text = "\n".join(line.rsplit(",", 1)[0] + ",1" if n else line for n, line in enumerate(GOOD.splitlines()))
    nodes = [{"site": name, "data-path": write(tmp_path / f"{name}.csv", text)} for name in ("a", "b")]
    with pytest.raises(LlmQflError, match="one class"):
        run_federation({**SMALL, "data.test": "federated", "quantum.qubits": 2}, nodes=nodes)


def test_a_site_with_other_columns_is_left_out_and_the_others_go_on(tmp_path):
    other = GOOD.replace("a,b,label", "a,c,label")
    texts = {"one": GOOD, "two": GOOD, "odd": other}
    nodes = [{"site": n, "data-path": write(tmp_path / f"{n}.csv", t)} for n, t in texts.items()]
    run = run_federation({**SMALL, "data.test": "federated", "quantum.qubits": 2}, nodes=nodes)
    assert run.summary["clients"] == 2
    assert "other columns" in run.summary["left_out"]["odd"]


def test_a_site_whose_file_cannot_be_read_is_left_out_without_its_path(tmp_path):
    nodes = [
        {"site": "good", "data-path": write(tmp_path / "good.csv", GOOD)},
        {"site": "bad", "data-path": str(tmp_path / "secret-patient-name.csv")},
    ]
    run = run_federation({**SMALL, "data.test": "federated", "quantum.qubits": 2}, nodes=nodes)
    (reason,) = run.summary["left_out"].values()
    assert "DataError" in reason
    assert "secret-patient-name" not in reason


def test_two_sites_of_one_name_are_refused(tmp_path):
    path = write(tmp_path / "rows.csv", GOOD)
    with pytest.raises(FederationError, match="two sites of one name: twin"):
        run_federation(
            {**SMALL, "data.test": "federated", "quantum.qubits": 2},
            nodes=[{"site": "twin", "data-path": path}, {"site": "twin", "data-path": path}],
        )


def test_own_files_and_a_server_hold_out_do_not_go_together(tmp_path):
    path = write(tmp_path / "rows.csv", GOOD)
    with pytest.raises(ConfigError, match=r"data\.test.*own files"):
        run_federation({**SMALL, "quantum.qubits": 2}, nodes=[{"site": "a", "data-path": path}])


def test_too_many_qubits_for_memory_are_refused_before_anything_is_asked(tmp_path):
    with pytest.raises(LlmQflError, match=r"(?i)memory"):
        run_federation({**SMALL, "quantum.qubits": 30}, sites=2)


def test_a_client_that_differs_refuses_and_names_the_component(monkeypatch):
    from client_app import app

    real = app.fingerprint
    monkeypatch.setattr(app, "fingerprint", lambda *a, **k: {**real(*a, **k), "qiskit": "0.1"})
    with pytest.raises(FederationError, match=r"FingerprintError.*qiskit \(server .*, site 0\.1\)"):
        run_federation(SMALL, sites=2)


def test_nothing_of_a_handlers_exception_reaches_the_server(monkeypatch):
    from client_app import round as client_round

    def leak(*args, **kwargs):
        raise ValueError("patient 4711 has a rare disease")

    monkeypatch.setattr(client_round, "local_round", leak)
    run = run_federation(SMALL, sites=2)
    for closed in run.finished.rounds:
        assert not closed.aggregated
        assert set(closed.rejected.values()) == {"ValueError (code 1001)"}


def test_a_quorum_of_the_expected_sites_is_enough_to_begin(tmp_path):
    nodes = [{"site": n, "data-path": write(tmp_path / f"{n}.csv", GOOD)} for n in ("one", "two")]
    nodes.append({"site": "bad", "data-path": str(tmp_path / "missing.csv")})
    keys = {**SMALL, "data.test": "federated", "quantum.qubits": 2, "server.sites": 3}
    assert run_federation({**keys, "server.quorum": 0.6}, nodes=nodes).summary["clients"] == 2
    with pytest.raises(FederationError, match="2 sites can take part, 3 are needed"):
        run_federation({**keys, "server.quorum": 0.9}, nodes=nodes)


def test_whatever_ends_a_run_the_folder_says_failed_and_why(tmp_path, monkeypatch):
    from flwr.app import Context, RecordDict

    import server_app.session
    from client_app.app import app as client_app
    from llm_qfl.federation.config import default_run_config
    from server_app.app import app as server
    from simulation.grid import InMemoryGrid

    def broken(*args):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(server_app.session, "take_census", broken)
    monkeypatch.setenv("LLM_QFL_PROJECT", str(tmp_path))
    config = {**default_run_config(), **SMALL}
    grid = InMemoryGrid(client_app, {1: {"partition-id": 0, "num-partitions": 1}}, config)
    with pytest.raises(ZeroDivisionError):
        server(grid, Context(1, 1, {}, RecordDict(), config))
    (folder,) = (tmp_path / "runs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["stop_reason"]) == ("failed", "ZeroDivisionError: a bug")
    assert "a bug" in (folder / "report.html").read_text()

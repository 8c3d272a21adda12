"""`llm-qfl doctor`: what is red, what is not, and that no check hides another or tells a secret."""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata

import pytest
from ibm_service.loopback import TOKEN, LoopbackService
from ibm_service.samples import STEP, small_work
from packaging.requirements import Requirement
from rich.console import Console
from typer.testing import CliRunner

from llm_qfl.cli.doctor import container, ibm, machine, packages, run
from llm_qfl.cli.doctor.check import Check, guarded
from llm_qfl.cli.main import app
from llm_qfl.federation.errors import ConfigError, DataError
from llm_qfl.quantum.ibm.options import IbmOptions
from llm_qfl.quantum.ibm.runner import IbmRunner


def doctor(*arguments, code=0):
    result = CliRunner().invoke(app, ["doctor", "--json", *map(str, arguments)])
    assert result.exit_code == code, result.output
    found = json.loads(result.stdout)
    assert (found["status"] == "fail") == (code == 1)
    return {line["name"]: line for line in found["checks"]}


def write_rows(path, labels, value=lambda number: number):
    lines = [f"{value(number)},{number % 7},{label}" for number, label in enumerate(labels)]
    path.write_text("\n".join(["a,b,label", *lines]) + "\n")
    return path


@pytest.fixture(autouse=True)
def _at_home(tmp_path_factory, monkeypatch):
    """Keys and Flower's home of the machine that runs the tests are not theirs."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path_factory.mktemp("flower")))
    monkeypatch.setattr(container, "PLACES", ())
    monkeypatch.setattr(container, "in_container", lambda: False)


@pytest.fixture
def site(tmp_path):
    """Node config of a real site with 40 rows of two classes."""
    rows = write_rows(tmp_path / "rows.csv", ["sick", "well"] * 20)

    def made(more=""):
        return f'site="clinic-a" data-path="{rows}" folder="{tmp_path / "node"}" {more}'

    return made


@pytest.fixture
def loopback(monkeypatch):
    service = LoopbackService()
    for name, value in service.environment().items():
        monkeypatch.setenv(name, value)
    with service.running():
        yield service
    assert service.errors == []
    assert service.posts() == 0  # whatever was checked, nothing was submitted


# The frame: every failure is a line


def test_a_check_that_raises_is_a_red_line_with_class_and_message():
    def broken():
        raise RuntimeError("disk on\n  fire")

    assert guarded("x", broken) == [
        Check("x", "fail", "RuntimeError: disk on fire", "not foreseen: report it with this line")
    ]


def test_our_own_errors_say_what_to_do_and_not_what_is_of_course():
    def ours():
        raise DataError("rows: none; bring some; nothing was spent")

    def many():
        raise ConfigError(["one; two", "three"])

    assert guarded("x", ours) == [Check("x", "fail", "DataError: rows: none", "bring some")]
    assert guarded("x", many) == [Check("x", "fail", "ConfigError: one; two\nthree")]


def test_a_check_that_raises_does_not_stop_the_others(monkeypatch, site):
    def broken(*_):
        raise ZeroDivisionError("on purpose")

    before = doctor("--node-config", site())
    monkeypatch.setattr(machine, "check_memory", broken)
    monkeypatch.setattr(ibm, "check_ledger", broken)
    after = doctor("--node-config", site(), code=1)
    assert list(after) == list(before)
    red = {name: line["found"] for name, line in after.items() if line["status"] == "fail"}
    assert red == dict.fromkeys(("memory", "ledger"), "ZeroDivisionError: on purpose")


# Configuration


def test_a_good_site_is_green_and_exit_code_0(site, tmp_path):
    lines = doctor("--node-config", site(), "--config", 'data.test="federated" quantum.qubits=2')
    told = {name for name, line in lines.items() if line["status"] not in ("ok", "skipped")}
    assert told == ({"user"} if os.geteuid() == 0 else set())
    assert lines["data"]["found"].endswith(
        "40 rows (25 train, 5 validation, 10 test), columns; 2 classes, 12 training rows in the smallest"
    )
    assert "2 qubits" in lines["backend exact"]["found"]
    assert not (tmp_path / "node").exists()  # a look changes nothing


def test_wrong_configurations_are_red_with_every_problem_and_the_machine_is_still_checked():
    lines = doctor("--node-config", 'sit="lab" x', "-c", 'quantum.layer=4 data.classes="a"', code=1)
    assert "did you mean quantum.layers" in lines["run config"]["found"]
    assert "data.classes" in lines["run config"]["found"]
    assert "got 'x'" in lines["node config"]["found"]
    assert lines["the rest"]["status"] == "skipped"
    assert lines["memory"]["status"] == lines["Python"]["status"] == "ok"


def test_without_a_data_path_it_says_that_this_is_a_simulated_site(tmp_path):
    lines = doctor("--node-config", f'folder="{tmp_path}"')
    assert lines["node config"]["status"] == "warn"
    assert lines["data"]["found"].startswith("breast-cancer: ")


# Rows


@pytest.mark.parametrize(("where", "classes"), [("cell", "0,1"), ("label", "x,y")])
def test_no_row_value_or_label_is_shown(tmp_path, where, classes):
    secret = "patient-Meier"
    labels, cell = (["0", "1", secret] * 9, int) if where == "label" else (["0", "1"] * 9, lambda n: secret if n else n)
    rows = write_rows(tmp_path / "rows.csv", labels, cell)
    node = f'site="a" data-path="{rows}" folder="{tmp_path}"'
    result = CliRunner().invoke(app, ["doctor", "--node-config", node, "-c", f'data.classes="{classes}"'])
    assert result.exit_code == 1
    assert "DataError" in result.output
    assert "not shown" in result.output
    assert secret not in result.output


def test_few_rows_are_told(tmp_path):
    rows = write_rows(tmp_path / "rows.csv", ["0", "1"])
    line = doctor("--node-config", f'site="a" data-path="{rows}" folder="{tmp_path}"')["data"]
    assert line["status"] == "warn"
    assert "data.min-rows=5" in line["advice"]


def test_a_missing_file_is_red_and_the_backend_is_still_tried(tmp_path):
    node = f'site="a" data-path="{tmp_path / "none.csv"}" folder="{tmp_path}"'
    lines = doctor("--node-config", node, code=1)
    assert "no such file" in lines["data"]["found"]
    assert lines["backend exact"]["status"] == "ok"


def test_a_readout_that_cannot_tell_the_classes_apart_is_red(tmp_path):
    rows = write_rows(tmp_path / "rows.csv", ["0", "1", "2"] * 12)
    node = f'site="a" data-path="{rows}" folder="{tmp_path}"'
    assert "parity" in doctor("--node-config", node, "-c", 'quantum.readout="parity"', code=1)["circuit"]["found"]


# Backends


@pytest.mark.parametrize("backend", ["aer", "aer-FakeManilaV2", "ibm-local:FakeManilaV2"])
def test_one_circuit_runs_on_every_simulator(site, backend):
    lines = doctor("--node-config", site(f'backend="{backend}"'), "-c", "quantum.shots=16")
    assert lines[f"backend {backend}"]["status"] == "ok"
    assert "4 qubits" in lines[f"backend {backend}"]["found"]
    assert lines["extra aer"]["status"] == "ok"


@pytest.mark.parametrize(
    ("module", "backend", "line", "options"),
    [
        ("qiskit_aer", "aer", "backend aer", []),
        ("qiskit_ibm_runtime", "aer-FakeManilaV2", "backend aer-FakeManilaV2", []),
        ("qiskit_ibm_runtime", "ibm:loop_ideal", "IBM account", []),
        ("qiskit_ibm_runtime", "ibm:loop_ideal", "IBM account", ["--offline"]),
    ],
)
def test_a_package_that_cannot_be_imported_is_a_red_line(site, monkeypatch, module, backend, line, options):
    monkeypatch.delenv("QISKIT_IBM_TOKEN", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    found = doctor("--node-config", site(f'backend="{backend}"'), *options, code=1)[line]
    assert found["status"] == "fail"
    assert "extra" in found["advice"] + found["found"]


def test_unknown_and_narrow_devices_are_red_and_scoring_is_tried_too(site):
    own = 'backend="aer-FakeMannilaV2" evaluation-backend="aer-FakeManilaV2"'
    lines = doctor("--node-config", site(own), "-c", "quantum.qubits=6", code=1)
    assert "FakeManilaV2" in lines["backend aer-FakeMannilaV2"]["advice"]
    assert "6 qubits, FakeManilaV2 has 5" in lines["backend aer-FakeManilaV2"]["found"]


# Packages


def without(monkeypatch, *names, **other):
    real = metadata.version

    def version(name):
        if name in names:
            raise metadata.PackageNotFoundError(name)
        return other.get(name) or real(name)

    monkeypatch.setattr(metadata, "version", version)


def test_an_extra_is_red_only_where_the_backend_needs_it(monkeypatch, site):
    without(monkeypatch, "qiskit-aer")
    lines = doctor("--node-config", site())
    assert lines["extra aer"]["status"] == "skipped"
    assert "qiskit-aer is missing" in lines["extra aer"]["found"]
    lines = doctor("--node-config", site('backend="aer"'), code=1)
    assert lines["extra aer"]["status"] == "fail"
    assert "pip install '.[aer]'" in lines["extra aer"]["advice"]


def test_the_language_extra_is_red_only_where_rows_become_numbers_by_the_model(monkeypatch, site, tmp_path):
    without(monkeypatch, "torch", "gguf")  # gguf is for the server

    def line(node, config, code=0):
        return doctor("--node-config", node, "-c", config, code=code)["extra language"]

    assert line(site(), 'language.model="none"')["status"] == "skipped"
    assert line(site('language="no"'), 'language.model="tiny"')["status"] == "skipped"
    told = line(site(), 'language.model="tiny"')
    assert told["status"] == "warn"
    assert "(torch is missing): this site will train the QNN" in told["found"]
    texts = tmp_path / "texts.csv"
    texts.write_text("text,label\n" + "a good day,0\na bad day,1\n" * 20)
    node = f'site="a" data-path="{texts}" folder="{tmp_path}"'
    config = 'language.model="tiny" language.dtype="float32" data.encoding="language"'
    assert line(node, config, code=1)["status"] == "fail"
    assert doctor("--node-config", node, "-c", config, code=1)["data"]["status"] == "ok"


def test_a_base_package_of_another_version_is_red_and_an_untested_one_is_told(monkeypatch):
    without(monkeypatch, numpy="1.26.4", scipy="99.0")
    lines = {check.name: check for check in packages.check_packages(None)}
    assert lines["packages"].status == "fail"
    assert lines["packages"].found == "numpy 1.26.4, expected >=2.0"
    assert lines["versions"].status == "warn"
    assert "scipy 99.0" in lines["versions"].found


def test_without_a_checkout_the_distribution_itself_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(packages, "_checkout", lambda: None)
    asked = ["numpy>=2.0", "qiskit-aer>=0.17; extra == 'aer'", "qiskit-ibm-runtime>=0.51; extra == 'ibm'"]
    monkeypatch.setattr(metadata, "requires", lambda _: asked)
    wanted = packages.wanted_packages()
    assert wanted[packages.BASE] == [Requirement("numpy>=2.0")]
    assert {extra: [item.name for item in items] for extra, items in wanted.items() if extra} == {
        "aer": ["qiskit-aer"],
        "ibm": ["qiskit-ibm-runtime"],
    }
    assert packages.check_packages(None)[-1].status == "skipped"


# The machine


def test_disk_is_tried_by_writing_and_left_as_it_was(tmp_path, monkeypatch):
    assert machine.check_disk(tmp_path / "not" / "yet").status == "ok"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert machine.check_disk(tmp_path / "file").status == "fail"
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    check = machine.check_disk(tmp_path)
    assert (check.status, "Input/output error" in check.found) == ("fail", True)


@pytest.mark.parametrize(("free", "status"), [(50 * 2**20, "fail"), (500 * 2**20, "warn"), (2**31, "ok")])
def test_little_room_is_told(tmp_path, monkeypatch, free, status):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: machine.shutil._ntuple_diskusage(2**40, 0, free))
    assert machine.check_disk(tmp_path).status == status


def test_memory_that_the_state_vector_does_not_fit_in_is_red(monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda: (2 * 2**30, 4 * 2**30))
    node, _ = run.read_node("", ["quantum.qubits=28"])
    assert machine.check_memory(None).status == "ok"
    check = machine.check_memory(node)
    assert (check.status, "28 qubits takes 12.0 GiB" in check.found) == ("fail", True)


class _Health(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" and self.server.healthy else 404)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(("healthy", "status"), [(True, "ok"), (False, "warn")])
def test_a_superlink_that_answers_and_something_else_at_its_port(healthy, status):
    with HTTPServer(("127.0.0.1", 0), _Health) as server:
        server.healthy = healthy
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        check = machine.check_superlink(f"127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()
    assert check.status == status


def test_a_superlink_that_is_not_there_or_not_an_address():
    with HTTPServer(("127.0.0.1", 0), _Health) as server:
        port = server.server_port
    check = machine.check_superlink(f"127.0.0.1:{port}")
    assert (check.status, "cannot be reached" in check.found) == ("fail", True)
    with pytest.raises(ConfigError, match="host:port"):
        machine.check_superlink("127.0.0.1")


# IBM Quantum, by its real client, on the loopback service


def ibm_lines(site, more="", config="quantum.shots=16 training.steps=1", device="loop_ideal", code=0, options=()):
    node = site(f'backend="ibm:{device}" {more}')
    return doctor("--node-config", node, "-c", config, *options, code=code)


def test_account_device_and_cost_are_green(loopback, site):
    lines = ibm_lines(site, "qpu-seconds=5000")
    assert lines["IBM account"]["found"] == "QISKIT_IBM_TOKEN is accepted"
    assert lines["ibm:loop_ideal"]["found"] == "loop_ideal, 5 qubits, 1 jobs in its queue"
    # 34 of 40 rows train, each at 2 * 36 + 1 points of one basis
    rows = int(lines["data"]["found"].partition(" train")[0].rpartition("(")[2])
    assert (
        f"over {rows} rows: 1 job(s) for {73 * rows} points, {73 * rows * 16} exec"
        in lines["cost on ibm:loop_ideal"]["found"]
    )
    assert lines["QPU budget"]["found"].endswith("5000.0 s left")
    assert lines["QPU budget"]["status"] == "ok"


def test_wrong_token_is_red_and_never_shown(loopback, site, monkeypatch):
    monkeypatch.setenv("QISKIT_IBM_TOKEN", "wrong-token")
    lines = ibm_lines(site, code=1)
    assert lines["IBM account"]["status"] == "fail"
    assert "CredentialsError" in lines["IBM account"]["found"]
    assert "check the network" in lines["IBM account"]["advice"]
    assert lines["ibm:loop_ideal"]["status"] == "skipped"
    assert "wrong-token" not in json.dumps(lines)


def test_a_token_is_never_shown(loopback, site):
    assert TOKEN not in json.dumps(ibm_lines(site))


def test_unknown_device_and_too_wide_a_circuit_are_red(loopback, site):
    unknown = ibm_lines(site, device="loop_nowhere", code=1)
    assert "loop_nowhere" in unknown["ibm:loop_nowhere"]["found"]
    assert unknown["IBM account"]["status"] == "ok"
    wide = ibm_lines(site, config="quantum.qubits=6", code=1)
    assert "6 qubits, loop_ideal has 5" in wide["ibm:loop_ideal"]["found"]
    assert "lower quantum.qubits" in wide["ibm:loop_ideal"]["advice"]


def test_over_budget_is_red_with_the_sum_and_a_round_over_it_is_told(loopback, site):
    over = ibm_lines(site, "qpu-seconds=1", code=1)
    assert over["ibm:loop_ideal"]["status"] == "ok"
    assert "BudgetError" in over["cost on ibm:loop_ideal"]["found"]
    assert "more than 1.0 s" in over["cost on ibm:loop_ideal"]["found"]
    assert over["QPU budget"]["status"] == "warn"
    told = ibm_lines(site, "qpu-seconds=5000", config="quantum.shots=16 training.steps=100 quantum.qpu-seconds=60")
    assert told["cost on ibm:loop_ideal"]["status"] == "warn"
    assert "100 of these a round: QPU budget of the run" in told["cost on ibm:loop_ideal"]["found"]


def test_a_device_for_scoring_alone_costs_what_scoring_costs(loopback, site):
    lines = doctor("--node-config", site("qpu-seconds=5000"), "-c",
                   'quantum.evaluation-backend="ibm:loop_ideal" quantum.shots=16')  # fmt: skip
    assert "validation rows once" in lines["cost on ibm:loop_ideal"]["found"]
    assert lines["backend exact"]["status"] == "ok"


def test_offline_asks_nobody_and_still_looks_for_an_account(loopback, site, monkeypatch, tmp_path):
    lines = ibm_lines(site, options=["--offline", "--superlink", "127.0.0.1:1"])
    assert lines["ibm:loop_ideal"]["status"] == lines["SuperLink"]["status"] == "skipped"
    assert lines["IBM account"]["status"] == "ok"
    monkeypatch.setenv("LLM_QFL_IBM_TOKEN_FILE", str(tmp_path / "none"))
    assert "cannot read the file" in ibm_lines(site, options=["--offline"], code=1)["IBM account"]["found"]
    monkeypatch.delenv("LLM_QFL_IBM_TOKEN_FILE")
    monkeypatch.delenv("QISKIT_IBM_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))  # nothing is saved there
    monkeypatch.setenv("LLM_QFL_IBM_ACCOUNT", "nobody")
    assert "nobody" in ibm_lines(site, options=["--offline"], code=1)["IBM account"]["found"]
    assert loopback.requests == []


def test_a_damaged_ledger_is_red_and_a_failed_job_is_told(site, tmp_path, monkeypatch):
    service = LoopbackService()
    for name, value in service.environment().items():
        monkeypatch.setenv(name, value)
    with service.running():
        service.fail_next = "Error code 8011; device broke"
        one = IbmRunner("ibm:loop_ideal", tmp_path / "node", options=IbmOptions(shots=16, resilience_level=0))
        with pytest.raises(Exception, match="not replaced"):
            one.expectations(STEP, small_work())
    lines = doctor("--node-config", site())
    assert lines["ledger"]["status"] == "warn"
    assert "1 failed; 1 ended without a result" in lines["ledger"]["found"]
    assert "--again KEY" in lines["ledger"]["advice"]
    (path,) = (tmp_path / "node" / "jobs").glob("*.json")
    path.write_bytes(path.read_bytes().replace(b'"failed"', b'"intent"'))
    lines = doctor("--node-config", site(), code=1)
    assert "damaged" in lines["ledger"]["found"]
    assert lines["QPU budget"]["status"] == "fail"


# The screen


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_says_in_words_what_colours_say(width, capsys):
    checks = [Check("a", "ok", "fine"), Check("b", "fail", "broken " * 20, "mend it"), Check("c", "warn", "hm", "look"),
              Check("d", "skipped", "no need", "not said")]  # fmt: skip
    run.show(checks, Console(width=width))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= width
    for word in ("FAIL  b", "WARN  c", "to do: mend it", "to do: look", "1 failed, 1 to look at, 1 ok"):
        assert word in text
    assert "not said" not in text

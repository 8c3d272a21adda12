"""The page: every section, nothing from outside, nothing unescaped, and honest when numbers are missing."""

import json
import re
from html.parser import HTMLParser

import pytest
from scipy.stats import norm

from llm_qfl.federation.errors import RunFolderError
from llm_qfl.quantum.drawing import load_circuit, read_gate
from server_app.report import read_run, write_report
from server_app.report.charts import nice_ticks
from server_app.report.circuit import draw
from server_app.report.headline import verdict
from server_app.report.intervals import difference, wilson
from server_app.report.page import SECTIONS

VOID = {"meta", "br", "input", "link", "img"}
EVIL = "<script>alert(1)</script>\"'&"


class Strict(HTMLParser):
    """Collects tags and text; fails on tags that do not match."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(path):
    parser = Strict()
    parser.feed(path.read_text(encoding="utf-8"))
    assert not parser.open
    return parser


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_the_page_has_every_section_and_loads_nothing(run_folder, tmp_path):
    page = write_report(run_folder(tmp_path / "run"))
    parsed = parse(page)
    text = page.read_text(encoding="utf-8")
    anchors = [value for name, value in parsed.attributes if name == "id"]
    assert anchors == [anchor for anchor, _, _ in SECTIONS]
    assert not {"link", "img", "iframe", "object"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name in ("src", "onload", "onclick")]
    assert not re.search(r"url\(|@import|https?://", text)
    assert all(value.startswith("#") for name, value in parsed.attributes if name == "href")
    assert page.stat().st_size < 200_000
    assert not list(tmp_path.rglob("*.partial"))


def test_numbers_of_the_summary_are_on_the_page(run_folder, tmp_path):
    text = " ".join(parse(write_report(run_folder(tmp_path / "run"))).text)
    for part in ("138 of 143 right", "0.965", "0.972", "0.951", "0.098", "ln 2 = 0.693", "5f5f5f", "reuploading"):
        assert part in text
    assert "flwr run . --stream" in text
    assert "llm-qfl predict runs/run data.csv" in text


@pytest.mark.parametrize("where", ["site", "reason", "class", "dataset", "config"])
def test_text_from_outside_is_escaped(where, run_folder, tmp_path):
    names = [EVIL, "b", "c", "d"] if where == "site" else None
    folder = run_folder(
        tmp_path / "run",
        names=names,
        classes=(EVIL, "other") if where == "class" else ("0", "1"),
        rejected={2: {"site-0001": EVIL}} if where == "reason" else None,
        config={"data.source": f"csv:{EVIL}"} if where in ("dataset", "config") else None,
    )
    page = write_report(folder)
    assert EVIL not in page.read_text(encoding="utf-8")
    parsed = parse(page)
    assert parsed.tags.count("script") == 1
    assert any("<script>alert(1)" in text for text in parsed.text)  # shown, as text
    assert not [name for name, _ in parsed.attributes if name.startswith("alert")]


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_short_run(rounds, run_folder, tmp_path):
    parse(write_report(run_folder(tmp_path / "run", rounds=rounds, sites=1)))


def test_no_accepted_reply(run_folder, tmp_path):
    text = " ".join(parse(write_report(run_folder(tmp_path / "run", accept=False, rounds=3))).text)
    assert "0 of 12 replies" in text
    assert "Below quorum" in text
    assert "rounds 1-3" in text


def test_no_validation_rows(run_folder, tmp_path):
    text = " ".join(parse(write_report(run_folder(tmp_path / "run", validation=False))).text)
    assert "nobody holds validation rows" in text


def test_a_thousand_sites_of_ten_classes_fit_into_a_megabyte(run_folder, tmp_path):
    folder = run_folder(tmp_path / "run", sites=1000, rounds=10, classes=tuple("0123456789"))
    page = write_report(folder)
    parsed = parse(page)
    assert page.stat().st_size < 1_000_000
    assert "5% to 95% of the sites" in " ".join(parsed.text)
    assert parsed.tags.count("svg") < 20


def test_unknown_numbers_are_dashes_not_zeros(run_folder, tmp_path):
    folder = run_folder(tmp_path / "run")

    def forget(summary):
        summary.update(test_loss=None, test_balanced_accuracy=None, evaluations=None, seconds=None)

    edit(folder / "summary.json", forget)
    text = " ".join(parse(write_report(folder)).text)
    assert "\N{EN DASH}" in text
    assert "None" not in text


def test_without_the_number_of_test_rows_no_interval_is_made_up(run_folder, tmp_path):
    folder = run_folder(tmp_path / "run")
    edit(folder / "summary.json", lambda summary: summary.pop("test_rows"))
    text = " ".join(parse(write_report(folder)).text)
    assert "number unknown" in text
    assert "Wilson intervals" not in text


def test_a_run_that_failed_before_its_first_round(tmp_path):
    summary = {"run_id": "r", "status": "failed", "stop_reason": "no node came", "dataset": "digits", "baselines": {}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    text = " ".join(parse(write_report(tmp_path)).text)
    assert "no node came" in text
    assert "no test score" in text


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(RunFolderError, match=r"summary\.json: expected a run folder"):
        write_report(tmp_path)


def test_a_damaged_ledger(run_folder, tmp_path):
    folder = run_folder(tmp_path / "run")
    (folder / "rounds.jsonl").write_text("{")
    with pytest.raises(RunFolderError, match=r"rounds\.jsonl"):
        write_report(folder)


def test_federated_validation_scores_the_vector_sent(run_folder, tmp_path):
    run = read_run(run_folder(tmp_path / "run", rounds=3))
    curve = run.curve("qnn", "loss")
    assert [x for x, _ in curve] == [0, 1, 2, 3]
    assert curve[-1][1] == run.summary["validation_loss"]
    server = read_run(run_folder(tmp_path / "server", rounds=3, config={"data.validation": "server"}))
    assert [x for x, _ in server.curve("qnn", "loss")] == [1, 2, 3]


def test_wilson_interval_against_its_formula():
    k, n, z = 138, 143, norm.ppf(0.975)
    p = k / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    assert wilson(k, n) == pytest.approx((middle - half, middle + half), abs=1e-12)
    assert wilson(5, 5)[1] == pytest.approx(1.0)


def test_difference_interval_against_newcombes_example():
    # Newcombe (1998), table II, example (a), method 10: 56/70 against 48/80 gives .0524 to .3339; equal rows here, so
    # the published value for 9/10 against 3/10, example (e): .1705 to .8090.
    assert difference(9, 3, 10) == pytest.approx((0.1705, 0.8090), abs=5e-5)


def test_the_verdict_says_no_more_than_the_rows_bear():
    level = verdict({"qnn": 138, "logistic": 139, "mlp": 136}, 143)
    assert "cannot be told apart in accuracy from logistic regression" in level
    better = verdict({"qnn": 9500, "logistic": 9000, "mlp": 9800}, 10000)
    assert "is more accurate than logistic regression (+0.050)" in better
    assert "is less accurate than the small neural network (\N{MINUS SIGN}0.030)" in better
    assert "unknown" in verdict({"qnn": 0}, 0)


def test_ticks_cover_the_range():
    assert nice_ticks(0, 0.69) == [0, 0.2, 0.4, 0.6, 0.8]
    assert nice_ticks(3, 3) == [3]


def test_the_drawing_tells_data_from_weights(run_folder, tmp_path):
    folder = run_folder(tmp_path / "run")
    circuit = load_circuit(folder / "model" / "circuit.qpy")
    gates = [read_gate(circuit, item) for item in circuit.data]
    kinds = [gate.kind for gate in gates]
    assert (kinds.count("mixed"), kinds.count("weight"), kinds.count("fixed")) == (12, 24, 12)
    drawn = draw(circuit.num_qubits, gates, "words")
    assert drawn.count('class="target"') == 12
    assert drawn.count('class="gate g-mixed"') == 12


@pytest.mark.parametrize("name", ["zz-real-amplitudes", "qcnn"])
def test_the_other_circuits_are_drawn(name, tmp_path):
    from qiskit import qpy

    from llm_qfl.federation.config import QuantumConfig
    from llm_qfl.quantum.circuits import build_circuit

    made = build_circuit(QuantumConfig(circuit=name), 2)
    with open(tmp_path / "circuit.qpy", "wb") as file:
        qpy.dump(made.circuit, file)
    circuit = load_circuit(tmp_path / "circuit.qpy")
    gates = [gate for item in circuit.data if (gate := read_gate(circuit, item)) is not None]
    assert {"data", "weight"} <= {gate.kind for gate in gates}
    # A trained gate of the drawing is a gate that the budget counts.
    assert sum(gate.kind in ("weight", "mixed") for gate in gates) == made.gates
    assert draw(circuit.num_qubits, gates, "words").startswith("<svg")


@pytest.mark.parametrize("data", [b"", b"no", b"nothing at all", b"QISKIT\x0dxx"])
def test_not_a_circuit(data, tmp_path):
    (tmp_path / "circuit.qpy").write_bytes(data)
    with pytest.raises(RunFolderError, match="not a circuit"):
        load_circuit(tmp_path / "circuit.qpy")


def with_late(folder, **config):
    """Site 1 answers round 1 in round 3; nothing else is changed."""
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for line in lines:
        line.update(late=[], busy=[], entered=[])
        for client in line["clients"]:
            client.update(backend="exact", jobs=0, qpu_seconds=0.0, queue_seconds=0.0)
    late = {**lines[0]["clients"].pop(1), "backend": "ibm:ibm_fez", "shots": 20480, "jobs": 3}
    del lines[1]["clients"][1], lines[2]["clients"][1]
    late.update(qpu_seconds=12.5, queue_seconds=5400.0, of_round=1, lag=2)
    lines[2].update(late=[late], entered=[{"site": "site-0001", "of_round": 1, "factor": 0.25}])
    for line in lines[1:3]:
        line["busy"] = ["site-0001"]
        line["plan"]["sites"].remove("site-0001")
    if config.get("late") == "dropped":
        lines[2]["entered"] = []
        edit(folder / "config.json", lambda about: about["config"].update({"server.late": "dropped"}))
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    ("late", "became"),
    [("weighted", "in the average of round 3, \N{MULTIPLICATION SIGN} 0.25"), ("dropped", "dropped")],
)
def test_late_and_busy_sites_and_what_hardware_cost(late, became, run_folder, tmp_path):
    text = " ".join(parse(write_report(with_late(run_folder(tmp_path / "run", rounds=4), late=late))).text)
    assert "13 of 14 replies asked for were accepted in time, 1 late" in text
    assert became in text
    assert "Busy sites" in text
    assert "rounds 2-3" in text
    assert "1 + 1 late" in text
    assert "3/3 + 1 late" in text
    for part in ("ibm:ibm_fez", "20,480 shots", "3 jobs on IBM Quantum", "12.5 s", "90.0 min"):
        assert part in text


def test_scoring_after_the_last_round_is_in_the_sums_of_its_site(run_folder, tmp_path):
    folder = with_late(run_folder(tmp_path / "run", rounds=4))
    scoring = {"site": "site-0001", "backend": "ibm:ibm_fez", "shots": 1, "jobs": 1, "qpu_seconds": 7.5}
    server = {"site": "server", "backend": "aer", "shots": 777, "jobs": 0, "qpu_seconds": 0.0, "queue_seconds": 0.0}
    edit(folder / "summary.json", lambda summary: summary.update(scoring=[{**scoring, "queue_seconds": 0.0}, server]))
    text = " ".join(parse(write_report(folder)).text)
    for part in ("21,258 shots", "20,481", "4 jobs on IBM Quantum", "20.0 s", "server", "777"):
        assert part in text


def test_an_exact_run_with_nobody_late_says_nothing_of_jobs(run_folder, tmp_path):
    text = " ".join(parse(write_report(run_folder(tmp_path / "run"))).text)
    assert "Queue time" not in text
    assert "Busy sites" not in text


def test_a_wait_in_vain_is_not_called_below_quorum(run_folder, tmp_path):
    folder = run_folder(tmp_path / "run", rounds=2)
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    lines[1].update(aggregated=False, busy=["site-0001"], late=[], entered=[], clients=[], validation=None)
    lines[1]["plan"]["sites"] = []
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = " ".join(parse(write_report(folder)).text)
    assert "No site was free" in text
    assert "Below quorum" not in text


def with_newcomer(folder, name="delta"):
    """The last site of a made-up run came after round 2: it is in no census."""
    edit(folder / "config.json", lambda about: about["sites"].pop())
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for line in lines:
        line["joined"] = [name] if line["round"] == 3 else []
        if line["round"] < 3:
            line["clients"].pop()
            line["plan"]["sites"].pop()
        else:
            line["clients"][-1] |= {"site": name, "backend": "aer", "shots": 77}
            line["plan"]["sites"][-1] = name
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    edit(folder / "summary.json", lambda summary: summary.update(joined=[name]))
    return folder


def test_a_site_that_joined_is_on_the_page_with_its_round_and_its_curve(run_folder, tmp_path):
    parsed = parse(write_report(with_newcomer(run_folder(tmp_path / "run", rounds=6), EVIL)))
    text = " ".join(parsed.text)
    assert f"Joined after the run had begun: {EVIL} (round 3)" in text
    assert f"{EVIL}: received" in " ".join(value for name, value in parsed.attributes if name == "aria-label")
    assert "4 replies, loss" in text  # its panel
    assert "308" in text  # its shots, in the table of backends: 4 replies of 77
    assert EVIL not in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("status", "where"), [("finished", "summary.json"), ("failed", "config.json")])
def test_interruptions_are_told(status, where, run_folder, tmp_path):
    folder = run_folder(tmp_path / "run", rounds=6)
    edit(folder / where, lambda value: value.update(resumed_after=[0, 2, 2]))
    edit(folder / "summary.json", lambda summary: summary.update(status=status))
    text = " ".join(parse(write_report(folder)).text)
    assert "Interrupted, and went on: before round 1 had closed, twice after round 2." in text


def test_a_run_that_nobody_joined_or_interrupted_says_nothing_of_it(run_folder, tmp_path):
    folder = run_folder(tmp_path / "run")
    edit(folder / "summary.json", lambda summary: summary.update(resumed_after=[], joined=[]))
    text = " ".join(parse(write_report(folder)).text)
    assert "Interrupted" not in text
    assert "Joined" not in text


def test_the_files_that_there_are_are_named_with_what_they_hold(run_folder, tmp_path):
    folder = run_folder(tmp_path / "run")
    text = " ".join(parse(write_report(folder)).text)
    assert "rounds.jsonl" in text
    assert "metrics.prom" not in text
    (folder / "metrics.prom").write_text("llm_qfl_sites 4\n")
    text = " ".join(parse(write_report(folder)).text)
    assert "metrics.prom" in text
    assert "Prometheus" in text

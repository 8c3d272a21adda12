"""One site computes exactly, one simulates a noisy device, one pays for jobs on IBM Quantum: they train together."""

import json

import pytest
from ibm_service.loopback import LoopbackService
from ibm_service.sites import costs_of, entries_of, rounds_of, service_in_environment, twice, work_of, write_sequences

from llm_qfl.cli.deploy_check import deploy

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(420)]

BACKENDS = {"alpha": "exact", "beta": "aer-FakeManilaV2", "gamma": "ibm:loop_manila"}
CONFIG = {
    "server.sites": 3,
    "language.model": "none",
    "server.rounds": 2,
    "server.deadline": 240.0,
    "data.test": "federated",
    "data.test-fraction": 0.2,
    "quantum.layers": 1,
    "training.steps": 4,
    "training.batch-size": 12,
    "training.learning-rate": 0.2,
}


def test_sites_of_all_kinds_train_together_and_the_report_shows_what_each_has_paid(checkout, check_run, tmp_path):
    name, files = write_sequences(tmp_path, list(BACKENDS), 300)
    nodes = [
        {"site": site, "data-path": str(files[site]), "backend": backend, "folder": str(tmp_path / f"node-{site}")}
        for site, backend in BACKENDS.items()
    ]
    with service_in_environment(LoopbackService(queue=0.4, runtime=0.1)) as service:
        folder = deploy(checkout, nodes, CONFIG)
    assert service.errors == []
    check_run(folder)

    # It trains.
    summary, lines = json.loads((folder / "summary.json").read_text()), rounds_of(folder)
    assert (summary["status"], summary["rounds"], summary["clients"]) == ("finished", 2, 3)
    assert [sorted(client["site"] for client in line["clients"]) for line in lines] == [list(BACKENDS)] * 2
    assert not any(line["rejected"] for line in lines)
    assert summary["validation_loss"] < lines[0]["validation"]["loss"] - 0.2, name
    assert summary["test_accuracy"] > 0.75, name  # two classes alike in number, 180 rows: chance stays below 0.61

    # What each site has paid is in the run folder, and it is what the service and the site's own ledger say.
    costs = costs_of(folder)
    assert {work["site"]: work["backend"] for work in work_of(folder)} == BACKENDS
    for site, spent in costs.items():
        paid = site == "gamma"
        assert (spent["shots"] > 0) == (site != "alpha")
        assert (spent["jobs"] > 0, spent["qpu_seconds"] > 0, spent["queue_seconds"] > 0) == (paid, paid, paid)
    entries = entries_of(tmp_path / "node-gamma")
    assert {entry.state for entry in entries} == {"done"}
    assert costs["gamma"]["jobs"] == len(entries) == len(service.jobs) == service.posts()
    assert twice(service) == 0
    assert costs["gamma"]["qpu_seconds"] == pytest.approx(2.0 * len(entries))  # what the service charges
    assert costs["gamma"]["queue_seconds"] >= 0.4 * len(entries) * 0.9
    assert (summary["jobs"], summary["shots"]) == (len(entries), sum(spent["shots"] for spent in costs.values()))

    # The report page has it in one table.
    page = (folder / "report.html").read_text(encoding="utf-8")
    (table,) = [part for part in page.split("<table")[1:] if "Queue time" in part.split("</table>")[0]]
    for site, backend in BACKENDS.items():
        assert site in table
        assert backend in table
    assert f"{costs['gamma']['shots']:,.0f}" in table
    assert f"{len(entries)} jobs on IBM Quantum" in page

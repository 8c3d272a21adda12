"""Whole federations with privacy: what leaves a site, what the summary says, what is refused."""

import json

import numpy as np
import pytest
from flwr.app import Message

from client_app.app import app as client_app
from llm_qfl.federation.config import RunConfig, default_run_config
from llm_qfl.federation.errors import ConfigError, FederationError
from llm_qfl.federation.privacy.releases import training_release
from llm_qfl.federation.records import Task, decode_census, encode_task
from server_app.privacy import CentralNoise, privacy_notes
from simulation.grid import InMemoryGrid
from simulation.run import run_federation

SITES = 3
BASE = {
    "language.model": "none",
    "data.partitioner": "iid",
    "data.classes": "malignant,benign",
    "data.test": "server",
    "data.validation": "server",
    "quantum.qubits": 2,
    "quantum.layers": 1,
    "server.rounds": 2,
    "training.steps": 2,
    "privacy.unit": "record",
    "privacy.ranges": "0:300",
}
# With three sites a usual epsilon leaves nothing of the feature map.
CLIENT = {"server.late": "dropped", "server.weighting": "uniform", "privacy.epsilon": 1000.0}


def run(folder, faults=None, node=None, output=None, **keys):
    nodes = [{"partition-id": n, "num-partitions": SITES, "folder": str(folder), **(node or {})} for n in range(SITES)]
    return run_federation({**BASE, **keys}, nodes=nodes, faults=faults, output=output)


def test_record_level_tells_what_is_covered_and_nothing_else(tmp_path):
    seen = []

    def look(task, reply):
        seen.append(reply.content)
        return reply

    made = run(tmp_path / "sites", {1: look}, output=tmp_path / "runs")
    census, *reports = seen
    assert len(reports) == 2  # no last exchange: nobody asks for scores
    for content in reports:
        assert list(content["arrays"]) == ["qnn/weights"]
        metrics = content["metrics"]
        assert not [key for key in metrics if "loss" in key and not key.endswith("loss-sum")]
        for key in ("received", "trained"):
            assert metrics[f"{key}-rows"] == metrics[f"{key}-correct"] == [0, 0]
            assert metrics[f"{key}-loss-sum"] == 0
    found = decode_census(census)
    dimension = len(found.columns)
    scatter = found.sums["scatter"]
    packed = np.zeros((dimension, dimension))
    packed[np.triu_indices(dimension)] = scatter
    assert np.count_nonzero(packed - np.diag(np.diagonal(packed))) == 0
    private = made.summary["privacy"]
    assert private["unit"] == "record"
    assert set(private["epsilon_by_site"]) == {"site-0000", "site-0001", "site-0002"}
    assert all(7 < epsilon <= 8 for epsilon in private["epsilon_by_site"].values())
    assert "one training row" in private["covers"]
    assert made.summary["baselines"] == {"logistic": None, "mlp": None}
    lines = [json.loads(line) for line in (made.folder / "rounds.jsonl").read_text().splitlines()]
    assert [client["train_loss_first"] for line in lines for client in line["clients"]] == [None] * 6
    assert set(lines[0]["updates"]) == {"site-0000", "site-0001", "site-0002"}
    page = (made.folder / "report.html").read_text()
    assert "one training row of a site" in page
    assert "Not covered" in page
    assert "Updates of every site" in page


def test_noise_is_not_the_seeds(tmp_path):
    one, two = run(tmp_path / "one"), run(tmp_path / "two")
    assert one.finished.opened.setup.digest() != two.finished.opened.setup.digest()
    assert np.abs(one.theta - two.theta).max() > 0


@pytest.mark.parametrize("unit", ["client-local", "client-central"])
def test_client_level_runs_and_says_that_the_sites_are_few(tmp_path, unit):
    made = run(tmp_path, **{"privacy.unit": unit, **CLIENT})
    private = made.summary["privacy"]
    assert "one site" in private["covers"]
    if unit == "client-local":
        assert len(private["epsilon_by_site"]) == SITES
        assert private["epsilon"] is None
    else:
        assert private["epsilon_by_site"] == {}
        assert 900 < private["epsilon"] <= 1000
    (note,) = privacy_notes(made.finished.opened.config, {f"site-{n}": 90 for n in range(SITES)})
    assert "below about 100" in note
    assert made.finished.rounds[0].aggregated


def test_central_noise_is_what_the_accountant_is_told(tmp_path):
    made = run(tmp_path, **{"privacy.unit": "client-central", **CLIENT})
    config, state = made.finished.opened.config, made.finished.state
    reports = made.finished.rounds[-1].reports
    noise = [CentralNoise(config).combine(state, reports, SITES).state.theta for _ in range(300)]
    spread = np.std(noise, axis=0).mean() * SITES
    assert spread == pytest.approx(training_release(config, 0, 1).noise * config.privacy.clip, rel=0.05)
    long = [r for r in reports if np.linalg.norm(r.theta - state.theta) > 0]
    assert long
    exact = sum(
        (r.theta - state.theta) * min(1, 1 / max(np.linalg.norm(r.theta - state.theta), 1e-12)) for r in reports
    )
    np.testing.assert_allclose(
        np.mean(noise, axis=0), state.theta + exact / SITES, atol=5 * spread / SITES / np.sqrt(300)
    )


def test_a_site_with_a_limit_takes_no_part_without_noise_and_stops_when_it_is_spent(tmp_path):
    plain = {"privacy.unit": "none", "privacy.ranges": "none"}
    with pytest.raises(FederationError, match="only with noise of its own"):
        run(tmp_path, node={"epsilon": 1.0}, **plain)
    with pytest.raises(FederationError, match="own limit over all runs"):
        run(tmp_path, node={"epsilon": 0.5})


def test_what_would_not_be_covered_is_refused_before_anything_starts():
    flat = {**default_run_config(), "privacy.unit": "record"}
    with pytest.raises(ConfigError) as error:
        RunConfig.from_run_config(flat)
    keys = {line.split(":")[0] for line in error.value.problems}
    assert keys == {"privacy.ranges", "data.classes", "data.validation", "language.model"}
    with pytest.raises(ConfigError) as error:
        RunConfig.from_run_config({**BASE, "privacy.unit": "client-central", "server.aggregation": "krum"})
    assert {line.split(":")[0] for line in error.value.problems} == {
        "server.late", "server.weighting", "server.aggregation",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="expected adam"):
        RunConfig.from_run_config({**BASE, "training.optimizer": "spsa"})
    for ranges in ("1:0", "0", "0:inf", "a:b", "0:1,"):
        with pytest.raises(ConfigError, match=r"privacy\.ranges"):
            RunConfig.from_run_config({**BASE, "privacy.ranges": ranges})


def test_scores_of_the_sites_rows_are_not_given(tmp_path):
    made = run(tmp_path)
    opened, state = made.finished.opened, made.finished.state
    flat = {**default_run_config(), **BASE}
    node = {"partition-id": 0, "num-partitions": SITES, "folder": str(tmp_path)}
    setup = opened.setup
    task = Task("site-0000", state, None, setup.to_json(), setup.digest(), opened.fingerprint)
    message = Message(encode_task(task), dst_node_id=1, message_type="evaluate")
    (reply,) = InMemoryGrid(client_app, {1: node}, flat).send_and_receive([message])
    assert reply.has_error()
    assert "not covered by privacy.unit" in reply.error.reason

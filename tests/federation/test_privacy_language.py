"""Whole federations in which sites are hidden, adapters too."""

import json

import numpy as np
import pytest

from llm_qfl.federation.config import RunConfig, default_run_config
from llm_qfl.federation.errors import ConfigError
from llm_qfl.federation.privacy.accountant import Release, epsilon_of
from llm_qfl.federation.privacy.releases import adapter_rounds, feature_release, training_release
from server_app.privacy import CentralNoise
from simulation.run import run_federation

SITES = 3
KEYS = {
    "data.partitioner": "iid",
    "data.classes": "malignant,benign",
    "data.test": "server",
    "data.validation": "server",
    "quantum.qubits": 2,
    "quantum.layers": 1,
    "server.rounds": 3,
    "server.late": "dropped",
    "server.weighting": "uniform",
    "training.steps": 1,
    "privacy.ranges": "0:300",
    "privacy.epsilon": 1000.0,
    "privacy.adapter-clip": 0.5,
    "language.model": "tiny-4",
    "language.adapter-layers": 1,
    "language.beta": 0.0,
    "language.align-first": 0,
    "language.every": 2,
    "language.steps": 1,
    "language.batch-size": 4,
    "language.public-rows": 4,
    "language.rank": 2,
    "language.dtype": "float32",
    "language.device": "cpu",
}


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["client-local", "client-central"])
def test_sites_are_hidden_in_both_models(tmp_path, unit):
    seen = []
    nodes = [{"partition-id": n, "num-partitions": SITES, "folder": str(tmp_path / f"{n}")} for n in range(SITES)]

    def look(task, reply):
        seen.append(reply.content)
        return reply

    made = run_federation({**KEYS, "privacy.unit": unit}, nodes=nodes, faults={1: look}, output=tmp_path / "runs")
    config = made.finished.opened.config
    assert adapter_rounds(config) == 2  # rounds 1 and 3
    releases = [feature_release(config), Release(training_release(config, 0, 1).noise, 1.0, 3 + 2)]
    expected = epsilon_of(releases, config.privacy.delta)
    assert 990 < expected <= 1000
    private = made.summary["privacy"]
    if unit == "client-central":
        assert private["epsilon"] == pytest.approx(expected)
    else:
        assert private["epsilon_by_site"] == {f"site-000{n}": pytest.approx(expected) for n in range(SITES)}
        ledger = next((tmp_path / "0" / "privacy").glob("*/ledger.jsonl"))
        assert len(ledger.read_text().splitlines()) == 1 + 3 + 2
    assert "adapter" in private["covers"]
    assert made.finished.rounds[0].language.aggregated
    metrics = [content["language-metrics"] for content in seen if "language-metrics" in content]
    assert len(metrics) == 2
    for one in metrics:
        assert not [key for key in one if "loss" in key and not key.endswith("loss-sum")]
        assert one["received-loss-sum"] == one["trained-loss-sum"] == 0
        assert one["received-rows"] == one["trained-correct"] == [0, 0]
    lines = [json.loads(line) for line in (made.folder / "rounds.jsonl").read_text().splitlines()]
    assert {one["train_loss_first"] for one in lines[0]["language"]["answers"]} == {None}
    page = (made.folder / "report.html").read_text()
    assert ("Updates of adapters" in page) == (unit == "client-local")  # else the server tells nobody
    assert made.summary["mode"] == "qfl"
    assert made.summary["language"]["test"]["adap-fu"]["plain"]["rows"] > 0  # the server's own rows


def test_the_servers_noise_is_what_the_accountant_is_told():
    config = RunConfig.from_run_config({**KEYS, "privacy.unit": "client-central"})
    updates = [np.full(4000, 0.001), np.full(4000, 1.0)]  # of length .063 and 63
    clip, noise = config.privacy.adapter_clip, training_release(config, 0, 1).noise
    change = CentralNoise(config).adapter(1, "digest", updates, planned=5)
    expected = (updates[0] + updates[1] * clip / np.linalg.norm(updates[1])) / 5
    rest = change - expected
    assert rest.std() == pytest.approx(noise * clip / 5, rel=0.05)
    assert abs(rest.mean()) < 4 * noise * clip / 5 / np.sqrt(len(rest))
    assert not np.array_equal(change, CentralNoise(config).adapter(1, "digest", updates, planned=5))


def test_more_releases_need_more_noise():
    config = RunConfig.from_run_config({**KEYS, "privacy.unit": "client-local"})
    alone = RunConfig.from_run_config({**KEYS, "privacy.unit": "client-local", "language.model": "none"})
    noise, without = (training_release(one, 0, 1).noise for one in (config, alone))
    shares = [epsilon_of([feature_release(c), Release(noise, 1.0, n)], 1e-5) for c, n in ((config, 5), (alone, 3))]
    assert noise > without
    assert shares[0] == pytest.approx(1000, rel=2e-3)
    assert shares[1] < 900


def test_what_an_adapter_would_leave_uncovered_is_refused():
    def problems(**keys):
        flat = {key.replace("__", ".").replace("_", "-"): value for key, value in keys.items()}
        with pytest.raises(ConfigError) as error:
            RunConfig.from_run_config({**default_run_config(), **KEYS, **flat})
        return {line.split(":")[0] for line in error.value.problems}

    assert problems(privacy__unit="record") == {"language.model"}
    client = {"privacy__unit": "client-local"}
    assert problems(**client, language__wire="int8") == {"language.wire"}
    assert problems(**client, language__method="local") == {"language.method"}
    assert problems(**client, agent__mode="llm-qfl-all") == {"agent.mode"}
    found = RunConfig.from_run_config({**default_run_config(), **KEYS, "privacy.unit": "client-local"})
    assert found.agent.mode == "qfl"

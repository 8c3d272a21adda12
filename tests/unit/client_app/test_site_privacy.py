"""A site's secret and ledger: what is charged, what is refused, what two equal questions get."""

import json
import stat

import numpy as np
import pytest

from client_app.privacy import SiteSecrets, require_privacy
from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.errors import PrivacyError
from llm_qfl.federation.privacy.accountant import epsilon_of
from llm_qfl.federation.privacy.releases import feature_release, training_release
from llm_qfl.federation.settings import NodeSettings
from llm_qfl.federation.types import GlobalState, RoundPlan, Rows

ROWS = Rows(np.arange(40.0).reshape(20, 2), np.arange(20) % 2)


def config(**keys):
    flat = {
        "language.model": "none",
        "data.classes": "a,b",
        "data.test": "server",
        "data.validation": "server",
        "privacy.unit": "record",
        "privacy.ranges": "0:1",
        "privacy.epsilon": 2.0,
        "server.rounds": 3,
        "training.steps": 2,
    }
    return RunConfig.from_run_config({**flat, **keys})


def site(folder, **node):
    settings = NodeSettings.from_node_config({"partition-id": 0, "folder": str(folder), **node})
    return SiteSecrets(settings, "clinic/a")


def task(number=1, theta=(0.0, 1.0)):
    return GlobalState(number, np.array(theta), ("a", "b")), RoundPlan(number, (), 7, 0.1)


def test_a_whole_run_spends_what_was_allowed_and_one_more_step_is_refused(tmp_path):
    here, run = site(tmp_path), config()
    here.census(run, ROWS)
    seen = [here.round(run, "run-1", *task(n), ROWS, 2).epsilon for n in (1, 2, 3)]
    assert seen == sorted(seen)
    assert 1.9 < seen[-1] <= 2.0
    releases = [feature_release(run), *[training_release(run, 20, 2)] * 3]
    assert seen[-1] == pytest.approx(epsilon_of(releases, 1e-5))
    with pytest.raises(PrivacyError, match="2 are allowed"):
        here.round(run, "run-1", *task(4), ROWS, 2)
    assert len((next(tmp_path.glob("privacy/*")) / "ledger.jsonl").read_text().splitlines()) == 4


def test_the_same_question_has_the_same_noise_and_costs_once(tmp_path):
    run = config()
    first = site(tmp_path).round(run, "run-1", *task(), ROWS, 2)
    again = site(tmp_path).round(run, "run-1", *task(), ROWS, 2)
    np.testing.assert_array_equal(first.noise.gaussian(4), again.noise.gaussian(4))
    assert first.epsilon == again.epsilon
    moved = Rows(ROWS.x + np.eye(20, 2), ROWS.y)
    others = [
        site(tmp_path).round(run, "run-1", *task(theta=(0.0, 1.1)), ROWS, 2),
        site(tmp_path).round(run, "run-1", *task(), moved, 2),
        site(tmp_path / "elsewhere").round(run, "run-1", *task(), ROWS, 2),
    ]
    drawn = site(tmp_path).round(run, "run-1", *task(), ROWS, 2).noise.gaussian(4)
    for other in others:
        assert np.abs(other.noise.gaussian(4) - drawn).min() > 0


def test_the_secret_is_the_owners_alone_and_no_seed_knows_it(tmp_path):
    here = site(tmp_path)
    here.census(config(), ROWS)
    (path,) = tmp_path.glob("privacy/*/secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o077 == 0
    assert len(path.read_bytes()) == 32
    other = tmp_path / "other"
    site(other).census(config(), ROWS)
    (second,) = other.glob("privacy/*/secret")
    assert second.read_bytes() != path.read_bytes()


def test_the_sites_own_limit_holds_over_all_runs(tmp_path):
    here, run = site(tmp_path, epsilon=2.1), config()
    for number in (1, 2, 3):
        here.round(run, "run-1", *task(number), ROWS, 2)
    with pytest.raises(PrivacyError, match="own limit"):
        here.round(run, "run-2", *task(1), ROWS, 2)


def test_a_site_with_a_limit_answers_no_run_without_noise_of_its_own():
    limited = NodeSettings.from_node_config({"partition-id": 0, "epsilon": 1})
    require_privacy(config(), limited)
    with pytest.raises(PrivacyError, match="only with noise of its own"):
        require_privacy(RunConfig(), limited)
    require_privacy(RunConfig(), NodeSettings.from_node_config({"partition-id": 0}))


def test_a_damaged_ledger_stops_the_site(tmp_path):
    here = site(tmp_path)
    here.census(config(), ROWS)
    (path,) = tmp_path.glob("privacy/*/ledger.jsonl")
    assert json.loads(path.read_text())["times"] == 1
    path.write_text('{"answer": "x"')
    with pytest.raises(PrivacyError, match="damaged"):
        here.census(config(), Rows(ROWS.x[:10], ROWS.y[:10]))

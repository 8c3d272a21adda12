"""The federation is real: what is sent arrives, what comes back counts, and nothing else does."""

import csv
import itertools

import numpy as np
import pytest

from client_app import round as client_round
from client_app.data import site_partition, site_rows
from client_app.round import SiteQNN
from llm_qfl.federation.aggregation import aggregate
from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.seeding import SERVER, stream
from llm_qfl.federation.settings import NodeSettings
from llm_qfl.federation.types import GlobalState, Partition, RoundPlan, Rows
from llm_qfl.quantum.model import get_model
from llm_qfl.quantum.training import round_budget, train
from server_app.rows import server_rows
from simulation.run import run_federation

SMALL = {"server.rounds": 2, "training.steps": 2, "quantum.layers": 1, "training.schedule": "constant"}


def config_of(**keys):
    return RunConfig.from_run_config({**SMALL, **keys})


def partitions(run, config, sites):
    settings = [NodeSettings.from_node_config({"partition-id": n, "num-partitions": sites}) for n in range(sites)]
    return {
        s.site: site_partition(config, s, s.site, run.finished.opened.setup, run.finished.opened.setup.digest())
        for s in settings
    }


@pytest.fixture(scope="module")
def run():
    return run_federation(SMALL, sites=3)


def state_before(run):
    opened = run.finished.opened
    seed = opened.config.server.seed
    theta = opened.model.initial_theta(stream(seed, SERVER, 0, "theta"))
    baselines = {n: b.initial(stream(seed, SERVER, 0, f"baseline/{n}")) for n, b in opened.baselines.items()}
    return GlobalState(1, theta, opened.model.parameter_names, baselines)


def test_the_first_evaluated_point_is_the_received_vector(run):
    opened, state = run.finished.opened, state_before(run)
    parts = partitions(run, opened.config, 3)
    for number, closed in enumerate(run.finished.rounds):
        if number:
            state = aggregate(state, run.finished.rounds[number - 1].reports)
        for report in closed.reports:
            rows = parts[report.site].train
            penalty = opened.config.training.l2 * float(state.theta @ state.theta)
            expected = opened.model.loss(state.theta, rows.x, rows.y) + penalty
            assert report.train_loss_first == pytest.approx(expected, abs=1e-12)


class Spy:
    """A model that remembers where it was evaluated."""

    def __init__(self, model):
        self.model, self.seen = model, []

    def __getattr__(self, name):
        found = getattr(self.model, name)
        if name not in ("loss", "loss_and_gradient"):
            return found

        def watched(theta, *args):
            self.seen.append(np.array(theta))
            return found(theta, *args)

        return watched


@pytest.mark.parametrize("optimizer", ["adam", "spsa", "cobyla"])
def test_every_optimizer_starts_where_it_is_told(optimizer):
    config = config_of(**{"training.optimizer": optimizer})
    model = get_model(config.quantum, 2)
    rng = np.random.default_rng(0)
    rows = Rows(rng.normal(size=(12, 4)), rng.integers(0, 2, 12))
    theta = rng.normal(size=model.num_parameters)
    spy = Spy(model)
    train(
        spy,
        rows,
        theta,
        config=config.training,
        budget=round_budget(model, config.training),
        learning_rate=0.1,
        rng=np.random.default_rng(1),
    )
    np.testing.assert_array_equal(spy.seen[0], theta)


def test_the_average_arrives_and_changes_what_clients_do(run):
    opened = run.finished.opened
    first, second = run.finished.rounds
    parts = partitions(run, opened.config, 3)
    averaged = aggregate(state_before(run), first.reports)
    plan = RoundPlan(2, tuple(parts), second.plan.budget, second.plan.learning_rate)
    for before, after in zip(first.reports, second.reports, strict=True):
        own = GlobalState(2, before.theta, averaged.parameter_names, before.baselines)
        from_average = client_round.local_round(
            GlobalState(2, averaged.theta, averaged.parameter_names, averaged.baselines),
            plan,
            parts[before.site],
            SiteQNN.of(opened.model),
            opened.baselines,
            opened.config,
        )
        from_own = client_round.local_round(
            own, plan, parts[before.site], SiteQNN.of(opened.model), opened.baselines, opened.config
        )
        np.testing.assert_array_equal(after.theta, from_average.theta)  # the average arrived, bit for bit
        assert np.abs(from_average.theta - from_own.theta).max() > 1e-3  # and it matters


def test_one_client_with_all_the_data_is_central_training():
    run = run_federation({**SMALL, "server.rounds": 1}, sites=1)
    opened, config = run.finished.opened, run.finished.opened.config
    rows = partitions(run, config, 1)["site-0000"].train
    theta = opened.model.initial_theta(stream(config.server.seed, SERVER, 0, "theta"))
    central = train(
        opened.model,
        rows,
        theta,
        config=config.training,
        budget=round_budget(opened.model, config.training),
        learning_rate=config.training.learning_rate,
        rng=stream(config.server.seed, "site-0000", 1, "qnn"),
    )
    np.testing.assert_array_equal(run.theta, central.theta)


def test_identical_clients_equal_one(run):
    opened = run.finished.opened
    part = partitions(run, opened.config, 3)["site-0000"]
    state, plan = state_before(run), run.finished.rounds[0].plan
    twins = [Partition(f"twin-{n}", part.train, part.validation, part.test) for n in range(5)]
    reports = [
        client_round.local_round(state, plan, twin, SiteQNN.of(opened.model), opened.baselines, opened.config)
        for twin in twins
    ]
    np.testing.assert_allclose(aggregate(state, reports).theta, reports[0].theta, rtol=0, atol=1e-15)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(run):
    again = run_federation(SMALL, sites=3)
    assert again.theta.tobytes() == run.theta.tobytes()
    assert [r.theta_digest for r in again.finished.rounds] == [r.theta_digest for r in run.finished.rounds]
    other = run_federation({**SMALL, "server.seed": 43}, sites=3)
    assert np.abs(other.theta - run.theta).max() > 1e-3


def test_shuffled_replies_give_the_same_bits(run, monkeypatch):
    from simulation.grid import InMemoryGrid

    pull = InMemoryGrid.pull_messages
    monkeypatch.setattr(InMemoryGrid, "pull_messages", lambda self, ids: list(reversed(list(pull(self, ids)))))
    again = run_federation(SMALL, sites=3)
    assert again.theta.tobytes() == run.theta.tobytes()
    assert again.summary["test_accuracy"] == run.summary["test_accuracy"]


def _write(path, rows, labels):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"f{n}" for n in range(rows.shape[1])), "label"])
        writer.writerows([*row, label] for row, label in zip(rows.tolist(), labels, strict=True))
    return str(path)


def test_permuted_labels_give_balanced_accuracy_at_chance(tmp_path):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(1200, 6))
    y = (x[:, 0] + x[:, 1] > 0).astype(int)
    keys = {**SMALL, "server.rounds": 5, "training.steps": 5, "data.partitioner": "iid"}
    real = run_federation({**keys, "data.source": f"csv:{_write(tmp_path / 'real.csv', x, y)}"}, sites=3)
    assert real.summary["test_balanced_accuracy"] > 0.8
    scores = []
    for seed in range(4):
        path = _write(tmp_path / f"{seed}.csv", x, np.random.default_rng(seed).permutation(y))
        scores.append(run_federation({**keys, "data.source": f"csv:{path}"}, sites=3).summary["test_balanced_accuracy"])
    # 4 x 300 test rows: standard deviation of the mean about .5 / sqrt(1200) = .0144; four of them
    assert abs(np.mean(scores) - 0.5) < 4 * 0.0144


def test_no_test_or_validation_row_is_ever_trained_on(tmp_path):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 4))
    x[:, 0] = np.arange(200)  # a row's own number
    path = _write(tmp_path / "rows.csv", x, rng.integers(0, 2, 200))
    for test, validation in itertools.product(("server", "federated"), repeat=2):
        keys = {
            **SMALL,
            "server.rounds": 1,
            "data.source": f"csv:{path}",
            "data.reduction": "none",
            "data.test": test,
            "data.validation": validation,
            "data.partitioner": "iid",
        }
        run = run_federation(keys, sites=3)
        config, setup = run.finished.opened.config, run.finished.opened.setup
        parts = partitions(run, config, 3).values()
        groups = [[row for p in parts for row in p.train.x[:, 0]]]
        groups += [[row for p in parts for row in getattr(p, name).x[:, 0]] for name in ("validation", "test")]
        for name in ("validation", "test"):
            rows = server_rows(config, setup, name)
            groups.append([] if rows is None else list(rows.x[:, 0]))
        together = list(itertools.chain(*groups))
        assert len(together) == 200
        assert len(set(together)) == 200


def test_the_feature_map_is_the_pooled_one_of_the_contributing_rows():
    from llm_qfl.federation.data.features import fit_feature_map
    from llm_qfl.federation.data.sums import combine, local_sums

    for reduction in ("pca", "discriminant"):
        run = run_federation({**SMALL, "server.rounds": 1, "data.reduction": reduction}, sites=4)
        config = run.finished.opened.config
        settings = [NodeSettings.from_node_config({"partition-id": n, "num-partitions": 4}) for n in range(4)]
        xs, ys = [], []
        for setting in settings:
            site = site_rows(config, setting, setting.site)
            x, y = site.pool.x[site.parts["train"]], site.pool.y[site.parts["train"]]
            counts = np.bincount(y, minlength=2)
            keep = counts[y] >= config.data.min_rows if reduction == "discriminant" else np.ones(len(y), bool)
            xs.append(x[keep])
            ys.append(y[keep])
        pooled = local_sums(np.concatenate(xs), np.concatenate(ys), classes=("0", "1"), reduction=reduction, min_rows=1)
        expected = fit_feature_map(combine([("all", pooled)]), reduction=reduction, qubits=4)
        probe = np.concatenate(xs)
        np.testing.assert_allclose(
            run.finished.opened.setup.feature_map.transform(probe), expected.transform(probe), rtol=1e-9, atol=1e-9
        )


def test_a_site_with_rows_of_one_class_trains(tmp_path):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(120, 4))
    y = (x[:, 0] > 0).astype(int)
    one = np.flatnonzero(y == 1)[:40]
    rest = np.setdiff1d(np.arange(120), one)
    nodes = [
        {"site": "mixed", "data-path": _write(tmp_path / "mixed.csv", x[rest], y[rest])},
        {"site": "ones", "data-path": _write(tmp_path / "ones.csv", x[one], y[one])},
    ]
    run = run_federation({**SMALL, "data.test": "federated"}, nodes=nodes)
    reports = {report.site: report for report in run.finished.rounds[0].reports}
    assert set(reports) == {"mixed", "ones"}
    assert reports["ones"].train_loss_best < reports["ones"].train_loss_first
    assert run.summary["num_classes"] == 2

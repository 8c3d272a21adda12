"""Claims of a reply against the census and the task."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from flwr.app import RecordDict

from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.errors import RecordError
from llm_qfl.federation.records import Census, encode_report
from llm_qfl.federation.types import ClientReport, GlobalState, RoundPlan, Scores, Spent
from server_app.claims import MAX_LOSS, MOST_SECONDS, Claims

MARK = {"config": "abc"}
STATE = GlobalState(1, np.zeros(2), ("a", "b"), {"mlp": {"w": np.zeros(2)}})
SCORES = Scores(2.0, np.array([2, 1]), np.array([1, 1]))
GOOD = ClientReport(
    "north", 1, np.array([0.5, -0.5]), 10, SCORES, SCORES, 0.7, 0.6, Spent(11, 110), 1.0,
    {"mlp": {"w": np.array([0.1, 0.1])}}, {"mlp": SCORES},
)  # fmt: skip
ROWS = {"train": 10, "validation": 3, "test": 0}
CENSUS = Census("north", False, "columns", (), ("x", "y"), ROWS, np.array([5, 5]), None)
PLAN = RoundPlan(1, ("north",), 101, 0.1)  # ten steps of ten evaluations


def check(report, **keys):
    flat = {"language.model": "none", "training.steps": 10, **keys}
    claims = Claims(RunConfig.from_run_config(flat), MARK, {"north": CENSUS}, 101)
    content = encode_report(report, STATE.parameter_names, MARK)
    return claims.check("north", content, report, STATE, PLAN)


def test_an_honest_report_passes_as_it_is():
    found = check(GOOD)
    assert asdict(found.spent) == asdict(GOOD.spent)
    assert (found.train_loss_first, found.seconds, found.num_examples) == (0.7, 1.0, 10)
    assert found.received.loss_sum == 2.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_examples": 11}, "the census said 10, got 11"),
        ({"received": Scores(2.0, np.array([3, 1]), np.array([1, 1]))}, "received: expected scores of 3"),
        ({"trained": Scores(0.0, np.array([0, 0]), np.array([0, 0]))}, "trained: expected scores of 3"),
        ({"baseline_received": {"mlp": Scores(1.0, np.array([9, 9]), np.array([0, 0]))}}, "baseline mlp: expected"),
        ({"spent": Spent(102, 110)}, "the task allowed 101, got 102"),
        ({"spent": Spent(11, 111)}, "11 evaluations of 10 rows, got 111"),
        ({"theta": np.array([0.0, 2.6])}, "theta: moved by 2.6, the task's steps reach 2.5"),
        ({"theta": np.array([0.0, -1.7e308])}, "theta: moved by"),
        ({"baselines": {"mlp": {"w": np.array([0.0, 99.0])}}}, "baseline mlp/w: moved by 99"),
        ({"train_loss_first": None}, "train-loss-first: expected a number"),
        ({"epsilon": 1.0}, "epsilon: expected none"),
    ],
)
def test_what_no_honest_site_can_send_is_refused(change, reason):
    with pytest.raises(RecordError, match=reason.replace("(", r"\(")):
        check(replace(GOOD, **change))


def test_another_fingerprint_is_refused():
    claims = Claims(RunConfig.from_run_config({"language.model": "none"}), MARK, {}, 101)
    for other in ({"config": "abd"}, {"config": "abc", "more": "x"}, {}):
        content = encode_report(GOOD, STATE.parameter_names, other)
        with pytest.raises(RecordError, match="fingerprint"):
            claims.check("north", content, GOOD, STATE, PLAN)
    with pytest.raises(RecordError, match="fingerprint"):
        claims.check("north", RecordDict({}), GOOD, STATE, PLAN)


def test_what_only_the_site_knows_is_held_within_limits():
    spent = Spent(11, 110, shots=2**60, qpu_seconds=1e308, queue_seconds=1e308, jobs=2**60)
    scores = Scores(1e300, SCORES.rows, SCORES.correct)
    found = check(replace(GOOD, spent=spent, received=scores, trained=scores, train_loss_best=1e308, seconds=-5.0))
    assert found.received.loss == MAX_LOSS
    assert found.trained.loss == MAX_LOSS
    assert found.train_loss_best == 2 * MAX_LOSS
    assert found.seconds == 0
    assert found.spent.qpu_seconds + found.spent.queue_seconds == 2 * MOST_SECONDS
    assert found.spent.shots == found.spent.jobs == 2**48


@pytest.mark.parametrize(("optimizer", "reach"), [("adam", 2.5), ("spsa", 5.05), ("cobyla", 80.8)])
def test_the_reach_is_that_of_the_optimizers_steps(optimizer, reach):
    check(replace(GOOD, theta=np.array([reach, 0.0])), **{"training.optimizer": optimizer})
    with pytest.raises(RecordError, match="moved by"):
        check(replace(GOOD, theta=np.array([reach * 1.01, 0.0])), **{"training.optimizer": optimizer})


def test_adam_never_walks_further_than_its_reach():
    from llm_qfl.quantum.training import adam_steps
    from server_app.claims import ADAM_REACH

    rng = np.random.default_rng(0)
    for _ in range(20):
        # gradients that grow or swing are what makes Adam's steps long
        growth = rng.uniform(-8, 8, size=(60, 7)).cumsum(axis=0) * rng.choice([0, 0.3])
        given = iter(np.exp(growth) * rng.normal(size=(60, 7)))
        moved = np.abs(adam_steps(np.zeros(7), 0.1, 60, lambda _, given=given: next(given)))
        assert moved.max() <= ADAM_REACH * 0.1 * 60

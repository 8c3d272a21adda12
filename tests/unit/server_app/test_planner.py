import numpy as np
import pytest

from llm_qfl.federation.config import RunConfig
from server_app.planner import learning_rate, plan_round, sample_sites

SITES = [f"site-{n:04d}" for n in range(10)]


def config(**keys):
    return RunConfig.from_run_config({key.replace("__", "."): value for key, value in keys.items()})


def test_everybody_trains_by_default_in_the_order_of_names():
    plan = plan_round(RunConfig(), 1, SITES[::-1], 73)
    assert plan.sites == tuple(SITES)
    assert plan.budget == 73


def test_the_draw_is_seeded_and_changes_with_the_round():
    half = config(server__fraction=0.5)
    draws = [sample_sites(half, number, SITES) for number in range(1, 30)]
    assert draws == [sample_sites(half, number, SITES[::-1]) for number in range(1, 30)]
    assert all(len(draw) == 5 for draw in draws)
    assert len(set(draws)) > 10
    counts = np.unique(np.concatenate(draws), return_counts=True)[1]
    assert len(counts) == 10
    assert counts.min() >= 5


def test_never_fewer_than_two_where_there_are_two():
    few = config(server__fraction=0.01)
    assert len(sample_sites(few, 1, SITES)) == 2
    assert len(sample_sites(few, 1, SITES[:1])) == 1


def test_the_schedule_starts_full_and_ends_at_a_tenth():
    training = RunConfig().training
    rates = [learning_rate(training, number, 20) for number in range(1, 21)]
    assert rates[0] == training.learning_rate
    assert rates[-1] == pytest.approx(training.learning_rate / 10)
    assert (np.diff(rates) < 0).all()

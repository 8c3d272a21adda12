"""Cloning and the group-relative policy gradient: terms by hand, and that they move the policy the right way."""

import math

import numpy as np
import pytest
import torch

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.lora import LoraSpec
from llm_qfl.language.models import load_base
from llm_qfl.language.policy import PolicyModel
from llm_qfl.language.policy_training import (
    PolicyTrainer,
    Taken,
    Wanted,
    chosen_log_probability,
    cloning_loss,
    divergence,
    entropy_of,
    group_advantages,
)

FIELDS = {"budget": 3, "stop": 2}
ALL = {"budget": (True, True, True), "stop": (True, True)}
SOME = {"budget": (True, False, True), "stop": (True, False)}
LOGP = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.9, 0.1, 0.0]]]))


@pytest.fixture
def policy(tmp_path):
    def make():
        return PolicyModel.on(load_base("tiny-3", tmp_path), FIELDS, spec=LoraSpec(rank=2, alpha=4.0), layers=2)

    return make


def test_losses_by_hand():
    target = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    assert float(cloning_loss(LOGP, target)) == pytest.approx(math.log(2))
    assert float(chosen_log_probability(LOGP, torch.tensor([[1, 0]]))) == pytest.approx(math.log(0.25 * 0.9))
    other = torch.log(torch.tensor([[[0.25, 0.5, 0.25], [0.9, 0.1, 0.0]]]))
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert float(divergence(LOGP, other)) == pytest.approx(expected)
    assert float(divergence(LOGP, LOGP)) == 0
    entropy = 1.5 * math.log(2) - 0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    assert float(entropy_of(LOGP)) == pytest.approx(entropy, rel=1e-6)


def test_advantages_are_relative_to_the_group():
    assert group_advantages([1.0, 3.0]) == [-1.0, 1.0]
    assert group_advantages([2.0, 2.0, 2.0]) == [0.0, 0.0, 0.0]


def test_a_clone_learns_what_is_wanted_of_each_state(policy, tmp_path):
    made = policy()
    samples = [
        Wanted("price 911", ALL, {"budget": np.array([1.0, 0, 0])}),
        Wanted("price 191", ALL, {"budget": np.array([0, 0, 1.0])}),
        Wanted("price 555", SOME, {"budget": np.array([0.5, 0, 0.5])}),
    ]
    trainer = PolicyTrainer(made, learning_rate=0.03, folder=tmp_path / "states")
    losses = [trainer.clone(samples, batch=3, seed=n) for n in range(25)]
    assert losses[-1] < 0.5 * losses[0]
    assert made.probabilities("price 911", ALL)["budget"].argmax() == 0
    assert made.probabilities("price 191", ALL)["budget"].argmax() == 2
    assert trainer.evaluate(samples) < losses[0]
    assert trainer.updates == 25


def test_the_gradient_raises_what_was_better_and_kl_holds_it_back(policy):
    def after(beta, steps=10):
        made = policy()
        trainer = PolicyTrainer(made, learning_rate=0.02)
        reference = made.adapter.arrays()
        taken = [
            Taken("loss 5", ALL, {"budget": 0, "stop": 0}, 1.0),
            Taken("loss 5", ALL, {"budget": 1, "stop": 0}, -1.0),
        ]
        last = [trainer.improve(taken, reference, beta=beta) for _ in range(steps)][-1]
        return made.probabilities("loss 5", ALL)["budget"], last

    before = policy().probabilities("loss 5", ALL)["budget"]
    free, step = after(0.0)
    held, _ = after(20.0)
    assert free[0] > before[0]
    assert free[1] < before[1]
    assert abs(held[0] - before[0]) < abs(free[0] - before[0])
    assert step.kl > 0


def test_the_first_step_has_no_kl_and_an_advantage_of_zero_changes_nothing(policy):
    made = policy()
    trainer = PolicyTrainer(made, learning_rate=0.02)
    step = trainer.improve([Taken("loss 5", ALL, {"budget": 0, "stop": 0}, 0.0)], made.adapter.arrays(), beta=0.0)
    assert step.loss == 0
    assert step.kl == pytest.approx(0, abs=1e-6)
    assert step.entropy > 0


def test_a_checkpoint_goes_on_as_if_there_had_been_no_end(policy, tmp_path):
    samples = [Wanted("loss 1", ALL, {"budget": np.array([0, 1.0, 0])})]

    def run(trainer, passes):
        return [trainer.clone(samples, seed=n) for n in passes]

    whole = PolicyTrainer(policy(), learning_rate=0.02)
    expected = run(whole, range(6))
    first = PolicyTrainer(policy(), learning_rate=0.02)
    losses = run(first, range(3))
    first.save(tmp_path / "clone.npz")
    second = PolicyTrainer(policy(), learning_rate=0.02)
    second.load(tmp_path / "clone.npz")
    losses += run(second, range(3, 6))
    assert losses == pytest.approx(expected, abs=1e-6)
    (tmp_path / "bad.npz").write_bytes(b"cut short")
    with pytest.raises(LanguageError, match="cannot be read"):
        second.load(tmp_path / "bad.npz")


def test_masked_wishes_and_nothing_to_learn_are_refused(policy):
    trainer = PolicyTrainer(policy())
    with pytest.raises(LanguageError, match="not among its allowed options"):
        trainer.clone([Wanted("loss 1", SOME, {"budget": np.array([0, 1.0, 0])})])
    with pytest.raises(LanguageError, match="at least one state"):
        trainer.clone([])
    with pytest.raises(LanguageError, match="at least one decision"):
        trainer.improve([], {})

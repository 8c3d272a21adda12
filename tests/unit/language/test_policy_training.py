"""Cloning and the group-relative policy gradient: terms by hand, and that they move the policy the right way."""

import math

import pytest
import torch

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.lora import LoraSpec
from llm_qfl.language.models import load_base
from llm_qfl.language.policy import PolicyModel
from llm_qfl.language.policy_training import (
    SOFTNESS,
    PolicyTrainer,
    Taken,
    Tried,
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
    # Two settings, budget 0 or 1 with stop 0, of probability .45 and .225; a third place that this state does not use.
    options = torch.tensor([[[0, 0], [1, 0], [0, 0]]])
    loss = cloning_loss(LOGP, options, torch.tensor([[0.0, 0.6, math.inf]]))
    entropy = math.log(3) - 2 / 3 * math.log(2)
    assert float(loss) == pytest.approx(0.6 / 3 - SOFTNESS * entropy - math.log(0.675))
    assert float(cloning_loss(LOGP, options[:, :1], torch.zeros((1, 1)))) == pytest.approx(-math.log(0.45))
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


def test_the_gradient_of_the_cloning_loss_is_that_of_finite_differences():
    random = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 2, 3), generator=random, dtype=torch.float64, requires_grad=True)
    options = torch.randint(0, 3, (2, 4, 2), generator=random)
    regrets = torch.tensor([[0.0, 0.3, 1.2, 0.1], [0.7, 0.0, math.inf, math.inf]], dtype=torch.float64)

    def loss(x):
        return cloning_loss(torch.log_softmax(x, dim=2), options, regrets)

    assert torch.autograd.gradcheck(loss, (logits,))


def tried(text, allowed, regrets):
    """Every allowed budget was tried and nothing stopped; what it cost."""
    settings = [{"budget": n, "stop": 0} for n, flag in enumerate(allowed["budget"]) if flag]
    return Tried(text, allowed, settings, regrets)


def test_a_clone_learns_what_is_cheap_in_each_state(policy, tmp_path):
    made = policy()
    samples = [
        tried("price 911", ALL, (0.0, 1.0, 2.0)),
        tried("price 191", ALL, (2.0, 1.0, 0.0)),
        tried("price 555", SOME, (0.1, 0.0)),
    ]
    trainer = PolicyTrainer(made, learning_rate=0.03, folder=tmp_path / "states")
    losses = [trainer.clone(samples, batch=3, seed=n) for n in range(25)]
    assert losses[-1] < 0.5 * losses[0]
    assert made.probabilities("price 911", ALL)["budget"].argmax() == 0
    assert made.probabilities("price 191", ALL)["budget"].argmax() == 2
    assert made.probabilities("price 911", ALL)["stop"][0] > 0.8  # nobody tried to stop
    assert trainer.evaluate(samples) < losses[0]
    assert trainer.updates == 25


def test_luck_averages_out(policy):
    """Of two settings the dearer one won more often, by little: the clone takes what costs less on average."""
    samples = [tried("loss 5", ALL, (0.05, 0.0, 3.0))] * 3 + [tried("loss 5", ALL, (0.0, 1.0, 3.0))]
    made = policy()
    trainer = PolicyTrainer(made, learning_rate=0.03)
    for number in range(30):
        trainer.clone(samples, batch=4, seed=number)
    assert made.probabilities("loss 5", ALL)["budget"].argmax() == 0


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
    samples = [tried("loss 1", ALL, (1.0, 0.0, 1.0))]

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


def test_masked_settings_and_nothing_to_learn_are_refused(policy):
    trainer = PolicyTrainer(policy())
    with pytest.raises(LanguageError, match=r"is not allowed .budget."):
        trainer.clone([Tried("loss 1", SOME, [{"budget": 1, "stop": 0}], (0.0,))])
    for settings, regrets in (([], ()), ([{"budget": 0, "stop": 0}], (math.inf,)), ([{"budget": 0, "stop": 0}], ())):
        with pytest.raises(LanguageError, match="at least one setting, each with a regret that is finite"):
            trainer.clone([Tried("loss 1", SOME, settings, regrets)])
    with pytest.raises(LanguageError, match="at least one state"):
        trainer.clone([])
    with pytest.raises(LanguageError, match="at least one decision"):
        trainer.improve([], {})

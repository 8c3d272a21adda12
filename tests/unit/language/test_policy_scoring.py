import copy
import threading

import numpy as np
import pytest
import torch

from agent.actions import SIZES
from agent.budgets import StepCost
from agent.choice import Deadline, ask
from agent.history import History, RoundRecord, SiteRecord
from agent.shield import everything
from agent.state import Setting, state_of
from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.batches import TokenRows
from llm_qfl.language.lora import LoraAdapter, LoraSpec
from llm_qfl.language.models import load_base
from llm_qfl.language.policy import PolicyModel
from llm_qfl.language.route import Route, score
from llm_qfl.language.stack import Stack

FIELDS = {"budget": 5, "clients": 3, "stop": 2}
ALL = {name: (True,) * size for name, size in FIELDS.items()}
SOME = {"budget": (False, True, True, False, True), "clients": (True, False, True), "stop": (True, False)}
TEXTS = ["loss 4 left 9", "loss 1 left 2\n123 456", "loss 7"]
SPEC = LoraSpec(rank=2, alpha=4.0)


@pytest.fixture
def make_policy(tmp_path, shake):
    def make(name="tiny-4", layers=2, size=0.2, seed=0, fields=FIELDS):
        base = load_base(name, tmp_path)
        plain = copy.deepcopy(base.model)
        policy = PolicyModel.on(base, fields, spec=SPEC, layers=layers, seed=seed)
        if size:
            shake(policy.adapter, seed=3, size=size)
        return policy, merged(plain, policy), base.tokenizer

    return make


def merged(model, policy):
    """The base with W + s B A in place of W, without PEFT."""
    stack, scaling = Stack(model), policy.adapter.spec.scaling
    with torch.no_grad():
        for key, a, b in policy.adapter.pairs():
            number, path = key.split("/")
            weight = stack.layers[int(number)].get_submodule(path).weight
            update = scaling * (b @ a).detach()
            weight += update.T if stack.config.model_type == "gpt2" else update
    return model


@torch.no_grad()
def slow(model, tokenizer, text, allowed, fields=FIELDS):
    """One pass for each field and option: the probability of its letter after the prompt so far, then normalised."""
    prompt, found = text, {}
    for name, size in fields.items():
        prompt += f"\n{name}:"
        weights = np.zeros(size)
        for option in range(size):
            if allowed[name][option]:
                ids = tokenizer(prompt + "ABCDEFGHIJK"[option], add_special_tokens=False)["input_ids"]
                logits = model(torch.tensor([ids[:-1]])).logits[0, -1].double()
                weights[option] = float(torch.softmax(logits, dim=0)[ids[-1]])
        found[name] = weights / weights.sum()
    return found


@pytest.mark.parametrize("name", ["tiny-4", "tiny-gpt2-4", "tiny-qwen3-4"])
@pytest.mark.parametrize("allowed", [ALL, SOME])
@pytest.mark.parametrize("size", [0.0, 0.2])
def test_probabilities_are_those_of_the_slow_reference(make_policy, name, allowed, size):
    policy, model, tokenizer = make_policy(name, size=size)
    for text in TEXTS:
        found, expected = policy.probabilities(text, allowed), slow(model, tokenizer, text, allowed)
        for field in FIELDS:
            np.testing.assert_allclose(found[field], expected[field], atol=2e-6)
            assert found[field].sum() == pytest.approx(1, abs=1e-12)


def test_masked_options_get_exactly_zero(make_policy):
    policy, _, _ = make_policy()
    for field, values in policy.probabilities(TEXTS[0], SOME).items():
        assert (values[~np.array(SOME[field])] == 0).all()
        assert (values[np.array(SOME[field])] > 0).all()


def test_a_mask_renormalises_and_changes_nothing_else(make_policy):
    policy, _, _ = make_policy()
    whole, part = policy.probabilities(TEXTS[0], ALL), policy.probabilities(TEXTS[0], SOME)
    for field in FIELDS:
        kept = np.array(SOME[field])
        np.testing.assert_allclose(part[field][kept], whole[field][kept] / whole[field][kept].sum(), atol=1e-12)


def test_b23_the_state_changes_the_choice(make_policy):
    policy, _, _ = make_policy()
    first, second = (policy.probabilities(text, ALL) for text in TEXTS[:2])
    assert all(np.abs(first[field] - second[field]).max() > 1e-3 for field in FIELDS)


def test_one_decision_is_one_pass(make_policy):
    policy, _, _ = make_policy()
    calls = []
    hooks = [layer.register_forward_hook(lambda *_: calls.append(1)) for layer in policy.stack.layers]
    policy.probabilities(TEXTS[0], ALL)
    for hook in hooks:
        hook.remove()
    assert len(calls) == len(policy.stack)


def batched(policy, rows, cache=None, chosen=None):
    with policy.route.adapting():
        return policy.logits(rows, list(range(len(rows))) if chosen is None else chosen, cache)


@torch.no_grad()
def test_cached_boundary_states_give_the_same_and_are_computed_once(make_policy, tmp_path):
    policy, _, _ = make_policy()
    rows = policy.encode(TEXTS)
    plain = batched(policy, rows)
    for folder in (None, tmp_path / "states"):
        cache = policy.cache(rows, folder)
        np.testing.assert_allclose(batched(policy, rows, cache), plain, atol=1e-6)
        seen = []
        hook = policy.stack.layers[0].register_forward_hook(lambda *_, seen=seen: seen.append(1))
        again = batched(policy, rows, cache, [2, 0])
        hook.remove()
        assert seen == []
        np.testing.assert_allclose(again, plain[[2, 0]], atol=1e-6)


@torch.no_grad()
def test_batches_match_single_states(make_policy):
    policy, _, _ = make_policy()
    rows, masks = policy.encode(TEXTS), [ALL, SOME, ALL]
    logp = policy.log_probabilities(batched(policy, rows), policy.mask(masks))
    for number, (text, allowed) in enumerate(zip(TEXTS, masks, strict=True)):
        single = policy.probabilities(text, allowed)
        for place, (field, size) in enumerate(FIELDS.items()):
            np.testing.assert_allclose(logp[number, place, :size].exp(), single[field], atol=2e-6)
            assert (logp[number, place, size:] == -torch.inf).all()


def test_boundary_states_do_not_depend_on_the_policys_training(make_policy, shake):
    policy, _, _ = make_policy()
    before = policy.route.version()
    shake(policy.adapter, seed=9, size=1.0)
    assert policy.route.version() == before


def test_b18_the_policys_matrices_are_trainable_and_their_gradient_is_right(make_policy):
    policy, _, _ = make_policy()
    rows, mask = policy.encode(TEXTS), policy.mask([ALL, SOME, ALL])
    cache = policy.cache(rows)

    def value():
        logp = policy.log_probabilities(batched(policy, rows, cache), mask)
        return logp[:, 0, 1].sum() + logp[:, 1, 2].sum()

    policy.adapter.trainable(on=True)
    value().backward()
    gradients = {key: parameter.grad.clone() for key, parameter in policy.adapter.parameters.items()}
    policy.adapter.trainable(on=False)
    assert len(gradients) == 2 * 2 * 7  # A and B of seven modules on two layers
    largest = {key: gradient.abs().max() for key, gradient in gradients.items()}
    assert min(largest.values()) > 1e-6, largest
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for key, parameter in policy.adapter.parameters.items():
            direction = torch.from_numpy(rng.normal(size=parameter.shape).astype(np.float32))
            step, here = 1e-2 / float(direction.norm()), parameter.clone()
            parameter.copy_(here + step * direction)
            above = value()
            parameter.copy_(here - step * direction)
            below = value()
            parameter.copy_(here)
            slope = float(above - below) / (2 * step)
            assert slope == pytest.approx(float((gradients[key] * direction).sum()), rel=0.05, abs=0.02), key


def test_a_policy_starts_as_the_base_model(make_policy):
    policy, model, tokenizer = make_policy(size=0.0)
    assert all((value == 0).all() for key, value in policy.adapter.arrays().items() if key.endswith("/B"))
    expected = slow(model, tokenizer, TEXTS[0], ALL)
    np.testing.assert_allclose(policy.probabilities(TEXTS[0], ALL)["budget"], expected["budget"], atol=2e-6)


def shared(tmp_path, shake):
    """A client's adapter on the last layers, an emulator's before: as the server holds them."""
    base = load_base("tiny-4", tmp_path)
    stack = Stack(base.model)
    client = LoraAdapter(stack, "adapter", {2: 2, 3: 3}, LoraSpec(3, 6.0), seed=1)
    emulator = LoraAdapter(stack, "emulator", {0: 0, 1: 1}, LoraSpec(3, 6.0), seed=2)
    shake(client, seed=1)
    shake(emulator, seed=2)
    both = (client, emulator)
    routes = [Route(stack, base.digest, (0, 1), (2, 3), both, active) for active in (both, (client,), ())]
    return base, stack, client, emulator, routes


def test_b12_the_clients_model_does_not_feel_the_policy(tmp_path, shake):
    base, stack, _, _, routes = shared(tmp_path, shake)
    rows = TokenRows.of([[5, 6, 7, 8, 9], [1, 2, 3, 4]], [2, 2])
    before = [score(route, rows) for route in routes]
    policy = PolicyModel(stack, base.tokenizer, base.digest, FIELDS, spec=SPEC, layers=2)
    shake(policy.adapter, seed=3, size=0.5)

    def same():
        after = [score(route, rows) for route in routes]
        return all(
            np.array_equal(one, other)
            for mine, theirs in zip(before, after, strict=True)
            for one, other in zip(mine, theirs, strict=True)
        )

    assert same()
    policy.probabilities(TEXTS[0], ALL)
    assert same()
    with pytest.raises(ZeroDivisionError), policy.route.adapting():
        1 / 0  # noqa: B018
    assert same()


def test_b12_the_policy_does_not_feel_the_clients_adapters(tmp_path, shake):
    base, stack, client, emulator, routes = shared(tmp_path, shake)
    policy = PolicyModel(stack, base.tokenizer, base.digest, FIELDS, spec=SPEC, layers=3, seed=5)
    shake(policy.adapter, seed=3)
    before = policy.probabilities(TEXTS[0], ALL)
    shake(client, seed=8, size=1.0)
    shake(emulator, seed=9, size=1.0)
    with routes[0].adapting():
        pass
    after = policy.probabilities(TEXTS[0], ALL)
    assert all(np.array_equal(before[field], after[field]) for field in FIELDS)
    alone = PolicyModel.on(load_base("tiny-4", tmp_path), FIELDS, spec=SPEC, layers=3, seed=5)
    alone.adapter.load(policy.adapter.arrays())
    apart = alone.probabilities(TEXTS[0], ALL)
    for field in FIELDS:
        np.testing.assert_allclose(before[field], apart[field], atol=1e-6)


def test_b12_training_the_policy_leaves_the_clients_matrices_alone(tmp_path, shake):
    base, stack, client, _, _ = shared(tmp_path, shake)
    policy = PolicyModel(stack, base.tokenizer, base.digest, FIELDS, spec=SPEC, layers=2)
    policy.adapter.trainable(on=True)
    logp = policy.log_probabilities(batched(policy, policy.encode(TEXTS)), policy.mask([ALL] * 3))
    logp[:, 0, 0].sum().backward()
    assert all(parameter.grad is None for parameter in client.parameters.values())
    assert any(parameter.grad is not None for parameter in policy.adapter.parameters.values())


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        ({**ALL, "stop": (False, False)}, "no option of stop"),
        ({**ALL, "stop": (True,)}, "expected masks of"),
        ({"stop": (True, True)}, "expected masks of"),
    ],
)
def test_masks_that_do_not_fit_are_refused(make_policy, allowed, message):
    policy, _, _ = make_policy()
    with pytest.raises(LanguageError, match=message):
        policy.probabilities(TEXTS[0], allowed)


def test_impossible_policies_are_refused(tmp_path):
    base = load_base("tiny-4", tmp_path)
    with pytest.raises(LanguageError, match="1 to 4 layers"):
        PolicyModel.on(base, FIELDS, layers=5)
    with pytest.raises(LanguageError, match="1 to 26 options"):
        PolicyModel.on(base, {"budget": 27})


def agents_state(sites=5):  # of bytes: what a tiny model has positions for
    names = [f"site-{k:04d}" for k in range(sites)]
    records = tuple(SiteRecord(name, 50 + k, 0.3 + 0.05 * k, 0.4) for k, name in enumerate(names))
    history = History((RoundRecord(1, records, tuple(names), server_loss=0.5),))
    setting = Setting(rounds=20, classes=2, cost=StepCost(73, 1, 74))
    return state_of(history, setting, dict.fromkeys(names, 731), names, 2)


def test_the_state_of_five_sites_fits_a_tiny_model_and_its_answer_passes_the_checks(make_policy):
    policy, _, _ = make_policy(fields=dict(SIZES))
    found = ask(policy, agents_state().text(), everything(), Deadline(20))
    assert set(found) == set(SIZES), found
    for name, size in SIZES.items():
        assert found[name].shape == (size,)


def test_drill_damaged_weights_end_in_not_finite(make_policy):
    policy, _, _ = make_policy(fields=dict(SIZES))
    with torch.no_grad():
        next(iter(policy.adapter.parameters.values())).fill_(float("nan"))
    assert ask(policy, agents_state().text(), everything(), Deadline(20)).reason == "not finite"


def test_drill_a_text_that_is_too_long_ends_in_the_scorers_reason(make_policy):
    policy, _, _ = make_policy(fields=dict(SIZES))
    found = ask(policy, "loss 4 " * 100, everything(), Deadline(20))
    assert found.reason == "scorer failed"
    assert "positions" in found.why


def test_drill_a_late_decision_waits_its_turn(tmp_path, monkeypatch, shake):
    """It goes on in its own thread after its time is over; the server's passes see their own updates all the same."""
    base, stack, _, _, (route, *_) = shared(tmp_path, shake)
    policy = PolicyModel(stack, base.tokenizer, base.digest, FIELDS, spec=SPEC, layers=2)
    shake(policy.adapter, seed=3, size=0.5)
    rows = TokenRows.of([[1, 2, 3, 4]], [2])
    before = score(route, rows)[0]
    inside, go_on, real = threading.Event(), threading.Event(), policy.logits

    def slowly(*args, **named):
        inside.set()
        assert go_on.wait(20)
        return real(*args, **named)

    monkeypatch.setattr(policy, "logits", slowly)
    late = ask(policy, "loss 4", ALL, Deadline(0.05))
    assert late.reason == "timeout"
    assert inside.wait(20)
    found = []
    server = threading.Thread(target=lambda: found.append(score(route, rows)[0]))
    server.start()
    server.join(0.3)
    assert not found  # the late decision has its updates switched on: a pass now would be of the policy's model
    go_on.set()
    server.join(20)
    np.testing.assert_array_equal(found[0], before)

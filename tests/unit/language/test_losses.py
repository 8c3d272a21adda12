import copy

import numpy as np
import pytest
import torch

from llm_qfl.language.batches import TokenRows, collate
from llm_qfl.language.lora import LoraAdapter, LoraSpec
from llm_qfl.language.losses import answer_nll, kl_divergence, proximal, relative_mse, released_mse
from llm_qfl.language.stack import Stack
from llm_qfl.language.tiny import tiny_model


@pytest.fixture
def stack():
    # GPT-2, since Llama's norms compute in float32 whatever the model is in: differences would drown in rounding
    return Stack(tiny_model(3, "gpt2").double())


@pytest.fixture
def adapter(stack, shake):
    made = LoraAdapter(stack, "adapter", {1: 1, 2: 2}, LoraSpec(2, 4.0), seed=1)
    shake(made)
    for parameter in made.parameters.values():
        parameter.data = parameter.data.double()
    made.trainable(on=True)
    return made


def check_gradient(function, parameters, seed=99, step=1e-6):
    """Directional derivative by autograd against central differences, along a random direction."""
    generator = torch.Generator().manual_seed(seed)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    gradients = torch.autograd.grad(function(), parameters)
    exact = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            for p, d in zip(parameters, direction, strict=True):
                p.add_(sign * step * d)
            values.append(function().detach())
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(sign * step * d)
    assert abs(exact) > 1e-4
    torch.testing.assert_close(exact, (values[0] - values[1]) / (2 * step), rtol=1e-5, atol=1e-7)


def test_cross_entropy_gradient(stack, adapter, make_rows) -> None:
    rows = make_rows(0, 3)
    batch = collate(rows, [0, 1, 2])

    # the head gives float32 logits, whatever the model is in: too coarse for differences, so it is taken in float64
    def loss():
        hidden = stack.run(stack.embed(batch.ids), range(3))
        logits = stack.model.get_output_embeddings()(stack.norm(hidden[batch.where[0], batch.where[1]]))
        return torch.nn.functional.cross_entropy(logits, batch.target)

    check_gradient(loss, list(adapter.parameters.values()))
    ours = answer_nll(stack, stack.run(stack.embed(batch.ids), range(3)), batch).mean()
    torch.testing.assert_close(ours.double(), loss(), rtol=1e-6, atol=1e-6)


def test_only_answer_tokens_are_learned(stack) -> None:
    rows = TokenRows.of([[1, 2, 3, 4, 5], [6, 7, 8]], [3, 1])
    batch = collate(rows, [0, 1])
    assert batch.target.tolist() == [4, 5, 7, 8]
    assert torch.stack(batch.where).T.tolist() == [[0, 2], [0, 3], [1, 0], [1, 1]]
    logits = stack.model(batch.ids, use_cache=False).logits
    labels = torch.tensor([[-100, -100, -100, 4, 5], [-100, 7, 8, -100, -100]])
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    got = answer_nll(stack, stack.run(stack.embed(batch.ids), range(3)), batch).mean()
    torch.testing.assert_close(got.double(), expected.double(), rtol=1e-6, atol=1e-6)


def test_proximal_is_the_explicit_form(adapter) -> None:
    anchor = {key: value.detach().clone() + 0.1 for key, value in adapter.parameters.items()}

    def explicit():
        return sum(
            (adapter.spec.scaling * (b @ a - anchor[f"{key}/B"] @ anchor[f"{key}/A"])).square().sum()
            for key, a, b in adapter.pairs()
        )

    parameters = list(adapter.parameters.values())
    torch.testing.assert_close(proximal(adapter, anchor), explicit(), rtol=1e-10, atol=0)
    ours = torch.autograd.grad(proximal(adapter, anchor), parameters)
    theirs = torch.autograd.grad(explicit(), parameters)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
    check_gradient(lambda: proximal(adapter, anchor), parameters)


def test_proximal_is_zero_at_the_start_and_precise_beside_it(adapter) -> None:
    anchor = {key: value.detach().clone().float() for key, value in adapter.parameters.items()}
    for parameter in adapter.parameters.values():
        parameter.data = parameter.data.float()
    assert proximal(adapter, anchor).item() == 0.0
    gradients = torch.autograd.grad(proximal(adapter, anchor), list(adapter.parameters.values()))
    assert all(float(g.abs().max()) == 0.0 for g in gradients)
    with torch.no_grad():
        for parameter in adapter.parameters.values():
            parameter.add_(1e-4)
    exact = copy.deepcopy({k: v.detach().double() for k, v in adapter.parameters.items()})
    value = sum(
        float(
            (2.0 * (exact[f"{k}/B"] @ exact[f"{k}/A"] - anchor[f"{k}/B"].double() @ anchor[f"{k}/A"].double()))
            .square()
            .sum()
        )
        for k, _, _ in adapter.pairs()
    )
    assert proximal(adapter, anchor).item() == pytest.approx(value, rel=1e-3)  # the three-term expansion is 8 times off


def test_relative_mse_by_hand() -> None:
    teacher = torch.tensor([[[100.0, 0], [3, 4], [0, 2], [9, 9]]])
    student = torch.tensor([[[0.0, 0], [3, 3], [0, 0], [0, 0]]])
    mask = torch.tensor([[True, True, True, False]])
    assert float(relative_mse(student, teacher, mask)) == pytest.approx((1 / 25 + 1) / 2)


def test_released_mse_is_the_published_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn((2, 5, 3), generator=generator) for _ in range(2))
    expected = (((teacher - student) / teacher.pow(2).mean().sqrt()) ** 2).mean()
    torch.testing.assert_close(released_mse(student, teacher, torch.ones((2, 5), dtype=torch.bool)), expected)


@pytest.mark.parametrize("loss", [relative_mse, released_mse])
def test_boundary_gradients(loss) -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn((2, 5, 3), generator=generator).requires_grad_()
    teacher = torch.randn((2, 5, 3), generator=generator)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    (gradient,) = torch.autograd.grad(loss(student, teacher, mask), [student])
    numeric = torch.zeros_like(student)
    with torch.no_grad():
        for index in np.ndindex(*student.shape):
            shifted = student.double().clone()
            shifted[index] += 1e-3
            up = loss(shifted, teacher.double(), mask)
            shifted[index] -= 2e-3
            numeric[index] = (up - loss(shifted, teacher.double(), mask)) / 2e-3
    torch.testing.assert_close(gradient, numeric, rtol=1e-2, atol=1e-3)
    assert gradient.abs().sum() > 0
    assert gradient[1, 3:].abs().max() == 0  # padding


def test_kl_by_hand_and_its_gradient(stack, monkeypatch) -> None:
    monkeypatch.setattr("llm_qfl.language.losses.KL_CHUNK", 3)  # 7 positions: two chunks and a rest
    generator = torch.Generator().manual_seed(0)
    student = torch.randn((7, 32), generator=generator, dtype=torch.float64).requires_grad_()
    teacher = stack.norm(torch.randn((7, 32), generator=generator, dtype=torch.float64))
    head = stack.model.get_output_embeddings()

    def explicit():
        p, q = head(teacher).softmax(-1), head(stack.norm(student)).softmax(-1)
        return (p * (p.log() - q.log())).sum() / 7

    value = kl_divergence(stack, student, teacher)
    assert value.item() == pytest.approx(explicit().item(), rel=1e-5)
    (ours,) = torch.autograd.grad(value, [student])
    (theirs,) = torch.autograd.grad(explicit(), [student])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    check_gradient(explicit, [student])
    same = stack.norm(student).detach()
    assert kl_divergence(stack, student, same).item() == pytest.approx(0, abs=1e-6)

"""Training and alignment steps against the same steps written out: dense weights, plain softmax, AdamW from torch."""

import math

import numpy as np
import pytest
import torch

from llm_qfl.federation.seeding import SERVER, seed_of
from llm_qfl.language import align as align_module
from llm_qfl.language.align import AlignReport, AlignSettings, Teacher, align_loss
from llm_qfl.language.batches import TokenRows, collate, draw_batches
from llm_qfl.language.device import cast_layers
from llm_qfl.language.training import StepBudget, train_adapter


def close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], start: dict[str, np.ndarray]) -> bool:
    """Nearly all numbers agree: Adam divides by the gradient's size, so where that is nil its rounding decides."""
    error = np.concatenate([np.abs(found[k] - expected[k]).ravel() for k in expected])
    moved = np.concatenate([np.abs(expected[k] - start[k]).ravel() for k in expected])
    return bool(np.quantile(error, 0.95) < 1e-2 * np.median(moved))


def batches_of(seed: int, rows: int, size: int, steps: int) -> list[np.ndarray]:
    return draw_batches(rows, size, steps, np.random.Generator(np.random.PCG64(seed)))


def test_training_is_adamw_on_the_loss_and_half_eps_times_the_dense_distance(
    make_server, make_client, make_rows, shake
) -> None:
    """Three steps through transformers' own forward, |W - W0|^2 of the effective weights in full, cosine and clip."""
    server = make_server()
    shake(server.adapter, 1)
    shake(server.emulator, 2)
    client = make_client(server)
    client.adapter.load(server.adapter.arrays())
    client.emulator.load(server.emulator.arrays())
    rows = TokenRows.of(make_rows(3, 8).ids, [3] * 8)
    start = server.adapter.arrays()
    budget = StepBudget(3, 4, 1e-2, offset=2, total=8, clip=0.5, weight_decay=0.1)
    train_adapter(server.route("adap-emu"), server.adapter, rows, budget, 3.0, seed=5, cache=None)

    client.adapter.trainable(on=True)
    pairs = [(f"{key}/A", f"{key}/B") for key, _, _ in client.adapter.pairs()]
    live = client.adapter.parameters
    anchor = {key: value.detach().clone() for key, value in live.items()}
    optimizer = torch.optim.AdamW(live.values(), lr=1.0, betas=(0.9, 0.95), weight_decay=0.1)
    for step, chosen in enumerate(batches_of(5, 8, 4, 3)):
        batch = collate(rows, chosen)
        labels = torch.full_like(batch.ids, -100)
        labels[batch.where[0], batch.where[1] + 1] = batch.target
        loss = client.stack.model(batch.ids, attention_mask=batch.mask.long(), labels=labels, use_cache=False).loss
        scaling = server.config.scale
        distance = sum((scaling * (live[b] @ live[a] - anchor[b] @ anchor[a])).square().sum() for a, b in pairs)
        optimizer.zero_grad()
        (loss + 3.0 / 2 * distance).backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in live.values()))
        for parameter in live.values():
            parameter.grad *= min(1.0, 0.5 / norm)
        optimizer.param_groups[0]["lr"] = 1e-2 * 0.5 * (1 + math.cos(math.pi * (2 + step) / 8))
        optimizer.step()
    assert close(server.adapter.arrays(), client.adapter.arrays(), start)


def relative_error(student: torch.Tensor, teacher: torch.Tensor, lengths: np.ndarray) -> torch.Tensor:
    """Mean over the tokens but the first of each row of |s - t|^2 / |t|^2, row by row."""
    terms = [
        ((student[k, 1:n] - teacher[k, 1:n]) ** 2).sum(-1) / (teacher[k, 1:n] ** 2).sum(-1)
        for k, n in enumerate(lengths)
    ]
    return torch.cat(terms).mean()


def test_alignment_is_adamw_with_clipped_gradients_and_a_cosine(make_server, make_rows, shake) -> None:
    server, hand = (
        make_server(align_rate=5.0, realign_rate=1e-2, clip=0.05, align_batch=3, weight_decay=0.1) for _ in range(2)
    )
    for each in (server, hand):
        shake(each.emulator, 2)
    start = server.emulator.arrays()
    public = make_rows(0, 9)
    server.align(public, 3, steps=4)

    student, teacher = hand.route("adap-emu"), hand.route("zero-shot")
    live = hand.emulator.parameters
    hand.emulator.trainable(on=True)
    optimizer = torch.optim.AdamW(live.values(), lr=1.0, betas=(0.9, 0.95), weight_decay=0.1)
    norms = []
    for step, chosen in enumerate(batches_of(seed_of(7, SERVER, 3, "language-align"), 9, 3, 4)):
        ids = collate(public, chosen).ids
        target = teacher.boundary(ids)
        with student.adapting():
            states = hand.stack.run(hand.stack.embed(ids), student.prefix)
            optimizer.zero_grad()
            relative_error(states, target, public.lengths[chosen]).backward()
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in live.values())))
        for parameter in live.values():
            parameter.grad *= min(1.0, 0.05 / norms[-1])
        optimizer.param_groups[0]["lr"] = 1e-2 * 0.5 * (1 + math.cos(math.pi * step / 4))
        optimizer.step()
    assert min(norms) > 0.1  # so every step was clipped
    assert max(norms) > 1.05 * min(norms)  # each by another factor: Adam sees that
    assert close(server.emulator.arrays(), hand.emulator.arrays(), start)


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_alignment_s_loss_is_boundary_plus_lambda_times_the_divergence(make_server, make_rows, shake, weight) -> None:
    server = make_server()
    shake(server.adapter, 1)
    shake(server.emulator, 2)
    rows, chosen = make_rows(0, 3), np.arange(3)
    teacher = Teacher(server.route("adap-fu"), rows)
    teacher.prepare(chosen, final=True)
    generator = np.random.Generator(np.random.PCG64(0))
    settings = AlignSettings(StepBudget(1), weight)
    loss = align_loss(server.route("adap-emu"), teacher, chosen, settings, generator, AlignReport())

    ids = collate(rows, chosen).ids
    found = {}
    with torch.no_grad():
        for kind in ("adap-fu", "adap-emu"):
            route = server.route(kind)
            boundary = route.boundary(ids)
            with route.adapting():
                found[kind] = boundary, torch.softmax(server.stack.head(route.tail(boundary)), -1)
    (target, p), (states, q) = found["adap-fu"], found["adap-emu"]
    divergence = torch.cat([(p[k, :n] * (p[k, :n] / q[k, :n]).log()).sum(-1) for k, n in enumerate(rows.lengths)])
    boundary = relative_error(states, target, rows.lengths)
    assert float(divergence.mean()) > 0.05 * float(boundary)  # else lambda would not show
    assert loss.item() == pytest.approx(float(boundary + weight * divergence.mean()), rel=1e-4)


@pytest.mark.parametrize("tokens", [5, 0])
def test_so_many_positions_enter_the_divergence(make_server, make_rows, monkeypatch, tokens) -> None:
    counts, original = [], align_module.kl_divergence

    def counted(stack, student, teacher):
        counts.append((len(student), len(teacher)))
        return original(stack, student, teacher)

    monkeypatch.setattr(align_module, "kl_divergence", counted)
    public = make_rows(0, 4)
    make_server(kl_weight=0.5, kl_tokens=tokens, align_batch=4).align(public, 0, steps=2)
    assert counts == [(tokens or int(public.lengths.sum()),) * 2] * 2


def test_a_boundary_state_s_version_is_of_the_numbers_that_it_was_computed_in(make_server) -> None:
    server = make_server()
    route = server.route("zero-shot")
    before = route.version()
    cast_layers(server.stack, route.suffix, torch.bfloat16)
    assert route.version() == before
    cast_layers(server.stack, route.prefix[-1:], torch.bfloat16)
    assert route.version() != before
    cast_layers(server.stack, route.prefix[-1:], torch.float32)
    assert route.version() == before

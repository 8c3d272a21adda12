import numpy as np
import pytest
import torch

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.align import AlignReport, AlignSettings, Teacher, align, align_loss
from llm_qfl.language.batches import TokenRows, collate
from llm_qfl.language.training import StepBudget

SETTINGS = AlignSettings(StepBudget(5, 4, 1e-2), kl_weight=0.5)


@pytest.mark.parametrize("model", ["tiny-6", "tiny-qwen2-6", "tiny-qwen3-6", "tiny-gpt2-6"])
def test_compressed_route_is_the_pruned_copy(make_server, make_client, make_rows, shake, model) -> None:
    for placement in ("tail", "ends"):
        server = make_server(placement=placement, model=model)
        shake(server.adapter, 1)
        shake(server.emulator, 2)
        client = make_client(server)
        client.adapter.load(server.adapter.arrays())
        client.emulator.load(server.emulator.arrays())
        rows = make_rows(1, 5)
        ids = collate(rows, range(5)).ids
        with torch.no_grad():
            theirs = client.stack.model(ids, use_cache=False).logits
            route = server.route("adap-emu")
            with route.adapting():
                ours = server.stack.head(route.tail(route.boundary_here(ids)))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        for a, b in zip(server.score("adap-emu", rows), client.score(rows), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_routes_are_what_their_names_say(make_server, make_rows, shake) -> None:
    server = make_server()
    rows = make_rows(1, 5)
    plain = server.score("zero-shot", rows)
    compressed = server.score("compressed-zero-shot", rows)
    assert all(np.array_equal(a, b) for a, b in zip(plain, server.score("adap-fu", rows), strict=True))  # B = 0
    shake(server.adapter, 1)
    assert all(np.array_equal(a, b) for a, b in zip(plain, server.score("zero-shot", rows), strict=True))
    assert not np.allclose(plain[0], server.score("adap-fu", rows)[0])
    assert not np.allclose(compressed[0], plain[0])
    before = server.score("adap-fu", rows)
    shake(server.emulator, 2)
    assert all(np.array_equal(a, b) for a, b in zip(before, server.score("adap-fu", rows), strict=True))
    assert not np.allclose(compressed[0], server.score("compressed-zero-shot", rows)[0])
    with pytest.raises(LanguageError, match="expected one of zero-shot"):
        server.route("full")


def test_full_model_is_untouched_by_wrapping(make_server, make_rows, tmp_path) -> None:
    from llm_qfl.language.models import load_base

    rows = make_rows(1, 3)
    ids = collate(rows, range(3)).ids
    with torch.no_grad():
        fresh = load_base("tiny-6", tmp_path).model(ids, use_cache=False).logits
        server = make_server()
        route = server.route("zero-shot")
        with route.adapting():
            ours = server.stack.head(route.tail(route.boundary_here(ids)))
    torch.testing.assert_close(ours, fresh, rtol=0, atol=0)


def test_alignment_moves_the_emulator_alone_and_helps(make_server, make_rows, shake) -> None:
    server = make_server(kl_weight=0.5, align_rate=1e-2)
    shake(server.adapter, 1)
    public = make_rows(0, 16)
    before = {k: v.clone() for k, v in server.stack.model.state_dict().items()}
    error = server.boundary_error(public, range(16))
    report = server.align(public, 0, steps=40)
    after = server.stack.model.state_dict()
    assert {k for k in before if not torch.equal(before[k], after[k])} == {k for k in before if ".emulator." in k}
    assert server.boundary_error(public, range(16)) < 0.6 * error
    assert np.mean(report.kl_losses[-4:]) < 0.8 * np.mean(report.kl_losses[:4])


def test_realigning_does_not_throw_a_converged_emulator_off(make_server, make_rows) -> None:
    """Adam's first steps are as long as its rate, whatever the gradient: at the first alignment's rate they do."""
    public = make_rows(0, 16)
    errors = {}
    for rate in (2e-4, 1e-2):
        server = make_server(align_rate=1e-2, realign_rate=rate)
        server.align(public, 0, steps=150)
        before = server.boundary_error(public, range(16))
        server.align(public, 1, steps=5)
        errors[rate] = server.boundary_error(public, range(16)) / before
    assert errors[2e-4] < 1.002
    assert errors[1e-2] > 1.01


def test_alignment_between_adapted_ends(make_server, make_rows, shake) -> None:
    """With adapted first layers the emulator ends before the last ones, and the teacher changes with the adapter."""
    server = make_server(placement="ends", align_rate=1e-2)
    public = make_rows(0, 16)
    shake(server.adapter, 1)
    first = server.align(public, 0, steps=40)
    assert first.boundary_losses[0] > 0.01
    assert np.mean(first.boundary_losses[-4:]) < 0.7 * np.mean(first.boundary_losses[:4])
    assert server.align(public, 1, steps=2).teacher_rows == 0
    shake(server.adapter, 2)
    assert server.align(public, 2, steps=2).teacher_rows > 0


def test_teacher_runs_once(make_server, make_rows, shake) -> None:
    server = make_server(kl_weight=0.5)
    public = make_rows(0, 8)
    assert server.align(public, 0, steps=4).teacher_rows == 8
    shake(server.adapter, 1)
    assert server.align(public, 1, steps=4).teacher_rows == 0  # boundary states last although the adapter changed


def test_final_states_follow_the_adapter(make_server, make_rows, shake) -> None:
    server = make_server(kl_weight=0.5)
    teacher = Teacher(server.route("adap-fu"), make_rows(0, 4))
    chosen = np.arange(4)
    batch = collate(teacher.rows, chosen)
    finals = []
    for seed in (1, 2):
        shake(server.adapter, seed)
        teacher.prepare(chosen, final=True)
        finals.append(teacher.states(chosen, batch, final=True)[1])
    assert not torch.allclose(finals[0], finals[1])
    with torch.no_grad(), server.route("adap-fu").adapting():
        hidden = server.stack.run(server.stack.embed(batch.ids), range(6))
    mask = batch.mask
    torch.testing.assert_close(finals[1][mask], server.stack.norm(hidden)[mask], rtol=1e-4, atol=1e-5)


def test_teacher_is_deaf_to_the_emulator(make_server, make_rows, shake) -> None:
    server = make_server()
    rows = make_rows(0, 3)
    batch = collate(rows, range(3))
    teacher = Teacher(server.route("adap-fu"), rows, cached=False)
    before = teacher.states(np.arange(3), batch, final=True)
    shake(server.emulator, 4)
    after = teacher.states(np.arange(3), batch, final=True)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


@pytest.mark.parametrize("form", ["relative", "released"])
def test_every_emulator_matrix_gets_a_gradient(make_server, make_rows, shake, form) -> None:
    server = make_server()
    shake(server.emulator, 1)
    shake(server.adapter, 2)
    teacher = Teacher(server.route("adap-fu"), make_rows(0, 4), cached=form == "relative")
    server.emulator.trainable(on=True)
    seen = []
    for kl_weight in (0.0, 1.0):
        settings = AlignSettings(StepBudget(1), kl_weight, form=form)
        teacher.prepare(np.arange(4), final=kl_weight > 0)
        report = AlignReport()
        generator = np.random.Generator(np.random.PCG64(0))
        route = server.route("adap-emu")
        loss = align_loss(route, teacher, np.arange(4), settings, generator, report)
        gradients = torch.autograd.grad(loss, list(server.emulator.parameters.values()))
        assert all(float(g.abs().max()) > 0 for g in gradients)
        if kl_weight:
            assert not torch.allclose(gradients[0], seen[0])
            assert loss.item() == pytest.approx(report.boundary_losses[0] + report.kl_losses[0], rel=1e-6)
        seen.append(gradients[0])


def test_alignment_gradient_against_differences(make_server, make_rows, shake) -> None:
    server = make_server(model="tiny-gpt2-6")
    for adapter, seed in ((server.emulator, 1), (server.adapter, 2)):
        shake(adapter, seed)
    server.stack.model.double()
    teacher = Teacher(server.route("adap-fu"), make_rows(0, 3), cached=False)
    parameters = list(server.emulator.parameters.values())
    server.emulator.trainable(on=True)
    settings = AlignSettings(StepBudget(1), 0.0)

    def loss():
        generator = np.random.Generator(np.random.PCG64(0))
        return align_loss(server.route("adap-emu"), teacher, np.arange(3), settings, generator, AlignReport())

    gradients = torch.autograd.grad(loss(), parameters)
    generator = torch.Generator().manual_seed(5)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    exact = sum((g * d).sum().item() for g, d in zip(gradients, direction, strict=True))
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            for p, d in zip(parameters, direction, strict=True):
                p.add_(sign * 3e-4 * d)
            values.append(loss().item())
    assert exact == pytest.approx((values[0] - values[1]) / 6e-4, rel=2e-3)  # the loss itself is float32


def test_without_kl_the_adapter_and_the_head_are_not_run(make_server, make_rows, monkeypatch) -> None:
    server = make_server(kl_weight=0.0)

    def forbidden(*_: object) -> None:
        raise AssertionError("the head was run")

    monkeypatch.setattr(type(server.stack), "norm", forbidden)
    run = []
    original = type(server.stack).run

    def watched(stack, hidden, layers):
        run.extend(layers)
        return original(stack, hidden, layers)

    monkeypatch.setattr(type(server.stack), "run", watched)
    server.align(make_rows(0, 8), 0, steps=2)
    assert not set(run) & set(server.plan.adapter)


def test_nothing_dropped_nothing_to_do(make_server, make_rows, shake) -> None:
    server = make_server(beta=0.0)
    shake(server.adapter, 1)
    public = make_rows(0, 8)
    assert server.boundary_error(public, range(8)) == pytest.approx(0, abs=1e-10)
    report = server.align(public, 0, steps=1)
    assert report.boundary_losses == [pytest.approx(0, abs=1e-10)]
    rows = make_rows(5, 4)
    server = make_server(beta=0.0)
    shake(server.adapter, 1)
    pairs = zip(server.score("adap-emu", rows), server.score("adap-fu", rows), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def test_padding_does_not_count(make_server, make_rows, shake) -> None:
    """Two rows in one padded batch give the token-weighted mean of each alone."""
    server = make_server()
    shake(server.emulator, 1)
    rows = TokenRows.of([make_rows(0, 1, low=5, high=6).ids[0], make_rows(1, 1, low=18, high=19).ids[0]])
    teacher = Teacher(server.route("adap-fu"), rows)
    settings = AlignSettings(StepBudget(1), 1.0)
    values = []
    for chosen in ([0], [1], [0, 1]):
        report = AlignReport()
        teacher.prepare(np.array(chosen), final=True)
        generator = np.random.Generator(np.random.PCG64(0))
        align_loss(server.route("adap-emu"), teacher, np.array(chosen), settings, generator, report)
        values.append((report.boundary_losses[0], report.kl_losses[0]))
    (a, ka), (b, kb), (both, kl) = values
    assert both == pytest.approx((4 * a + 17 * b) / 21, rel=1e-5)
    assert kl == pytest.approx((5 * ka + 18 * kb) / 23, rel=1e-5)


def test_sampled_positions_estimate_the_whole(make_server, make_rows, shake) -> None:
    server = make_server()
    shake(server.emulator, 1)
    rows = make_rows(0, 8)
    teacher = Teacher(server.route("adap-fu"), rows)
    teacher.prepare(np.arange(8), final=True)

    def kl(tokens: int, seed: int) -> float:
        report = AlignReport()
        generator = np.random.Generator(np.random.PCG64(seed))
        settings = AlignSettings(StepBudget(1), 1.0, kl_tokens=tokens)
        align_loss(server.route("adap-emu"), teacher, np.arange(8), settings, generator, report)
        return report.kl_losses[0]

    sampled = [kl(16, seed) for seed in range(60)]
    assert np.mean(sampled) == pytest.approx(kl(0, 0), abs=4 * np.std(sampled) / 60**0.5)


def test_alignment_is_repeatable(make_server, make_rows) -> None:
    results = []
    for _ in range(2):
        server = make_server(kl_weight=0.5, kl_tokens=8)
        server.align(make_rows(0, 8), 0)
        results.append(server.emulator.digest())
    assert results[0] == results[1]


def test_methods_without_emulator(make_server, make_rows) -> None:
    for method in ("fedlora-all", "fedlora-tail"):
        server = make_server(method=method)
        assert server.align(make_rows(0, 4), 0) is None
        assert server.boundary_error(make_rows(0, 4), [0]) == 0.0
        rows = make_rows(1, 3)
        pairs = zip(server.score("adap-emu", rows), server.score("adap-fu", rows), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)


def test_no_public_rows(make_server) -> None:
    server = make_server()
    teacher = Teacher(server.route("adap-fu"), TokenRows.of([]))
    with pytest.raises(LanguageError, match="expected public rows"):
        align(server.route("adap-emu"), server.emulator, teacher, SETTINGS, seed=0)


def test_presets(make_server, make_rows, shake) -> None:
    """`released` runs the teacher on every padded batch and never sees the adapter; `paper` does."""
    public = make_rows(0, 8)
    released = make_server(preset="released", emulator_rank=8)
    report = released.align(public, 0, steps=2)
    assert (report.teacher_rows, report.kl_losses) == (0, [])
    paper = make_server(preset="paper")
    report = paper.align(public, 0, steps=2)
    assert report.teacher_rows == 8
    assert len(report.kl_losses) == 2


def test_released_form_is_the_published_formula_on_the_padded_batch(make_server, make_rows) -> None:
    server = make_server(preset="released", emulator_rank=8)
    rows = make_rows(0, 4)
    report = server.align(rows, 0, steps=1)
    from llm_qfl.federation.seeding import seed_of
    from llm_qfl.language.batches import draw_batches

    fresh = make_server(preset="released", emulator_rank=8)
    seed = seed_of(7, "server", 0, "language-align")
    (chosen,) = draw_batches(4, 4, 1, np.random.Generator(np.random.PCG64(seed)))
    ids = collate(rows, chosen).ids
    teacher = fresh.route("adap-fu").boundary(ids)
    student = fresh.route("adap-emu").boundary(ids)
    expected = (((teacher - student) / teacher.pow(2).mean().sqrt()) ** 2).mean()
    assert report.boundary_losses == [pytest.approx(expected.item(), rel=1e-5)]

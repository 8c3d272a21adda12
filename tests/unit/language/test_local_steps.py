import numpy as np
import pytest
import torch

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.batches import TokenRows, collate, draw_batches
from llm_qfl.language.route import Route
from llm_qfl.language.training import StepBudget, train_adapter

BUDGET = StepBudget(steps=4, batch_size=4, learning_rate=1e-2, clip=0.0)


def prepared(server, shake):
    shake(server.adapter, 1)
    if server.emulator is not None:
        shake(server.emulator, 2)
    return server.route("adap-emu")


def values(route: Route) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in route.stack.model.state_dict().items()}


def run(server, rows, *, cache: bool, budget=BUDGET, eps=0.0, seed=5):
    """Train from the adapter's present values, then put them back."""
    start = server.adapter.arrays()
    route = server.route("adap-emu")
    report = train_adapter(
        route, server.adapter, rows, budget, eps, seed=seed, cache=route.cache(rows) if cache else None
    )
    trained = server.adapter.arrays()
    server.adapter.load(start)
    return trained, report


def test_cache_on_is_cache_off_bit_for_bit_on_identical_batches(make_server, make_rows, shake) -> None:
    server = make_server()
    prepared(server, shake)
    rows = make_rows(0, 4, low=9, high=10)  # one batch of all rows, in any order of one length
    on, report_on = run(server, rows, cache=True)
    off, report_off = run(server, rows, cache=False)
    assert report_on.losses == report_off.losses
    assert all(np.array_equal(on[k], off[k]) for k in on)


def test_cache_on_is_cache_off_where_batches_differ(make_server, make_rows, shake) -> None:
    server = make_server()
    prepared(server, shake)
    rows = make_rows(0, 23)
    on, _ = run(server, rows, cache=True)
    off, _ = run(server, rows, cache=False)
    for key in on:
        np.testing.assert_allclose(on[key], off[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["fedbiot", "fedlora-all", "fedlora-tail", "local"])
def test_only_the_adapter_moves(make_server, make_rows, shake, method) -> None:
    server = make_server(method=method)
    route = prepared(server, shake)
    before = values(route)
    train_adapter(route, server.adapter, make_rows(0, 9), BUDGET, 0.1, seed=1, cache=None)
    after = values(route)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {key for key in before if ".adapter." in key}
    assert len(moved) == 2 * 7 * server.plan.a


def test_nothing_is_recorded_below_the_boundary(make_server, make_rows, shake) -> None:
    server = make_server()
    route = prepared(server, shake)
    server.adapter.trainable(on=True)
    with route.adapting():
        boundary = route.boundary_here(collate(make_rows(0, 2), [0, 1]).ids)
        assert not boundary.requires_grad
        assert route.tail(boundary).requires_grad


def test_gradient_is_that_of_the_plain_model(make_server, make_client, make_rows, shake) -> None:
    """One step of plain SGD-like AdamW equals the same step through transformers' own forward and labels."""
    server = make_server()
    prepared(server, shake)
    rows = TokenRows.of(make_rows(3, 4).ids, [3] * 4)
    trained, report = run(server, rows, cache=True, budget=StepBudget(1, 4, 1e-3, clip=0.0))
    client = make_client(server)
    for mine, theirs in ((client.adapter, server.adapter), (client.emulator, server.emulator)):
        mine.load(theirs.arrays())
    client.adapter.trainable(on=True)
    batch = collate(rows, draw_batches(4, 4, 1, np.random.Generator(np.random.PCG64(5)))[0])
    labels = torch.full_like(batch.ids, -100)
    labels[batch.where[0], batch.where[1] + 1] = batch.target
    parameters = client.adapter.parameters
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    loss = client.stack.model(batch.ids, attention_mask=batch.mask.long(), labels=labels, use_cache=False).loss
    loss.backward()
    optimizer.step()
    assert report.losses == [pytest.approx(loss.item(), rel=1e-5)]
    for key, value in client.adapter.arrays().items():
        np.testing.assert_allclose(trained[key], value, rtol=1e-4, atol=2e-5)


def test_micro_batches_add_up(make_server, make_rows, shake) -> None:
    server = make_server()
    prepared(server, shake)
    rows = make_rows(0, 12)
    whole, _ = run(server, rows, cache=True)
    for size in (1, 3):
        parts, _ = run(server, rows, cache=True, budget=StepBudget(4, 4, 1e-2, clip=0.0, micro_batch=size))
        for key in whole:
            np.testing.assert_allclose(parts[key], whole[key], rtol=1e-4, atol=1e-4)


def test_weights_of_rows_count(make_server, make_rows, shake) -> None:
    """A row of weight 2 is that row twice."""
    server = make_server()
    prepared(server, shake)
    ids = make_rows(0, 2, low=8, high=9).ids
    budget = StepBudget(1, 3, 1e-3, clip=0.0)
    double, _ = run(server, TokenRows.of(ids, [3, 3], [2.0, 1.0]), cache=False, budget=budget)
    twice, _ = run(server, TokenRows.of([*ids, ids[0]], [3, 3, 3]), cache=False, budget=budget)
    for key in double:
        np.testing.assert_allclose(double[key], twice[key], rtol=1e-4, atol=1e-5)


def test_proximal_term_holds_the_adapter(make_server, make_rows, shake) -> None:
    server = make_server()
    prepared(server, shake)
    rows = make_rows(0, 16)
    budget = StepBudget(12, 8, 1e-2, clip=0.0)
    _, free = run(server, rows, cache=True, budget=budget, eps=0.0)
    _, held = run(server, rows, cache=True, budget=budget, eps=1.0)
    assert free.penalties[0] == held.penalties[0] == 0.0
    assert 0 < held.penalties[-1] < 0.5 * free.penalties[-1]


def test_the_loss_falls(make_server, make_rows, shake) -> None:
    server = make_server()
    prepared(server, shake)
    rows = TokenRows.of([[*row[:5], 65] for row in make_rows(0, 12).ids], [5] * 12)
    _, report = run(server, rows, cache=True, budget=StepBudget(30, 12, 2e-2))
    assert report.losses[-1] < 0.4 * report.losses[0]


def test_dropout_is_seeded_and_only_in_training(make_server, make_rows, shake) -> None:
    server = make_server(dropout=0.3)
    prepared(server, shake)
    rows = make_rows(0, 8)
    state = torch.random.get_rng_state()
    one, _ = run(server, rows, cache=True)
    two, _ = run(server, rows, cache=True)
    other, _ = run(server, rows, cache=True, seed=6)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(np.array_equal(one[k], two[k]) for k in one)
    assert any(not np.array_equal(one[k], other[k]) for k in one)
    first, second = server.score("adap-emu", rows), server.score("adap-emu", rows)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_report_counts(make_server, make_rows, shake) -> None:
    server = make_server()
    route = prepared(server, shake)
    rows = make_rows(0, 6)
    _, report = run(server, rows, cache=True)
    assert report.rows == 16
    assert report.computed == 6  # 16 rows in the steps, 6 different ones
    assert report.cache_bytes == int(rows.lengths.sum()) * route.stack.width * 4
    assert len(report.losses) == len(report.penalties) == 4
    assert report.peak_bytes > 1 << 20
    assert report.step_seconds > 0


def test_cosine_over_the_whole_run() -> None:
    budget = StepBudget(4, learning_rate=2.0, offset=4, total=8)
    assert budget.rate(0) == pytest.approx(1.0)
    assert budget.rate(4) == pytest.approx(0.0)
    assert StepBudget(4, learning_rate=2.0).rate(3) == 2.0


def test_loss_that_explodes(make_server, make_rows, shake) -> None:
    server = make_server()
    prepared(server, shake)
    with pytest.raises(LanguageError, match="learning-rate"):
        run(server, make_rows(0, 8), cache=True, budget=StepBudget(20, 4, 1e30, clip=0.0))
    assert not any(p.requires_grad for p in server.adapter.parameters.values())  # put back, whatever ended it


def test_rows_without_an_answer_are_refused() -> None:
    with pytest.raises(LanguageError, match=r"row 1 .* cut away"):
        TokenRows.of([[1, 2, 3], [4, 5]], [2, 2])
    with pytest.raises(LanguageError, match="weights"):
        TokenRows.of([[1, 2]], [1], [0.0])
    with pytest.raises(LanguageError, match="2 rows, 1 prompt"):
        TokenRows.of([[1, 2], [1, 2]], [1])


def test_batches_are_permutations() -> None:
    batches = draw_batches(10, 4, 5, np.random.Generator(np.random.PCG64(0)))
    flat = np.concatenate(batches)
    assert [len(b) for b in batches] == [4] * 5
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert draw_batches(3, 16, 2, np.random.Generator(np.random.PCG64(0)))[1].size == 3

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.split import SplitPlan, kept_count


@pytest.mark.parametrize(
    ("a", "beta", "count", "dropped"),
    [  # the four settings of the published configs, LLaMA-2-7B
        (2, 0.2, 24, (4, 9, 14, 19, 24, 28)),
        (2, 0.5, 15, (*range(1, 26, 2), 27, 28)),
        (4, 0.2, 22, (4, 8, 13, 17, 22, 26)),
        (4, 0.5, 14, (*range(1, 26, 2), 26)),
    ],
)
def test_published_settings(a: int, beta: float, count: int, dropped: tuple[int, ...]) -> None:
    plan = SplitPlan(32, a, beta)
    assert len(plan.kept) == count
    assert plan.dropped == dropped
    assert plan.adapter == tuple(range(32 - a, 32))


@pytest.mark.parametrize(("beta", "count"), [(0.2, 21), (0.5, 13)])
def test_default_model(beta: float, count: int) -> None:
    assert len(SplitPlan(30, 4, beta).kept) == count


@pytest.mark.parametrize(("between", "beta"), [(16, 0.25), (31, 0.25), (48, 0.25), (60, 0.5)])
def test_last_layer_is_kept_where_the_float_form_misses_it(between: int, beta: float) -> None:
    assert SplitPlan(between + 2, 2, beta).kept[-1] == between - 1


@pytest.mark.parametrize(("between", "beta", "count"), [(25, 0.5, 13), (27, 0.5, 14), (28, 0.2, 22), (10, 0.1, 9)])
def test_half_is_rounded_up_never_to_even(between: int, beta: float, count: int) -> None:
    assert kept_count(between, beta) == count


@settings(max_examples=200, deadline=None)
@given(st.integers(3, 100), st.data())
def test_invariants(n: int, data: st.DataObject) -> None:
    a = data.draw(st.integers(1, n - 2))
    head = data.draw(st.integers(0, a - 1))
    beta = data.draw(st.integers(0, 99)) / 100
    between = n - a
    count = kept_count(between, beta)
    if count < 2 and count < between:
        with pytest.raises(LanguageError, match="at least 2"):
            SplitPlan(n, a, beta, head)
        return
    plan = SplitPlan(n, a, beta, head)
    assert len(plan.kept) == count
    assert (plan.kept[0], plan.kept[-1]) == (head, head + between - 1)
    assert len(set(plan.kept)) == count
    assert sorted(plan.kept + plan.adapter + plan.dropped) == list(range(n))
    assert len(plan.adapter) == a
    assert [plan.to_compressed(plan.to_full(i)) for i in range(len(plan.held))] == list(range(len(plan.held)))
    assert SplitPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_every_layer_trained() -> None:
    plan = SplitPlan(6, 6, 0.0)
    assert plan.kept == ()
    assert plan.held == plan.adapter == tuple(range(6))
    assert plan.first_trained == 0


def test_ends() -> None:
    plan = SplitPlan(12, 4, 0.5, head=2)
    assert plan.adapter == (0, 1, 10, 11)
    assert plan.kept == (2, 4, 6, 9)


@pytest.mark.parametrize(
    "arguments", [(4, 0, 0.0), (4, 5, 0.0), (8, 2, 1.0), (8, 2, -0.1), (8, 2, 0.9), (8, 2, 0.2, 2)]
)
def test_bad_plans(arguments: tuple[int, int, float]) -> None:
    with pytest.raises(LanguageError, match="split plan"):
        SplitPlan(*arguments)


def test_layers_outside() -> None:
    plan = SplitPlan(8, 2, 0.5)
    with pytest.raises(LanguageError, match="not in the compressed model"):
        plan.to_compressed(plan.dropped[0])
    with pytest.raises(LanguageError, match="5 layers"):
        plan.to_full(5)


def test_json_of_another_release() -> None:
    data = SplitPlan(8, 2, 0.5).to_json()
    with pytest.raises(LanguageError, match="this release computes"):
        SplitPlan.from_json({**data, "kept": [0, 3, 5]})
    with pytest.raises(LanguageError, match="expected n, a, beta"):
        SplitPlan.from_json({"n": 8})

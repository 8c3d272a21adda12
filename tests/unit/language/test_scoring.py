import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight

from llm_qfl.federation.data.prompts import TextRow
from llm_qfl.federation.data.sums import combine, local_sums
from llm_qfl.federation.data.synthetic import gaussian_rows
from llm_qfl.federation.data.table import Table
from llm_qfl.federation.data.text import make_plan
from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.lora import LoraAdapter, LoraSpec
from llm_qfl.language.route import Route
from llm_qfl.language.scoring import (
    Calibration,
    LabelScorer,
    class_weights,
    divide_by_mean,
    fit_bias_and_scale,
    match_prior,
    written_scores,
)
from llm_qfl.language.stack import Stack
from llm_qfl.language.tiny import byte_tokenizer, tiny_model
from llm_qfl.language.tokens import LabelWords, answer_rows, class_rows, fitting_plan
from llm_qfl.language.training import StepBudget, train_adapter

BYTES = byte_tokenizer()
STACK = Stack(tiny_model(4))
ROUTE = Route(STACK, "tiny", (0, 1), (2, 3), (), ())
TEXTS = ("a", "some words", "", "quite a few more words than that", "b", "xyz")


def rows_of(texts=TEXTS, words=("malignant", "benign")):
    rows = [TextRow.of("T: {row}\nC:", text, "") for text in texts]
    return class_rows(rows, LabelWords.of(words, BYTES), BYTES, limit=80)


@torch.no_grad()
def plainly(prompt: str, answer: str) -> float:
    """Log p(answer | prompt) by hand: token by token, each with a pass of its own, nothing padded."""
    ids, total = BYTES(prompt)["input_ids"], 0.0
    for token in BYTES(answer)["input_ids"]:
        logits = STACK.model(torch.tensor([ids])).logits[0, -1].double().numpy()
        total += logits[token] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        ids = [*ids, token]
    return total


@pytest.mark.parametrize("words", [("malignant", "benign"), ("A", "B", "C"), ("yes", "no", "?", "maybe")])
@pytest.mark.parametrize("cache_of", [None, lambda route, rows: None])
def test_likelihoods_are_those_of_a_plain_loop(words, cache_of):
    scorer = LabelScorer(rows_of(words=words), cache_of=cache_of)
    expected = [[plainly(f"T: {text}\nC: ", word) for word in words] for text in TEXTS]
    np.testing.assert_allclose(scorer.log_likelihoods(ROUTE, batch_size=4), expected, atol=1e-5)
    np.testing.assert_allclose(scorer.log_likelihoods(ROUTE, batch_size=3), expected, atol=1e-5)  # from the cache


def test_boundary_states_may_lie_on_disk(tmp_path):
    expected = LabelScorer(rows_of()).log_likelihoods(ROUTE)
    for _ in range(2):  # the second one finds what the first one wrote
        scorer = LabelScorer(rows_of(), cache_of=lambda route, rows: route.cache(rows, tmp_path))
        np.testing.assert_allclose(scorer.log_likelihoods(ROUTE), expected, atol=1e-6)
    assert len(list(tmp_path.glob("*.bin"))) == 2  # one a word of several tokens


def test_a_route_without_frozen_layers_scores_the_same():
    whole = Route(STACK, "tiny", (), (0, 1, 2, 3), (), ())
    expected = LabelScorer(rows_of()).log_likelihoods(ROUTE)
    np.testing.assert_allclose(LabelScorer(rows_of()).log_likelihoods(whole), expected, atol=1e-6)


@given(st.lists(st.text("abc xyz", max_size=30), min_size=1, max_size=7), st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_a_row_scores_the_same_alone_and_in_any_batch(texts, size):
    together = LabelScorer(rows_of(texts)).log_likelihoods(ROUTE, batch_size=size)
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_allclose(LabelScorer(rows_of([text])).log_likelihoods(ROUTE)[0], row, atol=1e-5)


def test_the_scorer_notices_another_model():
    other = Route(STACK, "tiny", (0,), (2, 3), (), ())
    scorer = LabelScorer(rows_of())
    first, second = scorer.log_likelihoods(ROUTE), scorer.log_likelihoods(other)
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(scorer.log_likelihoods(ROUTE), first)
    third = Route(STACK, "tiny", (1,), (2, 3), (), ())
    assert np.abs(scorer.log_likelihoods(third) - first).max() > 1e-3
    np.testing.assert_array_equal(scorer.log_likelihoods(other), second)


def test_no_rows_and_damaged_weights():
    assert LabelScorer(rows_of(())).log_likelihoods(ROUTE).shape == (0, 2)
    stack = Stack(tiny_model(2))
    with torch.no_grad():
        stack.layers[1].mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(LanguageError, match="not finite"):
        LabelScorer(rows_of()).log_likelihoods(Route(stack, "x", (0,), (1,), (), ()))


def test_probabilities_are_normalised_over_the_classes():
    likelihoods = np.log([[0.1, 0.3], [0.02, 0.02]])
    found = np.exp(Calibration.none(2).log_probabilities(likelihoods))
    np.testing.assert_allclose(found, [[0.25, 0.75], [0.5, 0.5]])
    scores = Calibration.none(2).scores(likelihoods, np.array([1, 1]))
    assert scores.loss == pytest.approx(-(math.log(0.75) + math.log(0.5)) / 2)
    assert scores.accuracy == 0.5  # a tie goes to the first class


def test_dividing_by_the_mean_probability():
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3]])  # mean .8, .2
    calibration = divide_by_mean(np.log(probabilities) - 3)
    expected = probabilities / [0.8, 0.2]
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(calibration.log_probabilities(np.log(probabilities))), expected)
    assert sum(calibration.bias) == pytest.approx(0)


@given(st.integers(0, 2**31), st.integers(2, 5), st.booleans())
@settings(max_examples=25, deadline=None)
def test_matched_priors_have_the_targets_mean(seed, classes, even):
    rng = np.random.default_rng(seed)
    likelihoods = rng.normal(size=(40, classes)) * 2 - rng.uniform(0, 12, classes)
    target = np.full(classes, 1 / classes) if even else rng.dirichlet(np.full(classes, 5.0)) * 0.9 + 0.1 / classes
    calibration = match_prior(likelihoods, None if even else target)
    np.testing.assert_allclose(np.exp(calibration.log_probabilities(likelihoods)).mean(axis=0), target, atol=1e-5)


def test_fitted_biases_and_scale_are_those_of_a_logistic_regression():
    rng = np.random.default_rng(0)
    likelihoods = rng.normal(size=(300, 2)) * 1.5 - [0, 4]
    difference = likelihoods[:, 1] - likelihoods[:, 0]
    labels = (rng.random(300) < 1 / (1 + np.exp(-(0.7 * difference + 2)))).astype(np.intp)
    found = fit_bias_and_scale(likelihoods, labels)
    reference = LogisticRegression(C=np.inf, tol=1e-8).fit(difference[:, None], labels)
    assert found.scale == pytest.approx(reference.coef_[0, 0], rel=1e-3)
    assert found.bias[1] - found.bias[0] == pytest.approx(reference.intercept_[0], rel=1e-3)
    better = found.scores(likelihoods, labels).loss
    assert better < Calibration.none(2).scores(likelihoods, labels).loss
    weights = np.array([3.0, 0.5])
    weighted = fit_bias_and_scale(likelihoods, labels, weights)
    reference.fit(difference[:, None], labels, weights[labels])
    assert weighted.scale == pytest.approx(reference.coef_[0, 0], rel=1e-3)
    assert weighted.bias[1] - weighted.bias[0] == pytest.approx(reference.intercept_[0], rel=1e-3)
    assert weighted.scale != pytest.approx(found.scale, rel=1e-3)


def test_fits_that_have_no_answer_are_refused():
    with pytest.raises(LanguageError, match="at least one row"):
        divide_by_mean(np.zeros((0, 2)))
    with pytest.raises(LanguageError, match="sum to 1"):
        match_prior(np.zeros((3, 2)), np.array([0.5, 0.6]))
    with pytest.raises(LanguageError, match="counts"):
        fit_bias_and_scale(np.zeros((3, 2)), np.array([1, 1, 1]))


def test_class_weights_are_scikit_learns():
    y = np.repeat([0, 1, 2], [10, 4, 1])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=y)
    np.testing.assert_allclose(class_weights(np.array([10, 4, 1])), expected)
    np.testing.assert_allclose(class_weights(np.array([8, 0, 2])), [10 / 16, 1, 10 / 4])


def test_written_scores_keep_the_end_token_apart():
    end = BYTES.eos_token_id
    rows = answer_rows([TextRow.of("{row}\n", "ask", "reply"), TextRow.of("{row}\n", "a", "to")], BYTES, limit=30)
    scores = written_scores(ROUTE, rows, end)
    np.testing.assert_allclose(scores.text, [-plainly("ask\n", "reply"), -plainly("a\n", "to")], atol=1e-5)
    assert scores.tokens.tolist() == [5, 2]
    assert scores.text_nll == pytest.approx(scores.text.sum() / 7)
    logits = STACK.model(torch.tensor([BYTES("a\nto")["input_ids"]])).logits[0, -1].double().detach().numpy()
    assert scores.end[1] == pytest.approx(-np.log(softmax(logits)[end]), abs=1e-5)
    assert scores.nll == pytest.approx((scores.text.sum() + scores.end.sum()) / 9)
    unended = written_scores(ROUTE, answer_rows([TextRow.of("a", "", "bc")], BYTES, limit=9, end=False), end)
    assert np.isnan(unended.end[0])
    assert unended.end_nll is None
    assert unended.nll == unended.text_nll


@pytest.mark.slow
def test_the_default_model_scores_as_transformers_does():
    from llm_qfl.federation.settings import default_folder
    from llm_qfl.language.models import load_base

    base = load_base("smollm2-135m", default_folder() / "models")
    words = LabelWords.of(("negative", "neutral", "positive"), base.tokenizer)
    texts = ("I love this so much, best day ever!", "The meeting starts at noon.", "Worst service ever. I hate it.")
    rows = class_rows([TextRow.of("Tweet: {row}\nSentiment:", t, "") for t in texts], words, base.tokenizer, limit=64)
    asked = [base.tokenizer(f"Tweet: {text}\nSentiment:", return_tensors="pt") for text in texts]
    with torch.no_grad():
        expected = [torch.log_softmax(base.model(**question).logits[0, -1], 0) for question in asked]
    stack = Stack(base.model)
    found = LabelScorer(rows).log_likelihoods(Route(stack, base.digest, tuple(range(26)), tuple(range(26, 30)), (), ()))
    tokens = [base.tokenizer(f" {word}")["input_ids"][0] for word in words.words]
    np.testing.assert_allclose(found, [row[tokens].numpy() for row in expected], atol=1e-3)
    assert found[0].argmax() == 2
    assert found[2].argmax() == 0


@pytest.mark.parametrize("permuted", [False, True])
def test_what_tuning_learns_from_rows_of_columns_is_what_the_scorer_sees(permuted):
    rng = np.random.default_rng(5)
    values, labels = gaussian_rows(rng, 260, columns=2, distance=5.0)
    table = Table("columns", ("f0", "f1"), labels, ("no", "yes"), values=values)
    sums = combine([("a", local_sums(values, labels, classes=("no", "yes"), reduction="discriminant", min_rows=1))])
    words = LabelWords.of(("no", "yes"), BYTES)
    plan = fitting_plan(make_plan("columns", table.columns, ("no", "yes"), sums), words, BYTES, limit=60)
    train, held = np.arange(200), np.arange(200, 260)
    rows = {
        name: class_rows(plan.prompts(plan.row_texts(table, values, part)), words, BYTES, limit=60)
        for name, part in (("train", train), ("held", held))
    }
    learned = rng.permutation(labels[train]) if permuted else labels[train]
    stack = Stack(tiny_model(3))
    update = LoraAdapter(stack, "adapter", {1: 1, 2: 2}, LoraSpec(4, 8), seed=1)
    route = Route(stack, "tiny", (0,), (1, 2), (update,), (update,))
    scorer, none = LabelScorer(rows["held"]), Calibration.none(2)
    before = none.scores(scorer.log_likelihoods(route), labels[held])
    answered = rows["train"].answered(learned, class_weights(np.bincount(learned)))
    budget = StepBudget(60, 20, learning_rate=1e-2)
    train_adapter(route, update, answered, budget, 0.0, seed=1, cache=route.cache(answered))
    after = none.scores(scorer.log_likelihoods(route), labels[held])
    if permuted:
        assert abs(after.balanced_accuracy - 0.5) < 0.2
    else:
        assert after.balanced_accuracy > 0.85
        assert after.loss < before.loss - 0.2

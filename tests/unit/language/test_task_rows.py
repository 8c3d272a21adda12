"""What the task makes of rows, against tokens written out by hand, scikit-learn's weights, and softmax."""

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.utils.class_weight import compute_class_weight

from llm_qfl.federation.data.text import TextPlan
from llm_qfl.language.scoring import Calibration
from llm_qfl.language.task import TaskView
from llm_qfl.language.tiny import byte_tokenizer

BYTES = byte_tokenizer()
TEXTS = ("ab", "some words", "c", "dd", "e f")
LABELS = np.array([0, 1, 1, 1, 1])


def tokens(text: str) -> list[int]:
    return BYTES(text)["input_ids"]


@pytest.fixture
def view_of(make_config):
    def make(**changes: object) -> TaskView:
        return TaskView.of(TextPlan("text", "Q: {row}\nA:", ("no", "yes")), make_config(**changes), BYTES)

    return make


def test_training_rows_end_in_their_label_and_weigh_as_scikit_learn_says(view_of) -> None:
    rows = view_of().training(TEXTS, LABELS)
    expected = [tokens(f"Q: {text}\nA: {('no', 'yes')[y]}") for text, y in zip(TEXTS, LABELS, strict=True)]
    assert [row.tolist() for row in rows.ids] == expected
    assert rows.prompt.tolist() == [len(tokens(f"Q: {text}\nA: ")) for text in TEXTS]
    by_class = compute_class_weight("balanced", classes=np.arange(2), y=LABELS)
    np.testing.assert_allclose(rows.weight, by_class[LABELS])
    np.testing.assert_allclose(view_of(balance=False).training(TEXTS, LABELS).weight, 1.0)


def test_public_rows_are_questions_or_requests_with_classes_that_are_drawn(view_of) -> None:
    """Else the emulator would never be aligned on a request or an end token."""
    rows = view_of().public(TEXTS, seed=0)
    assert [row.tolist() for row in rows.ids] == [tokens(f"Q: {text}\nA: ") for text in TEXTS]
    answered = view_of().calibration_rows(TEXTS, seed=0)
    assert [row.tolist() for row in answered.ids] == [tokens(f"Q: {text}\nA: no") for text in TEXTS]
    texts, end, view = TEXTS * 8, [BYTES.eos_token_id], view_of(task="generation", prompt="{label}:")
    written = view.public(texts, seed=0)
    forms = [[tokens(f"{word}:{text}") + end for word in ("no", "yes")] for text in texts]
    drawn = [form.index(row.tolist()) for form, row in zip(forms, written.ids, strict=True)]
    assert 0.2 < np.mean(drawn) < 0.8
    assert written.digest() == view.public(texts, seed=0).digest() == view.calibration_rows(texts, seed=0).digest()
    assert written.digest() != view.public(texts, seed=1).digest()
    np.testing.assert_allclose(written.weight, 1.0)  # nothing is known of the classes
    plain = view.public(TEXTS[:2], seed=0, instructions=True)
    assert [row.tolist() for row in plain.ids] == [tokens(text) for text in TEXTS[:2]]


def test_instructions_are_prompts_and_their_answers_are_learned(view_of) -> None:
    asked, answers = ("say hi", "add"), ("hi", "2 is it")
    rows = view_of(task="generation").training(asked, LABELS[:2], answers)
    end = [BYTES.eos_token_id]
    expected = [tokens(f"{prompt}\n{answer}") + end for prompt, answer in zip(asked, answers, strict=True)]
    assert [row.tolist() for row in rows.ids] == expected
    assert rows.prompt.tolist() == [len(tokens(f"{prompt}\n")) for prompt in asked]
    held = view_of(task="generation", prompt="Q {row}: ").held_out(asked, LABELS[:2], answers)
    expected = [tokens(f"Q {prompt}: {answer}") + end for prompt, answer in zip(asked, answers, strict=True)]
    assert [row.tolist() for row in held.written.ids] == expected


def test_a_long_instruction_keeps_half_of_its_tokens_beside_a_long_answer(view_of) -> None:
    view = view_of(task="generation", prompt="{row}:", max_tokens=20)
    for prompt, answer in (("p" * 30, "a" * 30), ("p" * 4, "a" * 30), ("p" * 30, "a" * 4)):
        (row,) = view.training((prompt,), LABELS[:1], (answer,)).ids
        assert len(row) == 20
        text = BYTES.decode(row.tolist())
        assert text.count("p") >= min(len(prompt), 8)
        assert text.count("a") >= min(len(answer), 8)


def test_plain_scores_come_first_and_calibrated_ones_have_the_bias(view_of, make_server, shake) -> None:
    server = make_server()
    shake(server.adapter, 1)
    held = view_of().held_out(TEXTS, LABELS)
    route = server.route("adap-fu")
    likelihoods = held.scorer.log_likelihoods(route)
    bias = np.array([4.0, -4.0])
    plain, calibrated = held.both(route, Calibration(tuple(bias)))
    for found, moved in ((plain, likelihoods), (calibrated, likelihoods + bias)):
        expected = -log_softmax(moved, axis=1)[np.arange(5), LABELS].sum()
        assert found.loss_sum == pytest.approx(expected, rel=1e-5)
        assert found.correct.sum() == (moved.argmax(axis=1) == LABELS).sum()
    assert calibrated.loss_sum > plain.loss_sum + 5

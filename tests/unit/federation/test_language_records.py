"""The language model's part of messages: it survives the wire, and a bad one is a problem of its own."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llm_qfl.federation import records
from llm_qfl.federation.errors import RecordError
from llm_qfl.federation.records import LanguageTask, ModelOffer
from llm_qfl.federation.records.language import (
    put_answer,
    put_offer,
    put_scores,
    put_task,
    put_teacher,
    read_answer,
    read_language_scores,
    read_offer,
    read_task,
    read_teacher,
)
from llm_qfl.federation.types import GlobalState, LanguageAnswer, Scores

SCORES = Scores(1.25, np.array([2, 1]), np.array([1, 1]))
LIBRARIES = {"torch": "2.13.0", "transformers": "5.23.0"}
MATRICES = {
    "adapter/3/q/A": np.array([[1.0, 2.0]], np.float32),
    "adapter/3/q/B": np.array([[0.5]], np.float16),
    "emulator/0/q/A": np.array([[3, -4]], np.int8),
}


def task(**changes):
    fields = {
        "source": "/m",
        "sha256": "a" * 64,
        "libraries": LIBRARIES,
        "arrays": MATRICES,
        "adapter_digest": "b",
        "emulator_digest": "c",
        "first_digest": "d",
        "train": True,
        "score": False,
        "offset": 8,
        "total": 24,
    }
    return LanguageTask(**{**fields, **changes})


def answer(**changes):
    fields = {
        "arrays": MATRICES,
        "adapter_digest": "b",
        "num_examples": 7,
        "steps": 2,
        "received": SCORES,
        "trained": SCORES,
        "train_loss_first": 1.0,
        "train_loss_last": 0.5,
        "computed": 4,
        "fill_seconds": 0.1,
        "step_seconds": 0.2,
        "seconds": 0.4,
        "peak_bytes": 10**9,
        "peak_exact": False,
        "frozen_dtype": "bfloat16",
    }
    return LanguageAnswer(**{**fields, **changes})


def same_arrays(one, two):
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert two[key].dtype == value.dtype
        np.testing.assert_array_equal(two[key], value)


@given(matrix=arrays(np.float32, (2, 3), elements=st.floats(-1e6, 1e6, width=32)), offset=st.integers(0, 10**6))
def test_a_task_s_part_survives_the_wire(matrix, offset):
    sent = task(arrays={"adapter/1/q/A": matrix}, offset=offset, total=offset + 8, teach=offset % 2 == 0)
    state = GlobalState(1, np.zeros(1), ("t",), {})
    back = records.decode_task(
        records.encode_task(records.Task("a", state, None, None, "d", {}, language=sent))
    ).language
    same_arrays(sent.arrays, back.arrays)
    for name in ("source", "sha256", "libraries", "adapter_digest", "emulator_digest", "first_digest", "train",
                 "score", "teach", "offset", "total"):  # fmt: skip
        assert getattr(back, name) == getattr(sent, name)


def test_a_task_without_a_language_model_has_no_part():
    content = records.encode_task(records.Task("a", GlobalState(1, np.zeros(1), ("t",), {}), None, None, "d", {}))
    assert records.decode_task(content).language is None
    assert records.language_bytes(content) == 0
    assert read_offer(records.encode_query("a", {})) is None


def test_an_offer_survives_the_wire():
    offer = ModelOffer("run", "https://x/models/a", "a" * 64, LIBRARIES, MATRICES, "e")
    back = read_offer(records.encode_query("a", {}, offer))
    same_arrays(offer.arrays, back.arrays)
    assert (back.run, back.source, back.sha256, back.libraries) == ("run", offer.source, "a" * 64, LIBRARIES)
    assert back.emulator_digest == "e"


def test_an_answer_survives_the_wire_and_its_bytes_are_counted():
    content = RecordDict()
    put_answer(content, answer(), "")
    back, problem = read_answer(content)
    assert problem == ""
    same_arrays(MATRICES, back.arrays)
    for name in ("num_examples", "steps", "train_loss_first", "train_loss_last", "computed", "fill_seconds",
                 "step_seconds", "seconds", "peak_bytes", "peak_exact", "frozen_dtype", "adapter_digest"):  # fmt: skip
        assert getattr(back, name) == getattr(answer(), name)
    assert back.trained.loss == pytest.approx(1.25 / 3)
    assert back.bytes_up == records.language_bytes(content) == records.content_bytes(content)


def test_the_scores_of_an_adapter_that_was_not_tuned_survive_the_wire():
    content = RecordDict()
    put_teacher(content, SCORES)
    found, problem = read_teacher(content)
    assert problem == ""
    assert (found.loss_sum, list(found.rows), list(found.correct)) == (
        SCORES.loss_sum,
        list(SCORES.rows),
        list(SCORES.correct),
    )
    assert read_answer(content) == (None, "")
    del content["language-metrics"]
    found, problem = read_teacher(content)
    assert found is None
    assert "language-metrics" in problem
    assert read_teacher(RecordDict()) == (None, "")


def test_a_problem_is_passed_on_and_bounded():
    content = RecordDict()
    put_answer(content, None, "x" * 9999)
    assert read_answer(content) == (None, "x" * 500)
    assert read_answer(RecordDict()) == (None, "")


def _pickled(content):
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.array([object()], object), allow_pickle=True)
    content["language"]["adapter/3/q/A"] = Array("object", (1,), "numpy.ndarray", buffer.getvalue())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c: c["language"].update({"x": Array(np.zeros(2))}), "expected float32, float16 or int8, got float64"),
        (lambda c: c["language"].update({"x": Array(np.array([np.nan], np.float32))}), "not finite"),
        (_pickled, "cannot be read"),
        (lambda c: c.update({"language": ConfigRecord()}), "expected an ArrayRecord"),
        (lambda c: c["language-metrics"].update({"num-examples": 0}), "at least 1"),
        (lambda c: c["language-metrics"].update({"train-loss-last": float("inf")}), "finite number"),
        (lambda c: c["language-metrics"].update({"received-correct": [3, 3]}), "more correct answers than rows"),
        (lambda c: c["language-metrics"].pop("received-rows"), "received-rows: expected 0 counts"),
        (lambda c: c["language-metrics"].update({"received-rows": 5}), "TypeError"),
        (lambda c: c.pop("language-metrics"), "expected a MetricRecord"),
        (lambda c: c["language-meta"].update({"adapter-digest": 4}), "expected a string"),
    ],
)
def test_a_bad_answer_is_a_reason_not_an_exception(change, text):
    content = RecordDict()
    put_answer(content, answer(), "")
    change(content)
    back, problem = read_answer(content)
    assert back is None
    assert text in problem


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["language-meta"].update({"train": "yes"}),
        lambda c: c["language-meta"].update({"offset": -1}),
        lambda c: c["language-meta"].pop("sha256"),
        lambda c: c.pop("language"),
        lambda c: c.update({"language": ArrayRecord({"x": Array(np.zeros(1))})}),
    ],
)
def test_a_bad_task_is_refused(change):
    content = RecordDict()
    put_task(content, task())
    assert read_task(content) is not None
    change(content)
    with pytest.raises(RecordError):
        read_task(content)


def test_an_offer_without_a_source_is_refused():
    content = RecordDict()
    put_offer(content, ModelOffer("run", "/m", "a", LIBRARIES))
    del content["language-meta"]["source"]
    with pytest.raises(RecordError, match="source"):
        read_offer(content)


def test_scores_survive_the_wire():
    scores = {route: {"validation": SCORES, "test": SCORES + SCORES} for route in ("compressed-zero-shot", "adap-emu")}
    content = RecordDict()
    put_scores(content, scores, "")
    back, problem = read_language_scores(content, 2)
    assert problem == ""
    assert back["adap-emu"]["test"].loss_sum == 2.5
    assert read_language_scores(RecordDict(), 2) == ({}, "")
    back, problem = read_language_scores(content, 3)
    assert back == {}
    assert "expected 3 counts" in problem

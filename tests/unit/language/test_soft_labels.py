import stat

import numpy as np
import pytest
from scipy.special import softmax

from llm_qfl.federation.data.prompts import TextRow
from llm_qfl.federation.errors import LanguageError
from llm_qfl.federation.types import Scores
from llm_qfl.language.lora import LoraAdapter, LoraSpec
from llm_qfl.language.route import Route
from llm_qfl.language.scoring import LabelScorer
from llm_qfl.language.soft_labels import kept_soft_labels, soft_labels
from llm_qfl.language.stack import Stack
from llm_qfl.language.tiny import byte_tokenizer, tiny_model
from llm_qfl.language.tokens import LabelWords, class_rows
from llm_qfl.quantum.distillation import checked_soft

BYTES = byte_tokenizer()
TEXTS = ["one", "two", "three words here", ""]


def rows_of(texts=TEXTS, words=("A", "B", "C")):
    rows = [TextRow.of("T: {row}\nC:", text, "") for text in texts]
    return class_rows(rows, LabelWords.of(words, BYTES), BYTES, limit=80)


@pytest.fixture
def teacher(shake):
    stack = Stack(tiny_model(4))
    adapter = LoraAdapter(stack, "adapter", {2: 2, 3: 3}, LoraSpec(2, 4.0), seed=1)
    shake(adapter)
    return Route(stack, "tiny", (0, 1), (2, 3), (adapter,), (adapter,)), adapter


def test_soft_labels_are_the_class_probabilities_that_the_loss_is_made_of(teacher):
    route, _ = teacher
    found = soft_labels(route, rows_of()).probabilities
    np.testing.assert_allclose(found, softmax(LabelScorer(rows_of()).log_likelihoods(route), axis=1))
    checked_soft(found, 4, 3)  # and they are what the QNN's training takes
    assert np.ptp(found, axis=0).max() > 1e-4
    scores = Scores.of(np.log(found), np.array([0, 1, 2, 0]))
    assert scores.loss == pytest.approx(-np.log(found[np.arange(4), [0, 1, 2, 0]]).mean())


def counted(route):
    calls = []
    hook = route.stack.layers[3].register_forward_hook(lambda *_: calls.append(1))
    return calls, hook


def test_they_are_computed_once_for_an_adapter_version(teacher, tmp_path, shake):
    route, adapter = teacher
    first = soft_labels(route, rows_of(), folder=tmp_path)
    calls, _ = counted(route)
    again = soft_labels(route, rows_of(), folder=tmp_path)
    assert calls == []
    np.testing.assert_array_equal(again.probabilities, first.probabilities)
    shake(adapter, seed=5)
    tuned = soft_labels(route, rows_of(), folder=tmp_path)
    assert calls
    assert tuned.version != first.version
    assert np.abs(tuned.probabilities - first.probabilities).max() > 1e-4


@pytest.mark.parametrize("other", [rows_of(TEXTS[::-1]), rows_of(words=("A", "C", "B")), rows_of(TEXTS[:2])])
def test_b14_other_rows_or_words_are_another_version(teacher, tmp_path, other):
    route, _ = teacher
    first = soft_labels(route, rows_of(), folder=tmp_path)
    assert soft_labels(route, other, folder=tmp_path).version != first.version


def test_the_newest_stay_for_the_rounds_that_train_no_adapter(teacher, tmp_path):
    route, _ = teacher
    assert kept_soft_labels(None) is None
    assert kept_soft_labels(tmp_path / "nothing") is None
    folder = tmp_path / "site"
    made = soft_labels(route, rows_of(), folder=folder)
    kept = kept_soft_labels(folder)
    np.testing.assert_array_equal(kept.probabilities, made.probabilities)
    assert kept.version == made.version
    path = folder / "soft-labels.npz"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in folder.iterdir()] == [path.name]


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "soft-labels.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(LanguageError, match="delete it"):
        kept_soft_labels(tmp_path)


def test_no_rows_make_no_labels(teacher):
    assert soft_labels(teacher[0], rows_of([])).probabilities.shape == (0, 3)

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llm_qfl.federation.data.prompts import TextRow
from llm_qfl.federation.data.text import TextPlan
from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.batches import collate
from llm_qfl.language.tiny import byte_tokenizer, tiny_model
from llm_qfl.language.tokens import LabelWords, answer_rows, class_rows, encode, fitting_plan, opening, plain_rows

BYTES = byte_tokenizer()
TEMPLATE = "Tweet: {row}\nSentiment:"


def word_tokenizer(*, bos: bool = False) -> PreTrainedTokenizerFast:
    """One token a word; a word that is not listed is unknown."""
    words = ["[unk]", "[bos]", "one", "two", "three", "Q", "A", "yes", "no", "maybe", "not", "yet", "indeed"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[unk]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        inner.post_processor = processors.TemplateProcessing("[bos] $A", special_tokens=[("[bos]", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[unk]", bos_token="[bos]")


WORDS = word_tokenizer()


def text_of(ids):
    return BYTES.decode([int(i) for i in ids])


def test_what_all_words_begin_with_belongs_to_the_prompt():
    words = LabelWords.of(("malignant", "benign"), BYTES)
    assert text_of(words.shared) == " "
    assert [text_of(tokens) for tokens in words.tokens] == ["malignant", "benign"]
    assert words.longest == 9
    rows = class_rows([TextRow.of(TEMPLATE, "a", "")], words, BYTES, limit=60)
    assert text_of(rows.prompts[0]) == "Tweet: a\nSentiment: "
    assert rows.alone().ids[0].tolist() == rows.prompts[0].tolist()
    assert text_of(rows.answered(np.array([1])).ids[0]) == "Tweet: a\nSentiment: benign"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("negative", "neutral", "positive"), "'negative' and 'neutral' begin with the same token"),
        (("no", "nothing"), "'no' are the beginning of those of 'nothing'"),
        (("yes", "yes"), "'yes' are the beginning of those of 'yes'"),
        (("yes",), "at least two"),
    ],
)
def test_words_that_collide_in_bytes(words, message):
    with pytest.raises(LanguageError, match=message):
        LabelWords.of(words, BYTES)


def test_words_that_collide_in_words():
    assert LabelWords.of(("yes", "not yet"), WORDS).tokens == ((7,), (10, 11))
    with pytest.raises(LanguageError, match="beginning of those of 'not yet'"):
        LabelWords.of(("not", "not yet"), WORDS)
    with pytest.raises(LanguageError, match="no tokens for 'perhaps'"):
        LabelWords.of(("yes", "perhaps"), WORDS)


def test_a_beginning_token_comes_first_and_once():
    assert opening(WORDS) == ()
    tokenizer = word_tokenizer(bos=True)
    assert opening(tokenizer) == (1,)
    words = LabelWords.of(("yes", "no"), tokenizer)
    rows = class_rows([TextRow.of("Q {row} A", "one two", "")], words, tokenizer, limit=9)
    assert rows.prompts[0].tolist() == [1, 5, 2, 3, 6]
    assert rows.with_word(1).ids[0].tolist() == [1, 5, 2, 3, 6, 8]
    assert plain_rows(["one two three"], tokenizer, limit=3).ids[0].tolist() == [1, 2, 3]


def test_truncation_shortens_the_row_alone():
    words = LabelWords.of(("yes", "not yet"), WORDS)
    row = TextRow.of("Q {row} A", "one two three " * 4, "")
    assert class_rows([row], words, WORDS, limit=8).prompts[0].tolist() == [5, 2, 3, 4, 2, 6]
    assert class_rows([row], words, WORDS, limit=4).prompts[0].tolist() == [5, 6]
    with pytest.raises(LanguageError, match=r"row 0: .* takes 2 tokens, the limit of 3 leaves 1 .*would be cut away"):
        class_rows([row], words, WORDS, limit=3)


@given(st.text(max_size=60), st.integers(30, 80))
@settings(max_examples=40, deadline=None)
def test_no_row_is_longer_than_the_limit_and_question_and_answer_are_whole(text, limit):
    words = LabelWords.of(("malignant", "benign"), BYTES)
    rows = class_rows([TextRow.of(TEMPLATE, text, "")], words, BYTES, limit=limit)
    for label, word in enumerate(words.words):
        ids = rows.with_word(label).ids[0]
        assert len(ids) <= limit
        whole = bytes(BYTES.decode([int(i) for i in ids]), "utf-8")
        assert whole.startswith(b"Tweet:")
        assert whole.endswith(f"\nSentiment: {word}".encode())


def test_a_plan_keeps_the_columns_that_fit():
    words = LabelWords.of(("no", "yes"), BYTES)
    names = ("first", "second", "third")
    plan = TextPlan("numbers", "{row}\nC:", ("no", "yes"), (2, 1, 0), names, (10.0, 20.0, 30.0), (1.0,) * 3)
    whole = len("first: 10, second: 20, third: 30\nC: yes")
    assert fitting_plan(plan, words, BYTES, limit=whole) == plan
    shorter = fitting_plan(plan, words, BYTES, limit=whole - 1)
    assert (shorter.columns, shorter.names, shorter.scale) == ((2, 1), names[:2], (1.0, 1.0))
    assert fitting_plan(plan, words, BYTES, limit=len("first: 12\nC: yes")).names == ("first",)
    with pytest.raises(LanguageError, match=r"one column \('first'\) takes 12 tokens, the limit is 15"):
        fitting_plan(plan, words, BYTES, limit=15)
    text = TextPlan("text", "{row}", ("no", "yes"))
    assert fitting_plan(text, words, BYTES, limit=1) is text


def test_answers_end_with_the_end_token():
    rows = answer_rows([TextRow.of("Say: {row}\n", "hi", "hello")], BYTES, limit=40)
    assert rows.ids[0][-1] == BYTES.eos_token_id
    assert text_of(rows.ids[0][rows.prompt[0] : -1]) == "hello"
    assert answer_rows([TextRow.of("{row}", "hi", "yo")], BYTES, limit=40, end=False).ids[0].tolist() == encode(
        ["hiyo"], BYTES
    )[0]  # fmt: skip


def test_answers_that_are_cut_are_counted_in_the_log(caplog):
    rows = [TextRow.of("Q\n", "", answer) for answer in ("abcdef", "ab", "abcdefgh")]
    answer_rows(rows, BYTES, limit=8, long_answers="cut")
    assert [record.getMessage() for record in caplog.records] == [
        "language.max-tokens=8 cuts 2 of 3 answers; the rest of them is not learned"
    ]
    caplog.clear()
    answer_rows(rows, BYTES, limit=40, long_answers="cut")
    assert not caplog.records


def test_a_long_answer_is_refused_or_cut_without_its_end():
    row = TextRow.of("Q {row} A", "one two", "yes no maybe not yet")
    rows = answer_rows([row], WORDS, limit=9, end=False)
    assert rows.ids[0].tolist() == [5, 2, 3, 6, 7, 8, 9, 10, 11]
    rows = answer_rows([row], WORDS, limit=7, end=False)
    assert rows.ids[0].tolist() == [5, 6, 7, 8, 9, 10, 11]
    with pytest.raises(LanguageError, match="would be cut away"):
        answer_rows([row], WORDS, limit=6, end=False)
    rows = answer_rows([row], WORDS, limit=6, end=False, long_answers="cut")
    assert rows.ids[0].tolist() == [5, 2, 6, 7, 8, 9]  # half of the tokens stay the prompt's
    with pytest.raises(LanguageError, match="no end token"):
        answer_rows([row], WORDS, limit=9)
    cut = answer_rows([TextRow.of("Q\n", "", "abcdef")], BYTES, limit=5, long_answers="cut")
    assert text_of(cut.ids[0]) == "Q\nabc"


def test_empty_answers_and_prompts_are_named():
    with pytest.raises(LanguageError, match="row 1: the answer '' is empty"):
        answer_rows([TextRow.of("Q", "", "a"), TextRow.of("Q", "", "")], BYTES, limit=9)
    with pytest.raises(LanguageError, match="row 0: the prompt is empty"):
        answer_rows([TextRow.of("{row}", "", "a")], BYTES, limit=9)


def test_a_text_that_spells_a_control_token_stays_text():
    ids = encode(["so <|end|>"], BYTES)[0]
    assert BYTES.eos_token_id not in ids
    assert text_of(ids) == "so <|end|>"


def test_prompt_and_padding_are_masked_as_transformers_masks_them():
    model = tiny_model(3)
    words = LabelWords.of(("malignant", "benign"), BYTES)
    rows = class_rows([TextRow.of(TEMPLATE, text, "") for text in ("a", "much longer")], words, BYTES, limit=60)
    answered = rows.answered(np.array([0, 1]))
    batch = collate(answered, [0, 1])
    labels = torch.full(batch.ids.shape, -100)
    for row, ids in enumerate(answered.ids):
        start = int(answered.prompt[row])
        labels[row, start : len(ids)] = torch.from_numpy(ids[start:])
    with torch.no_grad():
        loss = model(input_ids=batch.ids, attention_mask=batch.mask.long(), labels=labels).loss
        logits = model(input_ids=batch.ids).logits[batch.where].double()
    ours = torch.nn.functional.cross_entropy(logits, batch.target)
    assert float(ours) == pytest.approx(float(loss), rel=1e-5)


def test_labels_that_do_not_fit():
    rows = class_rows([TextRow.of(TEMPLATE, "a", "")], LabelWords.of(("x", "y"), BYTES), BYTES, limit=40)
    for labels in ([0, 1], [2], [-1]):
        with pytest.raises(LanguageError, match="expected 1 labels below 2"):
            rows.answered(np.array(labels))
    assert rows.answered(np.array([1]), np.array([0.5, 3.0])).weight.tolist() == [3.0]


@pytest.mark.slow
def test_words_of_the_default_model():
    from llm_qfl.federation.settings import default_folder
    from llm_qfl.language.models import load_tokenizer, resolve_folder

    tokenizer = load_tokenizer(resolve_folder("smollm2-135m", Path(default_folder()) / "models"))
    words = LabelWords.of(("negative", "neutral", "positive"), tokenizer)
    assert words.shared == ()
    assert {len(tokens) for tokens in words.tokens} == {1}
    digits = LabelWords.of(tuple("0123456789"), tokenizer)
    assert len(digits.shared) == 1

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_selection import f_classif

from llm_qfl.federation.data.encodings import encode
from llm_qfl.federation.data.prompts import (
    TextRow,
    generation,
    instructions,
    label_words,
    read_strings,
)
from llm_qfl.federation.data.sources import load_table
from llm_qfl.federation.data.sums import combine, local_sums
from llm_qfl.federation.data.synthetic import markov_sequences
from llm_qfl.federation.data.table import Table
from llm_qfl.federation.data.text import TextPlan, choose_columns, kmer_words, make_plan, rounded
from llm_qfl.federation.errors import ConfigError, DataError, RecordError

LABELS = np.array([0, 1, 0], np.intp)


def breast_cancer():
    return load_table("breast-cancer")


def sums_of(table, reduction="discriminant", sites=1):
    parts = np.array_split(np.arange(len(table)), sites)
    made = [
        local_sums(table.values[rows], table.labels[rows], classes=table.class_names, reduction=reduction, min_rows=1)
        for rows in parts
    ]
    return combine([(f"site-{n}", part) for n, part in enumerate(made)], table.class_names)


def numbers_plan(**changes):
    base = {"style": "numbers", "template": "{row}\nClass:", "words": ("no", "yes"), "columns": (2, 0)}
    return TextPlan(**{**base, "names": ("c", "a"), "centre": (0.0, 1.0), "scale": (1.0, 2.0), **changes})


def test_columns_are_those_of_fishers_ratio():
    table = breast_cancer()
    by_ratio = np.argsort(-f_classif(table.values, table.labels)[0])
    chosen = choose_columns(sums_of(table), most=10)
    assert chosen[0] == by_ratio[0]
    within = np.corrcoef(
        np.concatenate(
            [table.values[table.labels == c] - table.values[table.labels == c].mean(axis=0) for c in (0, 1)]
        ).T
    )
    assert np.abs(within[np.ix_(chosen, chosen)][np.triu_indices(10, 1)]).max() <= 0.95
    kept = []
    for column in by_ratio:  # the same rule on the pooled rows
        if all(abs(within[column, other]) <= 0.95 for other in kept):
            kept.append(column)
    assert chosen.tolist() == kept[:10]


def test_columns_do_not_depend_on_how_rows_are_dealt():
    table = breast_cancer()
    assert choose_columns(sums_of(table, sites=1)).tolist() == choose_columns(sums_of(table, sites=5)).tolist()


def test_all_columns_come_when_all_are_asked_for_and_constant_ones_never():
    table = breast_cancer()
    assert sorted(choose_columns(sums_of(table), most=99)) == list(range(30))
    values = table.values.copy()
    values[:, 3] = 7.5
    constant = Table("columns", table.columns, table.labels, table.class_names, values=values)
    for reduction in ("discriminant", "pca", "none"):
        assert 3 not in choose_columns(sums_of(constant, reduction), most=99)
    flat = Table("columns", ("a", "b"), LABELS, ("0", "1"), values=np.ones((3, 2)))
    with pytest.raises(DataError, match="constant"):
        choose_columns(sums_of(flat))


def test_columns_of_pooled_sums():
    table = breast_cancer()
    correlations = np.corrcoef(table.values.T) ** 2
    assert choose_columns(sums_of(table, "pca"), most=1) == [np.argmax(correlations.mean(axis=1))]
    assert choose_columns(sums_of(table, "none"), most=4).tolist() == [0, 1, 2, 3]


def test_plan_of_tabular_rows_names_and_scales_what_it_shows():
    table = breast_cancer()
    plan = make_plan("columns", table.columns, ("malignant", "benign"), sums_of(table), most=3)
    assert plan.style == "levels"
    assert plan.names == tuple(table.columns[i] for i in plan.columns)
    np.testing.assert_allclose(plan.centre, table.values.mean(axis=0)[list(plan.columns)])
    np.testing.assert_allclose(plan.scale, table.values.std(axis=0)[list(plan.columns)])


def test_numbers_are_written_with_their_names():
    values = np.array([[1.0, 9.0, 123.456], [2.5, 9.0, -0.001234]])
    texts = numbers_plan().row_texts(
        Table("columns", (), LABELS[:2], ("0", "1"), values=values), values, np.array([1, 0])
    )
    assert texts == ("c: -0.00123, a: 2.5", "c: 123, a: 1")


def test_kmer_frequencies_are_written_per_thousand():
    random = np.random.default_rng(0)
    sequences, labels = markov_sequences(random, 40)
    table = Table("sequence", ("sequence",), labels, ("0", "1"), sequences=sequences)
    x, names = encode(table, "kmer", k=2)
    sums = combine([("a", local_sums(x, labels, classes=("0", "1"), reduction="discriminant", min_rows=1))])
    plan = make_plan("kmer", names, ("A", "B"), sums, style="numbers", most=2)
    first, second = plan.names
    windows = [sequences[5][i : i + 2] for i in range(199)]
    counts = [1000 * windows.count(word) / 199 for word in (first, second)]
    assert plan.row_texts(table, x, np.array([5])) == (f"{first}: {counts[0]:.2g}, {second}: {counts[1]:.2g}",)


def test_levels_are_words_for_standard_deviations():
    values = np.array([[1.0, 0, -9], [4.1, 0, 0.4], [-0.1, 0, 0.6], [3.0, 0, 2.0]])
    plan = numbers_plan(style="levels")
    table = Table("columns", (), np.zeros(4, np.intp), ("0", "1"), values=values)
    assert plan.row_texts(table, values, np.arange(4)) == (
        "c: very low, a: average", "c: average, a: very high", "c: high, a: low", "c: very high, a: high",
    )  # fmt: skip


def test_texts_and_sequences_keep_their_number_in_the_pool():
    texts = Table("text", ("text",), LABELS, ("0", "1"), texts=("one\n two", "  b ", "c"))
    plan = make_plan("language", ("text",), ("bad", "good"), None, template="Tweet: {row}\\nSentiment:")
    assert plan.row_texts(texts, None, np.array([2, 0])) == ("c", "one two")
    lines = "def f(x):\n    if x:\n        return 1\n"
    asked = Table("text", ("text",), LABELS, ("0", "1"), texts=(lines, "b", "c"), answers=("no", lines, "c"))
    kept = lines.strip()  # instruction data keeps its lines
    assert plan.row_texts(asked, None, np.array([0])) == (kept,)
    assert plan.row_answers(asked, np.array([1])) == (kept,)
    rows = plan.classification(["one two"], [1])
    assert rows == (TextRow("Tweet: one two\nSentiment:", 7, 14, " good"),)
    assert plan.prompts(["x"])[0].answer == ""
    sequences = Table("sequence", ("seq",), LABELS, ("0", "1"), sequences=("ACGTACGTAC", "A", "CC"))
    words = make_plan("onehot", ("seq",), ("human", "worm"), None)
    assert words.row_texts(sequences, None, np.array([0])) == ("ACGTAC GTAC",)
    assert kmer_words("ACGTA", 2) == "AC GT A"


def test_a_plan_refuses_rows_of_another_kind():
    texts = Table("text", ("text",), LABELS, ("0", "1"), texts=("a", "b", "c"))
    with pytest.raises(DataError, match="at least 3 numbers, got none"):
        numbers_plan().row_texts(texts, None, LABELS)
    with pytest.raises(DataError, match="another kind than 'text'"):
        TextPlan("words", "{row}", ("a", "b")).row_texts(texts, None, LABELS)
    with pytest.raises(ConfigError, match="encoded as columns read as levels or numbers, got 'text'"):
        make_plan("columns", ("a",), ("x", "y"), None, style="text")
    with pytest.raises(DataError, match="sums of 1 columns"):
        make_plan("columns", ("a",), ("x", "y"), None)
    with pytest.raises(ConfigError, match="once in the template"):
        make_plan("language", ("text",), ("x", "y"), None, template="no row")


def test_plan_survives_json_and_refuses_another():
    plan = numbers_plan(centre=(0.1, 1 / 3))
    assert TextPlan.from_dict(plan.to_dict()) == plan
    assert TextPlan.from_dict(plan.to_dict()).digest() == plan.digest()
    assert numbers_plan().digest() != plan.digest()
    for wrong in (
        {"names": ["only one"]},
        {"style": "poem"},
        {"columns": ["a", "b"]},
        {"extra": 1},
        {"template": "x"},
        {"scale": [0.0, 1.0]},
    ):
        with pytest.raises(RecordError, match="text plan"):
            TextPlan.from_dict({**plan.to_dict(), **wrong})


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-0.0, "0"), (17.99, "18"), (1001.0, "1000"), (0.1184, "0.118"), (0.0001234, "0.000123"),
     (1.23456e-7, "1.23e-07"), (2.0e9, "2.00e+09"), (-3.14159, "-3.14"), (0.9999, "1")],
)  # fmt: skip
def test_rounded(value, text):
    assert rounded(value, 3) == text


@given(st.floats(-1e12, 1e12, allow_nan=False))
@settings(max_examples=60, deadline=None)
def test_rounding_keeps_three_digits(value):
    assert float(rounded(value, 3)) == pytest.approx(value, rel=5.1e-3, abs=1e-300)


def test_label_words():
    assert label_words("auto", ("malignant", "benign")) == ("malignant", "benign")
    assert label_words("auto", ("0", "1", "2")) == ("A", "B", "C")
    assert label_words("letters", ("x", "y")) == ("A", "B")
    assert label_words("negative, neutral,positive", ("0", "1", "2")) == ("negative", "neutral", "positive")
    for wrong in ("yes", "a,b,c", "a,a", "a,"):
        with pytest.raises(ConfigError, match="2 different words"):
            label_words(wrong, ("0", "1"))
    with pytest.raises(ConfigError, match="26 classes"):
        label_words("letters", [str(n) for n in range(27)])


def test_generation_asks_for_the_class_and_learns_the_text():
    rows = generation(["so\n sad", "great"], [0, 1], ("negative", "positive"), "Write a {label} tweet.\\n")
    assert rows[0] == TextRow("Write a negative tweet.\n", 24, 24, "so sad")
    assert rows[1].prompt == "Write a positive tweet.\n"
    with pytest.raises(ConfigError, match="label"):
        generation(["a"], [0], ("x", "y"), "Write.")


def test_only_the_row_is_shortened():
    row = TextRow.of("Tweet: {row}\nSentiment:", "one two three", " good")
    assert row.shortened(7) == "Tweet: one two\nSentiment:"
    assert row.shortened(4) == "Tweet: one\nSentiment:"
    assert row.shortened(0) == "Tweet:\nSentiment:"
    assert TextRow.of("Write.\n", "", "x").shortened(0) == "Write.\n"
    assert TextRow.of("{row}", "holds {row} itself", "").prompt == "holds {row} itself"


def test_instructions_from_a_file(tmp_path):
    path = tmp_path / "tasks.csv.gz"
    path.write_bytes(gzip.compress(b'id,prompt , answer\n1,"Say, hi",hi\n2,Add 1 and 1,2\n'))
    rows = instructions(*read_strings(path, ("prompt", "answer")), template="Q: {row}\\nA:")
    assert [(row.prompt, row.answer) for row in rows] == [("Q: Say, hi\nA:", "hi"), ("Q: Add 1 and 1\nA:", "2")]
    assert rows[0].prompt[rows[0].start : rows[0].stop] == "Say, hi"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt,reply\na,b\n", "no column answer among prompt, reply"),
        ("prompt,answer\na,b\nc, \n", "data row 2: column 'answer'"),
        ("prompt,answer\na,b\nc,d,e\n", "data row 2 has 3 fields, the header has 2"),
        ("prompt,answer\n", "no rows"),
        ("", "no column prompt, answer among none"),
        ('prompt,answer\n"a,b\n', "cannot be read"),
    ],
)
def test_bad_instruction_files(tmp_path, content, message):
    path = tmp_path / "tasks.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_strings(path, ("prompt", "answer"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        read_strings(tmp_path / "nowhere.csv", ("a",))

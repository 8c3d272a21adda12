import gzip
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_qfl.federation.data.synthetic import sentiment_sentences
from llm_qfl.federation.data.text import TextPlan
from llm_qfl.federation.errors import ConfigError, DataError
from llm_qfl.language.public import (
    digest,
    drawn_rows,
    general_texts,
    public_texts,
    python_paragraphs,
    read_texts,
)
from llm_qfl.language.public_grammar import GRAMMAR

PLAN = TextPlan("numbers", "{row}\nClass:", ("no", "yes"), (2, 0), ("c", "a"), (10.0, -3.0), (2.0, 0.5))


def test_every_symbol_of_the_grammar_has_a_rule_and_is_used():
    used = {symbol for choices in GRAMMAR.values() for choice in choices for symbol in re.findall(r"<(\w+)>", choice)}
    assert used == set(GRAMMAR) - {"text"}
    assert all(len(choices) == len(set(choices)) for symbol, choices in GRAMMAR.items() if symbol != "text")


@given(st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_embedded_texts_are_different_whole_and_of_a_readable_length(seed):
    texts = general_texts(200, np.random.default_rng(seed))
    assert len(set(texts)) == len(texts) == 200
    assert not any(re.search(r"[<>|]", text) for text in texts)
    assert all(3 <= len(text.split()) <= 60 for text in texts)


def test_the_same_seed_gives_the_same_texts_and_another_others():
    texts = public_texts("embedded", 50, seed=1)
    assert texts == public_texts("embedded", 50, seed=1)
    assert digest(texts) == digest(public_texts("embedded", 50, seed=1))
    assert digest(texts) != digest(public_texts("embedded", 50, seed=2))
    assert digest(("ab", "c")) != digest(("a", "bc"))


def test_embedded_texts_are_not_the_task_of_the_tests():
    rows = set(sentiment_sentences(np.random.default_rng(0), 500)[0])
    assert not rows & set(general_texts(3000, np.random.default_rng(0)))


def test_texts_in_the_form_of_the_tasks_rows_have_the_federations_moments():
    texts = drawn_rows(PLAN, 2000, np.random.default_rng(0))
    numbers = np.array([[float(x) for x in re.fullmatch(r"c: (\S+), a: (\S+)", text).groups()] for text in texts])
    np.testing.assert_allclose(numbers.mean(axis=0), [10, -3], atol=0.2)
    np.testing.assert_allclose(numbers.std(axis=0), [2, 0.5], rtol=0.06)
    assert public_texts("sums", 3, seed=4, plan=PLAN) == public_texts("sums", 3, seed=4, plan=PLAN)


def test_sums_serve_rows_of_columns_alone():
    for plan in (None, TextPlan("text", "{row}", ("a", "b"))):
        with pytest.raises(ConfigError, match="use embedded or file"):
            public_texts("sums", 3, seed=0, plan=plan)


def test_pythons_own_prose():
    texts = python_paragraphs()
    assert len(texts) > 300
    assert all(len(text.split()) <= 60 for text in texts)
    assert not any("::=" in text for text in texts)
    assert len(public_texts("python-docs", 20, seed=0)) == 20


def test_texts_of_files(tmp_path):
    lines = "one two three\n\n too short\nfour  five six\none two three\n"
    (tmp_path / "a.txt").write_text(lines)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.csv").write_text('label,tweet\n1,"one, two three"\n2,four five six\n')
    assert read_texts(tmp_path / "a.txt") == ("one two three", "four five six")
    assert read_texts(tmp_path / "b.txt.gz") == ("one two three", "four five six")
    assert read_texts(tmp_path / "c.csv", "tweet") == ("one, two three", "four five six")
    assert set(public_texts(f"file:{tmp_path / 'a.txt'}", 9, seed=0)) == {"one two three", "four five six"}


def test_files_and_sources_that_hold_nothing(tmp_path):
    (tmp_path / "short.txt").write_text("a\nb c\n")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "bad.txt.gz").write_bytes(b"no gzip")
    for name, message in (("short.txt", "no text of at least 3 words"), ("bad.txt", "cannot be read"),
                          ("bad.txt.gz", "cannot be read"), ("nowhere.txt", "cannot be read")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            read_texts(tmp_path / name)
    for source in ("alpaca", "file:", ""):
        with pytest.raises(ConfigError, match=r"expected embedded, python-docs, sums or file:<path>"):
            public_texts(source, 3, seed=0)

"""Sources: what a table holds, and the text of each error."""

import gzip

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits

from llm_qfl.federation.data.csv_source import read_csv
from llm_qfl.federation.data.sources import load_table
from llm_qfl.federation.data.synthetic import (
    gaussian_rows,
    write_csv,
    write_gaussian_csv,
    write_markov_csv,
    write_sentiment_csv,
)
from llm_qfl.federation.data.table import UNKNOWN, Wanted, sorted_classes
from llm_qfl.federation.errors import DataError


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_breast_cancer_is_scikit_learns():
    table, bunch = load_table("breast-cancer"), load_breast_cancer()
    assert table.kind == "columns"
    assert table.class_names == ("benign", "malignant")  # sorted, as every side sorts
    np.testing.assert_array_equal(table.values, bunch.data)
    np.testing.assert_array_equal(table.labels, 1 - bunch.target)  # there 0 is malignant
    assert table.columns == tuple(bunch.feature_names)


def test_digits_keeps_the_named_classes_in_their_order():
    table, bunch = load_table("digits", classes=(7, 0)), load_digits()
    kept = np.isin(bunch.target, (7, 0))
    assert table.class_names == ("7", "0")
    np.testing.assert_array_equal(table.labels, (bunch.target[kept] == 0).astype(int))
    np.testing.assert_array_equal(table.values, bunch.data[kept])


def test_csv_floats_come_back_exactly(tmp_path, rng):
    path = write_gaussian_csv(tmp_path / "a.csv", rng, 50)
    values, labels = gaussian_rows(np.random.default_rng(7), 50)
    table = load_table(f"csv:{path}")
    np.testing.assert_array_equal(table.values, values)
    np.testing.assert_array_equal(table.labels, labels)
    assert table.columns == tuple(f"f{i}" for i in range(6))


def test_gzip_sequences_and_texts(tmp_path, rng):
    plain = write_markov_csv(tmp_path / "dna.csv", rng, 10, length=30)
    packed = tmp_path / "dna.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    one, two = load_table(f"csv:{plain}"), load_table(f"file:{packed}")
    assert one.kind == "sequence"
    assert one.columns == ("sequence",)
    assert one.sequences == two.sequences
    assert len(one.sequences) == 10
    texts = load_table(f"csv:{write_sentiment_csv(tmp_path / 'text.csv', rng, 9)}")
    assert (texts.kind, texts.columns, texts.class_names) == ("text", ("text",), ("0", "1", "2"))
    assert len(texts.texts) == 9


def test_lower_case_bases_and_the_hubs_column_name(tmp_path):
    path = write_csv(tmp_path / "a.csv", ["seq", "label", "id"], [["acgtn", 0, "x"], ["GGG", 1, "y"]])
    table = load_table(f"csv:{path}")
    assert table.sequences == ("ACGTN", "GGG")
    assert table.columns == ("seq",)


def test_a_text_may_read_none(tmp_path):
    path = write_csv(tmp_path / "a.csv", ["text", "label"], [["None", 0], ["nan, he said", 1]])
    assert load_table(f"csv:{path}").texts == ("None", "nan, he said")


def test_instructions_have_answers(tmp_path):
    rows = [["Say hi", "hi", "chat", 1], ["Add 1 and 1", "2", "sums", 2], ["Say no", "no", "chat", 3]]
    path = write_csv(tmp_path / "a.csv", ["prompt", "reply", "kind", "site"], rows)
    asked = {"label_column": "kind", "text_column": "prompt", "answer_column": "reply"}
    table = load_table(f"csv:{path}", **asked, group_column="site")
    assert (table.kind, table.columns) == ("text", ("prompt",))
    assert table.answers == ("hi", "2", "no")
    assert table.take(np.array([2, 0])).answers == ("no", "hi")
    assert load_table(f"csv:{path}", **asked, classes=("sums",), role="site").answers == ("2",)
    assert load_table(f"csv:{path}", **{**asked, "answer_column": None}).answers is None
    with pytest.raises(DataError, match=r"no column 'answer' \(data.answer-column\) among prompt, reply"):
        load_table(f"csv:{path}", **{**asked, "answer_column": "answer"})
    with pytest.raises(DataError, match=r"no column 'text' \(data.text-column\) of texts"):
        load_table(f"csv:{path}", **{**asked, "text_column": "text"})
    with pytest.raises(DataError, match="without answers"):
        load_table("digits", answer_column="reply")
    write_csv(path, ["prompt", "reply", "kind"], [["a", "b", 0], ["c", " ", 1]])
    with pytest.raises(DataError, match="1 empty answers in column 'reply', the first in data row 2"):
        load_table(f"csv:{path}", **asked)


def test_labels_are_words_of_the_file_and_numbers_sort_by_value(tmp_path):
    path = write_csv(tmp_path / "a.csv", ["x", "label"], [[1, "10"], [2, "9"], [3, "b"], [4, "9"]])
    table = load_table(f"csv:{path}")
    assert table.class_names == ("9", "10", "b")
    assert table.labels.tolist() == [1, 0, 2, 0]
    assert sorted_classes(["b", "10", "a", "9.5"]) == ("9.5", "10", "a", "b")


def test_one_site_of_many_may_lack_a_class(tmp_path):
    path = write_csv(tmp_path / "a.csv", ["x", "label"], [[1, "b"], [2, "b"]])
    table = load_table(f"csv:{path}", classes=("a", "b"), role="fixed")
    assert table.labels.tolist() == [1, 1]
    assert load_table(f"csv:{path}", classes=("a", "b"), role="site").class_names == ("a", "b")
    with pytest.raises(DataError, match="no row of class a; the labels there are b"):
        load_table(f"csv:{path}", classes=("a", "b"))


def test_a_label_outside_the_fixed_list_is_refused_with_its_row(tmp_path):
    path = write_csv(tmp_path / "a.csv", ["x", "label"], [[1, "a"], [2, "c"]])
    with pytest.raises(DataError, match=r"expected the labels a, b, got 'c' \(first at data row 2\)"):
        load_table(f"csv:{path}", classes=("a", "b"), role="fixed")
    assert load_table(f"csv:{path}", classes=("a", "b"), role="site").labels.tolist() == [0]


def test_none_of_the_classes_is_refused_for_a_site_too(tmp_path):
    path = write_csv(tmp_path / "a.csv", ["x", "label"], [[1, "c"]])
    with pytest.raises(DataError, match="no row of class a, b"):
        load_table(f"csv:{path}", classes=("a", "b"), role="site")


def test_prediction_needs_no_labels(tmp_path):
    path = write_csv(tmp_path / "a.csv", ["y", "x"], [[1, 2], [3, 4]])
    table = read_csv(path, Wanted(classes=("a", "b"), role="fixed", expect_columns=("x", "y"), labelled=False))
    assert table.labels.tolist() == [UNKNOWN, UNKNOWN]
    assert table.class_names == ("a", "b")
    np.testing.assert_array_equal(table.values, [[2, 1], [4, 3]])  # in the expected order


def test_the_group_column_is_no_feature(tmp_path):
    rows = [[1, "north", 0], [2, "south", 1], [3, "north", 5]]
    path = write_csv(tmp_path / "a.csv", ["x", "region", "label"], rows)
    table = load_table(f"csv:{path}", group_column="region", classes=(0, 1))
    assert table.groups == ("north", "south")
    assert table.columns == ("x",)
    with pytest.raises(DataError, match="no column 'town'"):
        load_table(f"csv:{path}", group_column="town")
    with pytest.raises(DataError, match="no column to deal rows by"):
        load_table("digits", group_column="town")


def test_take_keeps_the_parts_together(tmp_path, rng):
    table = load_table(f"csv:{write_markov_csv(tmp_path / 'a.csv', rng, 6, length=20)}")
    some = table.take(np.array([4, 1]))
    assert some.sequences == (table.sequences[4], table.sequences[1])
    assert some.labels.tolist() == [table.labels[4], table.labels[1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("x,label\n", "no rows"),
        ("x,y\n1,2\n", "no label column 'label' among x, y; name it in data.label-column"),
        ("label\n1\n", "no column beside the label"),
        (
            "x,label\n1,0\n,1\nnan,1\ninf,0\n",
            "3 values are missing or not finite in 3 rows, the first in data row 2, co",
        ),
        ("x,y,label\n1,2,0\n3,tall,1\n", "column 'y' is not numeric: expected a number in data row 2, got 'tall'"),
        ("x,label\n1,0\n2,\n", "1 rows without a label in column 'label', the first is data row 2"),
        (",x,label\n0,1,0\n", "column 1 has no name; write the file without its row index"),
        ("x,x,label\n0,1,0\n", "two columns of one name: x"),
        (
            "sequence,label\nACGT,0\nACXT,1\n",
            "data row 2, column 'sequence': expected the letters A, C, G, T, N, got t",
        ),
        ("sequence,label\nACGT,0\n,1\n", "data row 2, column 'sequence': .* got an empty sequence"),
        ("text,label\nfine,0\n  ,1\n", "1 empty texts in column 'text', the first in data row 2"),
        ("x,label\n1,0\n1,2,3,4\n", "data row 2 has 4 fields, the header has 2; put cells that hold commas in double"),
        ("text,label\nfine, he said,0\n", "data row 1 has 3 fields"),
        ('text,label\n"fine,0\n', "cannot be read as UTF-8 CSV"),
    ],
)
def test_bad_files_are_refused_with_place_and_remedy(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        load_table(f"csv:{path}")
    assert str(path) in str(caught.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv: no such file; check the path"):
        load_table(f"csv:{tmp_path / 'none.csv'}")
    (tmp_path / "fake.csv.gz").write_bytes(b"x,label\n1,0\n")
    with pytest.raises(DataError, match="cannot be read"):
        load_table(f"csv:{tmp_path / 'fake.csv.gz'}")
    (tmp_path / "latin.csv").write_bytes("x,label\n1,caf\xe9\n".encode("latin-1"))
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        load_table(f"csv:{tmp_path / 'latin.csv'}")
    with pytest.raises(DataError, match="cannot be read"):
        load_table(f"csv:{tmp_path}")
    with pytest.raises(DataError, match="expected breast-cancer, digits, csv:<path> or hub:<dataset>, got 'iris'"):
        load_table("iris")


def test_other_columns_than_expected(tmp_path):
    path = write_csv(tmp_path / "a.csv", ["x", "y", "label"], [[1, 2, 0]])
    with pytest.raises(DataError, match=r"other columns than expected: missing z, unknown y"):
        load_table(f"csv:{path}", expect_columns=("x", "z"))
    with pytest.raises(DataError, match="other columns than expected: missing x"):
        load_table("breast-cancer", expect_columns=("x",))

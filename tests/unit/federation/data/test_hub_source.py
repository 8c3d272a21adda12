"""The hub's path through flwr-datasets, on a folder on disk; no name is ever looked up."""

import socket

import datasets.config
import numpy as np
import pandas as pd
import pytest

from llm_qfl.federation.data.sources import load_table
from llm_qfl.federation.data.synthetic import write_gaussian_csv, write_markov_csv, write_sentiment_csv
from llm_qfl.federation.errors import DataError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("a test tried to reach the network")

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    made = tmp_path / "set"
    made.mkdir()
    return made


def as_parquet(csv_path):
    """Hub data sets are Parquet; and the CSV reader of `datasets` leaves its files open."""
    pd.read_csv(csv_path).to_parquet(csv_path.with_suffix(".parquet"))
    return csv_path.rename(csv_path.parents[1] / f"{csv_path.parent.name}-{csv_path.name}")


def test_a_folder_gives_what_its_csv_gives(folder):
    for split, rows in (("train", 20), ("test", 8)):
        write_gaussian_csv(folder / f"{split}.csv", np.random.default_rng(rows), rows)
    files = {split: as_parquet(folder / f"{split}.csv") for split in ("train", "test")}
    for split in ("train", "test"):
        hub, file = load_table(f"hub:{folder}#{split}"), load_table(f"csv:{files[split]}")
        np.testing.assert_array_equal(hub.values, file.values)
        np.testing.assert_array_equal(hub.labels, file.labels)
        assert (hub.columns, hub.class_names) == (file.columns, file.class_names)
    assert len(load_table(f"hub:{folder}")) == 20


def test_sequences_and_texts(folder, tmp_path):
    file = as_parquet(write_markov_csv(folder / "train.csv", np.random.default_rng(1), 6, length=12))
    table = load_table(f"hub:{folder}")
    assert table.kind == "sequence"
    assert table.sequences == load_table(f"csv:{file}").sequences
    other = tmp_path / "texts"
    other.mkdir()
    as_parquet(write_sentiment_csv(other / "train.csv", np.random.default_rng(1), 6))
    assert load_table(f"hub:{other}", classes=(2, 0)).class_names == ("2", "0")


def test_missing_folder_and_split(folder):
    as_parquet(write_gaussian_csv(folder / "train.csv", np.random.default_rng(1), 5))
    with pytest.raises(DataError, match="no such folder"):
        load_table(f"hub:{folder}-none")
    with pytest.raises(DataError, match="split 'dev'"):
        load_table(f"hub:{folder}#dev")
    with pytest.raises(DataError, match="no label column 'mood'"):
        load_table(f"hub:{folder}", label_column="mood")

"""What the priced comparison needs once: every federation that is recorded is one that a run accepts."""

import csv
import gzip

import pytest

from experiments.priced import Places
from experiments.priced_cells import CELLS
from experiments.priced_records import TEXTS, recorded_case, write_dna, write_tweets
from llm_qfl.federation.config import RunConfig


@pytest.mark.parametrize("name", CELLS)
def test_a_recorded_federation_is_a_valid_run(name, tmp_path):
    case = recorded_case(CELLS[name], 42, Places(tmp_path, tmp_path))
    config = RunConfig.from_run_config({**case.flat(), "language.model": "tiny"})
    assert (config.data.encoding == "language") == name.startswith("tweets")
    assert config.server.seed == 42


def test_dna_rows_are_drawn_once_and_stay_in_their_order(tmp_path):
    rows = [("ACGT"[i % 4] * 5 + str(i), str(i % 2)) for i in range(3100)]
    with gzip.open(tmp_path / "human_or_worm_train.csv.gz", "wt", newline="") as file:
        csv.writer(file).writerows([("sequence", "label"), *rows])
    places = Places(tmp_path, tmp_path / "work")
    write_dna(places)
    with (places.work / "dna.csv").open() as file:
        header, *found = csv.reader(file)
    at = [rows.index((sequence, label)) for sequence, label in found]
    assert header == ["sequence", "label"]
    assert (len(at), at) == (3000, sorted(set(at)))


def test_tweets_as_texts_and_as_numbers_are_the_same_rows_in_one_order(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    rows = [(f"tweet {i} is {'good' if i % 2 else 'bad'}", "positive" if i % 2 else "negative") for i in range(12)]
    rows[3] = (rows[2][0], "positive")  # the same text: the same numbers
    with gzip.open(tmp_path / "tweet_sentiment_train.csv.gz", "wt", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    places = Places(tmp_path, tmp_path / "work")
    write_tweets(places, "tiny-6")
    with (places.work / TEXTS).open() as file:
        texts = list(csv.DictReader(file))
    with (places.work / "tweets.csv").open() as file:
        numbers = list(csv.DictReader(file))
    assert [(row["text"], row["label"]) for row in texts] == rows  # fewer than are asked for: all, in their order
    assert [row["label"] for row in numbers] == [row["label"] for row in texts]
    states = [tuple(value for key, value in row.items() if key != "label") for row in numbers]
    assert states[2] == states[3]
    assert len(set(states)) == len(rows) - 1
    before = (places.work / "tweets.csv").stat().st_mtime_ns
    write_tweets(places, "tiny-6")  # made once
    assert (places.work / "tweets.csv").stat().st_mtime_ns == before

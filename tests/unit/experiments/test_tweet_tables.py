"""The tweet experiment's pure parts: order of the jobs, shares of a gain, rows of a seed, the printed table."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.tweets_arms import CLASSIFICATION, COMMON, EARLY, GENERATION, TABLES, order
from experiments.tweets_data import FILES, Sizes, deal, drawn_labels, read_tweets
from experiments.tweets_run import settings_digest
from experiments.tweets_table import share, shares, table_lines
from llm_qfl.federation.config_language import LanguageConfig

ARMS = {table: {arm.name: arm for arm in arms} for table, arms in TABLES.items()}


def lines(recalls: dict[str, float], seed: int) -> list[dict[str, object]]:
    return [
        {
            "table": "classification",
            "arm": arm,
            "seed": seed,
            "adap-fu": {"accuracy": 0.5, "recall": recall, "nll": 1.0},
        }
        for arm, recall in recalls.items()
    ]


@pytest.mark.parametrize("arms", [CLASSIFICATION, GENERATION])
def test_arms_are_valid_and_differ(arms):
    assert len({arm.name for arm in arms}) == len(arms)
    configs = [(arm.kind, arm.public, arm.labels, LanguageConfig(**COMMON, **arm.config)) for arm in arms]
    assert all(configs.count(one) == 1 for one in configs)


def test_arms_of_the_floors_come_first_at_every_seed():
    jobs = order(2, tuple(TABLES), None)
    once = sum(arm.once for arms in TABLES.values() for arm in arms)
    assert once > 0
    assert len(jobs) == 2 * (len(CLASSIFICATION) + len(GENERATION)) - once == len({(t, a.name, s) for t, a, s in jobs})
    early = jobs[: 4 * EARLY]
    assert [seed for _, _, seed in early] == [0] * (2 * EARLY) + [1] * (2 * EARLY)
    assert {arm.name for _, arm, _ in early} >= {"zero-shot", "fedlora-tail", "control: tail on public rows"}


def test_only_the_arms_that_are_asked_for():
    assert [(t, a.name, s) for t, a, s in order(1, ("generation",), {"zero-shot"})] == [("generation", "zero-shot", 0)]
    name = next(arm.name for arm in CLASSIFICATION if arm.once)
    assert [s for _, _, s in order(3, ("classification",), {name})] == [0, 1, 2]


def test_share_is_zero_at_zero_shot_and_one_at_the_tail_whichever_way_is_better():
    assert share(0.5, 0.5, 0.6) == 0
    assert share(0.6, 0.5, 0.6) == 1
    assert share(4.9, 5.4, 4.4) == pytest.approx(0.5)
    assert np.isnan(share(1.0, 2.0, 2.0))


def test_shares_are_paired_by_seed_and_need_both_marks():
    rows = lines({"zero-shot": 0.5, "fedlora-tail": 0.7, "x": 0.6}, 0) + lines({"zero-shot": 0.4, "x": 0.6}, 1)
    assert shares(rows, "classification", "x", "adap-fu") == pytest.approx([0.5])


def test_table_has_a_line_for_each_way_through_the_model():
    rows = lines({"zero-shot": 0.5, "fedlora-tail": 0.7, "fedbiot .2 related": 0.6}, 0)
    rows[-1]["adap-emu"] = {"accuracy": 0.6, "recall": 0.65, "nll": 1.0}
    printed = table_lines(rows, "classification")
    assert len(printed) == 2 + 4
    assert "| fedbiot .2 related | AdapFu | 0.500 | 0.600 | 1.000 | 50 % | related | no | 1 |" in printed
    assert "| fedbiot .2 related | AdapEmu | 0.600 | 0.650 | 1.000 | 75 % | related | no | 1 |" in printed


def test_a_mark_s_prior_is_of_the_related_text():
    rows = lines({"zero-shot": 0.5, "fedlora-tail": 0.7}, 0)
    rows[-1]["adap-fu, no labels"] = {"accuracy": 0.5, "recall": 0.6, "nll": 1.0}
    line = "| full model, biases matched to a flat prior | 0.500 | 0.600 | 1.000 | 50 % | related"
    assert any(line in printed for printed in table_lines(rows, "classification"))


def seen(line: str) -> tuple[tuple[str, str], int]:
    """(arm, model) of a printed line, and its seeds."""
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    return (cells[0], cells[1]), int(cells[-1].removesuffix(f" {LOST}"))


LOST = "†"
"""Behind the seeds of a line that no kept line prints: it stands as it was printed before they were lost."""


def test_the_pages_show_what_the_kept_lines_say():
    """Every line is printed from kept ones, but those that say so: they have seeds whose lines were lost."""
    root = Path(__file__).parents[3]
    rows = [json.loads(line) for line in (root / "experiments" / "kept" / "tweets.jsonl").read_text().splitlines()]
    assert all(
        row["settings"] == settings_digest(row["table"], ARMS[row["table"]][row["arm"]], Sizes()) for row in rows
    )
    long, short = ((root / page).read_text() for page in ("docs/tweets.md", "README.md"))
    for table, title in (("classification", "\nClassification ("), ("generation", "\nWriting a tweet")):
        shown, chosen = (text[text.index(title) :].split("\n\n")[1].splitlines() for text in (long, short))
        assert set(chosen) <= set(shown)
        seeds = dict(seen(line) for line in shown[2:])
        printed = table_lines([row for row in rows if row["table"] == table], table)
        assert shown[:2] == printed[:2]
        kept = dict(seen(line) for line in printed[2:])
        for line in printed[2:]:
            place, count = seen(line)
            assert line in shown or seeds.get(place, 0) > count, line
        for line in shown[2:]:
            place, count = seen(line)
            assert line in printed or (line.endswith(f" {LOST} |") and count > kept.get(place, 0)), line


def test_a_seed_draws_private_rows_and_no_public_or_test_rows(tmp_path: Path):
    for kind, name in FILES.items():
        with gzip.open(tmp_path / name, "wt") as file:
            file.write("text,label\n" + "".join(f"{kind} text {i},{i % 3}\n" for i in range(60)))
    sizes = Sizes(train=40, public=20, test=10)
    first, again, other = (read_tweets(tmp_path, sizes, seed) for seed in (0, 0, 1))
    assert first.texts == again.texts != other.texts
    assert first.public == other.public
    assert len(set(first.public)) == 20
    assert set(first.texts).isdisjoint(first.public)
    assert first.test == other.test == tuple(f"test text {i}" for i in range(10))
    assert [int(text.split()[-1]) % 3 for text in first.texts] == first.labels.tolist()


@pytest.mark.parametrize("partitioner", ["dirichlet", "shard", "iid"])
def test_every_row_is_dealt_once(partitioner: str):
    labels = np.arange(400) % 3
    parts = deal(labels, 3, partitioner)
    assert len(parts) == 4
    assert sorted(np.concatenate(parts).tolist()) == list(range(400))


def test_drawn_classes_do_not_follow_the_labels():
    drawn = drawn_labels(3000)
    assert np.bincount(drawn) == pytest.approx(np.full(3, 1000), abs=120)
    assert drawn.tolist() == drawn_labels(3000).tolist()

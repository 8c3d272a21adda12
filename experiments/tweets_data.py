"""Rows of the tweet tables: drawn by seed, written as prompts, dealt to four sites; and the public rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llm_qfl.federation.data.partition import Deal, partition
from llm_qfl.federation.data.prompts import TextRow, generation, read_strings
from llm_qfl.federation.seeding import SERVER, stream
from llm_qfl.federation.types import Labels

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llm_qfl.language.batches import TokenRows
    from llm_qfl.language.tokens import ClassRows, LabelWords

WORDS = ("negative", "neutral", "positive")
QUESTION = "Tweet: {row}\nSentiment:"
REQUEST = "Write a {label} tweet.\n"
LIMIT = 100  # tokens of a row
SITES = 4
SERVER_SEED = 0
"""Public rows, the adapter's start and the alignment are one in all seeds, since an alignment costs as much as many
arms. What varies from seed to seed is the private rows, their deal and the batches."""
FILES = {
    "train": "tweet_sentiment_train.csv.gz",
    "test": "tweet_sentiment_test.csv.gz",
    "public": "tweet_sentiment_shifted.csv.gz",
}


@dataclass(frozen=True)
class Sizes:
    """How many rows of each kind."""

    train: int = 800
    public: int = 800
    test: int = 600
    written_test: int = 300


@dataclass(frozen=True)
class Tweets:
    """Texts and labels of one seed.

    Attributes:
        texts, labels: private rows of all sites.
        public, public_labels: the public split's, equal in every seed; the labels are read by the control alone.
        test, test_labels: the first rows of the test file, equal in every seed.
    """

    texts: tuple[str, ...]
    labels: Labels
    public: tuple[str, ...]
    public_labels: Labels
    test: tuple[str, ...]
    test_labels: Labels


def read_tweets(folder: Path, sizes: Sizes, seed: int) -> Tweets:
    """Draw a seed's rows.

    Args:
        folder: where the three files lie.
        sizes: how many.
        seed: of the draw.
    """
    random = stream(seed, SERVER, 0, "tweets")
    public = stream(SERVER_SEED, SERVER, 0, "tweets/public")
    found = {}
    for kind, count in (("train", sizes.train), ("public", sizes.public), ("test", sizes.test)):
        texts, labels = read_strings(folder / FILES[kind], ("text", "label"))
        draw = public if kind == "public" else random
        chosen = np.arange(count) if kind == "test" else np.sort(draw.permutation(len(texts))[:count])
        found[kind] = (tuple(texts[i] for i in chosen), np.array([int(labels[i]) for i in chosen], np.intp))
    return Tweets(*found["train"], *found["public"], *found["test"])


def deal(labels: Labels, seed: int, partitioner: str) -> tuple[Labels, ...]:
    """Rows of each of the four sites."""
    return partition(labels, Deal(partitioner, SITES, seed, alpha=0.5, min_rows=16))


def questions(texts: tuple[str, ...], words: LabelWords, tokenizer: PreTrainedTokenizerBase) -> ClassRows:
    """Prompts that ask for the sentiment."""
    from llm_qfl.language.tokens import class_rows

    return class_rows([TextRow.of(QUESTION, text, "") for text in texts], words, tokenizer, limit=LIMIT)


def requests(texts: tuple[str, ...], labels: Labels, tokenizer: PreTrainedTokenizerBase) -> TokenRows:
    """Requests to write a tweet of a class, answered with the tweet and the end token."""
    from llm_qfl.language.tokens import answer_rows

    return answer_rows(generation(texts, labels, WORDS, REQUEST), tokenizer, limit=LIMIT, long_answers="cut")


def drawn_labels(rows: int) -> Labels:
    """Classes by chance, for public rows in the form of the task whose labels nobody reads."""
    return stream(SERVER_SEED, SERVER, 0, "tweets/labels").integers(len(WORDS), size=rows).astype(np.intp)

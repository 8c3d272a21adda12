"""Prompts and answers: the rows that a language model learns from and is scored on."""

from __future__ import annotations

import csv
import gzip
import string
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_qfl.federation.errors import ConfigError, DataError
from llm_qfl.federation.types import Labels

ROW, LABEL = "{row}", "{label}"
GENERATION = "Write a {label} text.\n"
INSTRUCTION = "{row}\n"


@dataclass(frozen=True)
class TextRow:
    """A prompt that is given and an answer that is learned and scored.

    Attributes:
        prompt: the whole prompt.
        start, stop: the part of the prompt that may be shortened: the row, not the question around it.
        answer: with the space that separates it from the prompt, where there is one.
    """

    prompt: str
    start: int
    stop: int
    answer: str

    @classmethod
    def of(cls, template: str, row: str, answer: str) -> TextRow:
        """The template with the row in place of `{row}`; a template without it has nothing to shorten."""
        before, found, after = template.partition(ROW)
        if not found:
            return cls(before, len(before), len(before), answer)
        return cls(before + row + after, len(before), len(before) + len(row), answer)

    def shortened(self, characters: int) -> str:
        """The prompt with only the first `characters` of the part that may be shortened."""
        if characters >= self.stop - self.start:
            return self.prompt
        return self.prompt[: self.start + characters].rstrip() + self.prompt[self.stop :]


def new_lines(template: str) -> str:
    """A template as written in a run config: a backslash and an n stand for a new line."""
    return template.replace("\\n", "\n")


def label_words(setting: str, class_names: Sequence[str]) -> tuple[str, ...]:
    """The answer of each class.

    Args:
        setting: `auto` (the classes' names where every one starts with a letter, else letters), `letters`, or the
            words, comma separated, in the order of the classes.
        class_names: labels in the order of the outputs.

    Raises:
        ConfigError: another number of words than classes, an empty or a repeated one.
    """
    if setting == "auto":
        setting = "names" if all(name[:1].isalpha() for name in class_names) else "letters"
        words = [" ".join(name.replace("_", " ").split()) for name in class_names]
    else:
        words = [word.strip() for word in setting.split(",")]
    if setting == "letters":
        if len(class_names) > len(string.ascii_uppercase):
            raise ConfigError(f"language.label-words: letters tell 26 classes apart, the data has {len(class_names)}")
        words = list(string.ascii_uppercase[: len(class_names)])
    if len(words) != len(class_names) or "" in words or len(set(words)) != len(words):
        raise ConfigError(
            f"language.label-words: expected {len(class_names)} different words, one for each of the classes "
            f"{', '.join(class_names)}, got {words}"
        )
    return tuple(words)


def generation(
    texts: Sequence[str], labels: Sequence[int] | Labels, words: Sequence[str], template: str = GENERATION
) -> tuple[TextRow, ...]:
    """Rows whose answer is the text and whose prompt names its class: `Write a negative tweet.` -> the tweet.

    Raises:
        ConfigError: a template without `{label}`.
    """
    if LABEL not in template:
        raise ConfigError(f"language.prompt: to write texts it needs {LABEL}, got {template!r}")
    asked = [new_lines(template).replace(LABEL, word) for word in words]
    return tuple(
        TextRow(asked[label], len(asked[label]), len(asked[label]), " ".join(text.split()))
        for text, label in zip(texts, labels, strict=True)
    )


def instructions(texts: Sequence[str], answers: Sequence[str], template: str = INSTRUCTION) -> tuple[TextRow, ...]:
    """Plain instruction data: a text is the prompt, in a template, and its answer is learned."""
    asked = new_lines(template)
    return tuple(TextRow.of(asked, *pair) for pair in zip(texts, answers, strict=True))


def read_strings(path: Path, wanted: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Columns of a CSV file (also .gz) as they are written, stripped; none of their cells may be empty.

    Raises:
        DataError: the file cannot be read, lacks a column or has an empty cell, with its data row (from 1).
    """
    try:
        with _open(path) as file:
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in wanted if name not in header]
            if missing:
                raise DataError(f"{path}: no column {', '.join(missing)} among {', '.join(header[:8]) or 'none'}")
            places = [header.index(name) for name in wanted]
            rows = []
            for number, cells in enumerate((cells for cells in reader if cells), 1):  # blank lines do not count
                if len(cells) != len(header):
                    raise DataError(
                        f"{path}: data row {number} has {len(cells)} fields, the header has {len(header)}; "
                        "put cells that hold commas in double quotes"
                    )
                rows.append(tuple(cells[place].strip() for place in places))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 CSV ({error}); expected commas and a header line") from error
    for number, row in enumerate(rows, 1):
        if "" in row:
            raise DataError(
                f"{path}: data row {number}: column {wanted[row.index('')]!r} is empty; fill it in or drop it"
            )
    if not rows:
        raise DataError(f"{path}: no rows; expected a header line and at least one row")
    return tuple(zip(*rows, strict=True))


def _open(path: Path) -> Any:  # noqa: ANN401 - a text stream of either kind
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")

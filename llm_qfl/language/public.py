"""Public text: what the server aligns its compressed model on and measures a zero-shot prior with.

- `embedded`: sentences of a grammar that was written for this project (messages, news, reviews, questions, facts,
  records of numbers). Not the task's and no data set's: any task's rows stay unseen, nothing needs a licence or a
  network. It is text of many forms with a small vocabulary; real text related to the task aligns better.
- `python-docs`: paragraphs of the language reference that every CPython carries (PSF licence, read where it is
  installed, never passed on). Real prose, further from most tasks.
- `sums`: rows in the form of the task's, drawn column by column from the federation's means and deviations, which the
  server knows anyway. No row, no label, no dependence between columns. For rows that are written out as columns.
- `file:<path>`: one text a line, or the text column of a CSV file (.csv, .csv.gz). Labels in it are not read.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from llm_qfl.federation.data.prompts import read_strings
from llm_qfl.federation.data.table import Table
from llm_qfl.federation.data.text import TextPlan
from llm_qfl.federation.errors import ConfigError, DataError
from llm_qfl.federation.seeding import SERVER, stream
from llm_qfl.language.public_grammar import GRAMMAR

SOURCES = ("embedded", "python-docs", "sums")
_SYMBOL = re.compile(r"<(\w+)>")
_DEPTH = 12  # a sentence nested deeper than this is drawn again
_SHORTEST, _LONGEST = 3, 60  # words


def public_texts(
    source: str, rows: int, *, seed: int, plan: TextPlan | None = None, text_column: str = "text"
) -> tuple[str, ...]:
    """Different public texts, in an order of the run's own.

    Args:
        source: `embedded`, `python-docs`, `sums` or `file:<path>`.
        rows: how many at most; a source may have fewer.
        seed: the run's.
        plan: how the task's rows are written, for `sums`.
        text_column: of a CSV file.

    Raises:
        ConfigError: an unknown source, or `sums` for rows that are not written as columns.
        DataError: a file without texts.
    """
    random = stream(seed, SERVER, 0, "language/public")
    if source == "embedded":
        return general_texts(rows, random)
    if source == "sums":
        return drawn_rows(plan, rows, random)
    if source == "python-docs":
        found = python_paragraphs()
    elif source.startswith("file:") and source != "file:":
        found = read_texts(Path(source.removeprefix("file:")).expanduser(), text_column)
    else:
        raise ConfigError(f"language.public: expected {', '.join(SOURCES)} or file:<path>, got {source!r}")
    return tuple(found[i] for i in random.permutation(len(found))[:rows])


def general_texts(rows: int, random: np.random.Generator) -> tuple[str, ...]:
    """Different sentences of the embedded grammar."""
    texts: dict[str, None] = {}
    while len(texts) < rows:
        text = _expand("<text>", random, 0)
        if text is not None and _SHORTEST <= len(text.split()) <= _LONGEST:
            texts[text] = None
    return tuple(texts)


def _expand(text: str, random: np.random.Generator, depth: int) -> str | None:
    """Replace every symbol by one of its alternatives; None where they nest too deep."""
    if depth > _DEPTH:
        return None
    parts = _SYMBOL.split(text)  # text, symbol, text, symbol, ..., text
    for place in range(1, len(parts), 2):
        choices = GRAMMAR[parts[place]]
        inner = _expand(choices[random.integers(len(choices))], random, depth + 1)
        if inner is None:
            return None
        parts[place] = inner
    return "".join(parts)


def drawn_rows(plan: TextPlan | None, rows: int, random: np.random.Generator) -> tuple[str, ...]:
    """Rows as the plan writes them, each column drawn from a normal of its mean and deviation over the federation.

    Raises:
        ConfigError: the plan writes no columns.
    """
    if plan is None or not plan.columns:
        raise ConfigError(
            "language.public: sums draws rows of columns, the task's are texts; use embedded or file:<path>"
        )
    numbers = np.zeros((rows, max(plan.columns) + 1))
    numbers[:, list(plan.columns)] = random.normal(plan.centre, plan.scale, size=(rows, len(plan.columns)))
    labels = np.zeros(rows, np.intp)
    table = Table("columns", (), labels, plan.words, values=numbers)
    return plan.row_texts(table, numbers, np.arange(rows))


def python_paragraphs() -> tuple[str, ...]:
    """Paragraphs of prose in the language reference of this interpreter."""
    from pydoc_data.topics import topics

    paragraphs = (part for _, text in sorted(topics.items()) for part in re.split(r"\n\s*\n", text))
    prose = (part for part in paragraphs if not re.search(r"::=|^\s*>>>|\*{4}|={4}|-{4}|\|", part, re.MULTILINE))
    return _usable(" ".join(part.split()[:_LONGEST]) for part in prose if re.search(r"[a-z]\.$", part.rstrip()))


def read_texts(path: Path, column: str = "text") -> tuple[str, ...]:
    """Texts of a file: the column of a CSV file, or one text a line.

    Raises:
        DataError: the file cannot be read, or holds no text of at least three words.
    """
    if path.name.endswith((".csv", ".csv.gz")):
        found = _usable(read_strings(path, (column,))[0])
    else:
        try:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            found = _usable(content.decode("utf-8-sig").splitlines())
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as UTF-8 text ({error}); expected one text a line") from error
    if not found:
        raise DataError(f"{path}: no text of at least {_SHORTEST} words; expected one a line, or a CSV file's column")
    return found


def digest(texts: Iterable[str]) -> str:
    """SHA-256 of texts in their order, for the run's record."""
    total = hashlib.sha256()
    for text in texts:
        coded = text.encode()
        total.update(len(coded).to_bytes(8, "big") + coded)
    return total.hexdigest()


def _usable(texts: Iterable[str]) -> tuple[str, ...]:
    """Different texts of at least three words, white space made single."""
    clean = (" ".join(text.split()) for text in texts)
    return tuple(dict.fromkeys(text for text in clean if len(text.split()) >= _SHORTEST))

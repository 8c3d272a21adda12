"""The same rows as text: prompts and answers for a language model, by a plan that the whole federation shares.

What a row reads as must be equal at every site, so nothing here looks at a site's rows to decide it: the columns come
from the federated sums, the digits and words from the configuration. Rows keep their number in the pool: the split
table that feeds the QNN feeds this view, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from llm_qfl.federation.data.prompts import ROW, TextRow, new_lines
from llm_qfl.federation.data.sums import POOLED, FeatureSums
from llm_qfl.federation.data.table import Table
from llm_qfl.federation.errors import ConfigError, DataError, RecordError
from llm_qfl.federation.fingerprint import digest_of
from llm_qfl.federation.types import Array, Labels

Style = Literal["numbers", "levels", "words", "text"]
STYLES = ("numbers", "levels", "words", "text")
COLUMNS = 10
"""Columns of a tabular row that are written out: about 100 tokens with their names."""
ALIKE = 0.95  # a column this correlated (within classes) with a chosen one says the same again
LEVELS = ("very low", "low", "average", "high", "very high")
BOUNDS = (-1.5, -0.5, 0.5, 1.5)  # standard deviations between the levels
TEMPLATES: Mapping[str, str] = {
    "numbers": "{row}\nClass:",
    "levels": "{row}\nClass:",
    "words": "DNA: {row}\nClass:",
    "text": "Text: {row}\nClass:",
}


@dataclass(frozen=True)
class TextPlan:
    """How rows become text, fixed by the server for the whole run.

    Attributes:
        style: `numbers` and `levels` write chosen columns as `name: value`, rounded or in words; `words` writes a
            sequence as words of k bases; `text` takes the text as it is.
        template: the prompt, with `{row}` where the row goes.
        words: the answer of each class, in the order of the classes.
        columns: numbers of the chosen columns among the row's.
        names: their names.
        centre, scale: their mean and standard deviation over the federation, for `levels`.
        digits: significant digits of `numbers`.
        factor: what `numbers` are multiplied by before they are written (k-mer frequencies are shares per thousand).
        k: bases of a word of `words`.
    """

    style: str
    template: str
    words: tuple[str, ...]
    columns: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    centre: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    digits: int = 3
    factor: float = 1.0
    k: int = 6

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise DataError(f"text: expected a style among {', '.join(STYLES)}, got {self.style!r}")
        if self.template.count(ROW) != 1:
            raise ConfigError(f"language.prompt: expected {ROW} once in the template, got {self.template!r}")
        lengths = {len(self.columns), len(self.names), len(self.centre), len(self.scale)}
        if not np.isfinite([*self.centre, *self.scale]).all() or min(self.scale, default=1.0) <= 0:
            raise DataError("text: means and deviations of the chosen columns expected finite, deviations above 0")
        if len(lengths) != 1 or (self.style in ("numbers", "levels")) == (lengths == {0}):
            raise DataError(f"text: the style {self.style} and {sorted(lengths)} chosen columns do not go together")

    def row_texts(self, table: Table, numbers: Array | None, rows: Labels) -> tuple[str, ...]:
        """What these rows read as, without the question.

        Args:
            table: the source's rows.
            numbers: (N, D) the encoded rows, for `numbers` and `levels` (k-mer frequencies are columns, too).
            rows: (M,) numbers of rows in both.

        Raises:
            DataError: rows of another kind than the plan is for.
        """
        if self.style in ("numbers", "levels"):
            if numbers is None or numbers.ndim != 2 or numbers.shape[1] <= max(self.columns):
                got = "none" if numbers is None else f"shape {numbers.shape}"
                raise DataError(f"text: expected rows with at least {max(self.columns) + 1} numbers, got {got}")
            return tuple(self._write(values) for values in numbers[rows][:, list(self.columns)])
        found = table.sequences if self.style == "words" else table.texts
        if found is None:
            raise DataError(f"text: the style {self.style} needs rows of another kind than {table.kind!r}")
        if self.style == "words":
            return tuple(kmer_words(found[i], self.k) for i in rows)
        if table.answers is not None:  # a prompt may be a program: its lines are kept
            return tuple(found[i].strip() for i in rows)
        return tuple(" ".join(found[i].split()) for i in rows)

    def row_answers(self, table: Table, rows: Labels) -> tuple[str, ...] | None:
        """What is to be written after these rows, where they are instructions; else None."""
        return None if table.answers is None else tuple(table.answers[i].strip() for i in rows)

    def classification(self, texts: Iterable[str], labels: Iterable[int]) -> tuple[TextRow, ...]:
        """Rows whose answer is the word of their class."""
        answers = [f" {word}" for word in self.words]
        pairs = zip(texts, labels, strict=True)
        return tuple(TextRow.of(self.template, text, answers[label]) for text, label in pairs)

    def prompts(self, texts: Iterable[str]) -> tuple[TextRow, ...]:
        """Rows without an answer: what is to be predicted, or public text in the task's template."""
        return tuple(TextRow.of(self.template, text, "") for text in texts)

    def first(self, count: int) -> TextPlan:
        """The plan with only its `count` most telling columns."""
        cut = {name: getattr(self, name)[:count] for name in ("columns", "names", "centre", "scale")}
        return replace(self, **cut)

    def typical(self, deviations: Sequence[float]) -> tuple[str, ...]:
        """What rows read as whose columns all lie so many standard deviations from their means."""
        return tuple(self._write(np.array(self.centre) + far * np.array(self.scale)) for far in deviations)

    def _write(self, values: Array) -> str:
        if self.style == "numbers":
            written = [rounded(self.factor * float(value), self.digits) for value in values]
        else:
            places = np.searchsorted(BOUNDS, (values - np.array(self.centre)) / np.array(self.scale), side="right")
            written = [LEVELS[place] for place in places]
        return ", ".join(f"{name}: {value}" for name, value in zip(self.names, written, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; floats round-trip exactly."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> TextPlan:
        """Read what `to_dict` wrote.

        Raises:
            RecordError: not such values.
        """
        try:
            if set(value) != set(cls.__dataclass_fields__):
                raise ValueError(f"expected the keys {sorted(cls.__dataclass_fields__)}, got {sorted(value)}")
            return cls(
                str(value["style"]),
                str(value["template"]),
                tuple(str(word) for word in value["words"]),
                tuple(int(column) for column in value["columns"]),
                tuple(str(name) for name in value["names"]),
                tuple(float(number) for number in value["centre"]),
                tuple(float(number) for number in value["scale"]),
                int(value["digits"]),
                float(value["factor"]),
                int(value["k"]),
            )
        except (TypeError, ValueError, KeyError, DataError, ConfigError) as error:
            raise RecordError(f"text plan: cannot be read ({type(error).__name__}: {error})") from error

    def digest(self) -> str:
        """Digest of its JSON text."""
        return digest_of(json.dumps(self.to_dict(), sort_keys=True))


def make_plan(
    encoding: str,
    columns: Sequence[str],
    words: tuple[str, ...],
    sums: FeatureSums | None,
    *,
    style: str = "auto",
    template: str = "auto",
    most: int = COLUMNS,
) -> TextPlan:
    """The plan of a run, from what the server knows after the query.

    Args:
        encoding: what numbers a row becomes (`columns`, `kmer`, `canonical-kmer`, `onehot`, `language`).
        columns: names of these numbers, or of the one text or sequence column.
        words: the answer of each class.
        sums: the federation's; they choose the columns. None where rows are not written as columns.
        style: `auto` writes columns in words (`levels`: a third fewer tokens than numbers, and a small model reads
            them better), one-hot sequences as words of bases, texts as they are.
        template: the prompt with `{row}`, or `auto`; a backslash and an n stand for a new line.
        most: columns that are written out.

    Raises:
        ConfigError: the style does not go with the rows, or the template lacks `{row}`.
    """
    fitting = {"language": ("text",), "onehot": ("words",)}.get(encoding, ("levels", "numbers"))
    chosen = fitting[0] if style == "auto" else style
    if chosen not in fitting:
        raise ConfigError(f"language.text: rows encoded as {encoding} read as {' or '.join(fitting)}, got {style!r}")
    template = TEMPLATES[chosen] if template == "auto" else new_lines(template)
    if chosen in ("words", "text"):
        return TextPlan(chosen, template, words)
    if sums is None or sums.means.shape[1] != len(columns):
        raise DataError(f"text: expected the federation's sums of {len(columns)} columns to choose from, got none such")
    picked = choose_columns(sums, most)
    mean, deviation = _spread(sums)
    return TextPlan(
        chosen,
        template,
        words,
        tuple(int(i) for i in picked),
        tuple(columns[i] for i in picked),
        tuple(float(mean[i]) for i in picked),
        tuple(float(deviation[i]) for i in picked),
        *((2, 1000.0) if encoding.endswith("kmer") else (3, 1.0)),
    )


def choose_columns(sums: FeatureSums, most: int = COLUMNS) -> Labels:
    """The columns worth writing out, the most telling first; by the federated sums alone.

    By class (`discriminant`): the largest ratio of variance between classes to variance within (Fisher's). Pooled
    (`pca`): the largest mean square of correlations with the other columns. Of two columns that are nearly the same
    the later one waits until the others are in. Without products (`none`): the first ones. Constant columns never.

    Args:
        sums: the federation's.
        most: how many at most.

    Raises:
        DataError: every column is constant.
    """
    mean, deviation = _spread(sums)
    varying = np.flatnonzero(deviation > 1e-12 * np.maximum(np.abs(mean), np.finfo(float).tiny))
    if not len(varying):
        raise DataError("text: every column is constant over the federation; nothing to write out")
    if len(sums.scatter) == len(mean):
        return varying[:most]
    within = sums.scatter_matrix()[np.ix_(varying, varying)] / sums.rows
    floor = 1e-9 * deviation[varying] ** 2  # a column that is constant within the classes has no finite ratio
    size = np.sqrt(np.maximum(np.diagonal(within), floor))
    correlation = np.clip(within / np.outer(size, size), -1, 1)
    by_class = sums.groups != POOLED
    merit = (deviation[varying] / size) ** 2 - 1 if by_class else (correlation**2).mean(axis=1)
    order = np.argsort(-merit, kind="stable")
    chosen: list[int] = []
    for candidate in order:
        if len(chosen) < most and (np.abs(correlation[candidate, chosen]) <= ALIKE).all():
            chosen.append(int(candidate))
    chosen += [int(candidate) for candidate in order if candidate not in chosen]
    return varying[chosen[:most]]


def _spread(sums: FeatureSums) -> tuple[Array, Array]:
    """Mean (D,) and standard deviation (D,) over all rows of the sums."""
    weights = sums.counts / sums.counts.sum()
    mean = weights @ sums.means
    diagonal = sums.scatter if len(sums.scatter) == len(mean) else np.diagonal(sums.scatter_matrix())
    between = weights @ (sums.means - mean) ** 2
    return mean, np.sqrt(diagonal / sums.counts.sum() + between)


def kmer_words(sequence: str, k: int = 6) -> str:
    """A sequence as words of k bases, one after the other; the last may be shorter."""
    return " ".join(sequence[start : start + k] for start in range(0, len(sequence), k))


def rounded(value: float, digits: int) -> str:
    """A number with so many significant digits; no exponent where it can be read without."""
    if value != 0 and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}"
    text = np.format_float_positional(value, precision=digits, unique=False, fractional=False, trim="-")
    return "0" if text in ("-0", "") else text

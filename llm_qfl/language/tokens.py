"""From prompts and answers to tokens: the prompt masked, the answer never cut away, label words that can be told apart.

A row of `TokenRows` says how many of its tokens are prompt; `batches.collate` pads it and masks prompt and padding.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from llm_qfl.federation.data.prompts import TextRow
from llm_qfl.federation.data.text import TextPlan
from llm_qfl.federation.errors import LanguageError
from llm_qfl.federation.types import Labels
from llm_qfl.language.batches import TokenRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOG = logging.getLogger(__name__)
Tokens = tuple[int, ...]
TYPICAL = (-2.0, -1.0, 0.0, 1.0, 2.0)


@dataclass(frozen=True)
class LabelWords:
    """The classes' answers as tokens.

    Attributes:
        words: the answers as text, in the order of the classes.
        shared: tokens that all answers begin with (a space of its own, say): they belong to the prompt, for they tell
            nothing and their likelihood cancels.
        tokens: the rest of each answer, at least one token, each with another first one.
    """

    words: tuple[str, ...]
    shared: Tokens
    tokens: tuple[Tokens, ...]

    @classmethod
    def of(cls, words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> LabelWords:
        """Tokenise the answers and refuse those that cannot be told apart.

        Args:
            words: one answer a class, without the space before it.
            tokenizer: the model's.

        Raises:
            LanguageError: two answers with the same first token, one the beginning of another, or a letter that the
                tokenizer does not know.
        """
        if len(words) < 2:
            raise LanguageError(f"language.label-words: expected at least two, got {list(words)}")
        coded = [tuple(ids) for ids in encode([f" {word}" for word in words], tokenizer)]
        for word, ids in zip(words, coded, strict=True):
            if not ids or (tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids):
                raise LanguageError(
                    f"language.label-words: the tokenizer has no tokens for {word!r}; choose another word"
                )
        for i, first in enumerate(coded):
            for j, second in enumerate(coded):
                if i != j and second[: len(first)] == first:
                    raise LanguageError(
                        f"language.label-words: the tokens of {words[i]!r} are the beginning of those of {words[j]!r}: "
                        "it would always be the likelier one; choose other words"
                    )
        common = 0
        while len({ids[common] for ids in coded}) == 1:  # ends before any word does: none begins another
            common += 1
        starts: dict[int, str] = {}
        for word, ids in zip(words, coded, strict=True):
            if ids[common] in starts:
                raise LanguageError(
                    f"language.label-words: {starts[ids[common]]!r} and {word!r} begin with the same token "
                    f"({tokenizer.convert_ids_to_tokens(ids[common])!r}) of this model; choose others, or `letters`"
                )
            starts[ids[common]] = word
        return cls(tuple(words), coded[0][:common], tuple(ids[common:] for ids in coded))

    @property
    def longest(self) -> int:
        """Tokens of the longest answer."""
        return max(len(tokens) for tokens in self.tokens)


@dataclass(frozen=True, eq=False)
class ClassRows:
    """Prompts to be answered with a label word.

    Attributes:
        prompts: tokens of each prompt, what all words share included, (length,) int64.
        words: the answers.
    """

    prompts: tuple[np.ndarray, ...]
    words: LabelWords

    def __len__(self) -> int:
        return len(self.prompts)

    def alone(self) -> TokenRows:
        """The prompts without an answer, for features and for alignment in the form of the task."""
        return TokenRows.of(self.prompts)

    def with_word(self, word: int) -> TokenRows:
        """Every prompt with the same answer."""
        return self.answered(np.full(len(self), word, np.intp))

    def answered(self, labels: Labels, class_weight: np.ndarray | None = None) -> TokenRows:
        """Every prompt with the answer of its class, for training.

        Args:
            labels: (N,) class of each row.
            class_weight: (C,) weight of each class in the loss, or None for ones.

        Raises:
            LanguageError: another number of labels than of rows, or a label that is no class.
        """
        if len(labels) != len(self) or (len(labels) and not 0 <= labels.min() <= labels.max() < len(self.words.tokens)):
            raise LanguageError(
                f"label words: expected {len(self)} labels below {len(self.words.tokens)}, got {labels}"
            )
        answers = [np.array(tokens, np.int64) for tokens in self.words.tokens]
        ids = [np.concatenate([prompt, answers[y]]) for prompt, y in zip(self.prompts, labels, strict=True)]
        weight = None if class_weight is None else class_weight[labels]
        return TokenRows.of(ids, [len(prompt) for prompt in self.prompts], weight)


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Tokens of texts, nothing added; a text that spells a control token gets the tokens of its letters."""
    if not texts:
        return []
    coded: list[list[int]] = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False, return_attention_mask=False
    )["input_ids"]
    return coded


def opening(tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """What the tokenizer puts before every text (a beginning-of-sequence token, or nothing).

    Raises:
        LanguageError: where it cannot be found out.
    """
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return tuple(whole[:start])
    raise LanguageError(f"language.model: its tokenizer makes {bare} of 'a', and {whole} with its own tokens added")


def class_rows(
    rows: Sequence[TextRow], words: LabelWords, tokenizer: PreTrainedTokenizerBase, *, limit: int
) -> ClassRows:
    """Prompts of a classification task; what a row says is shortened where it does not fit, the question never.

    Args:
        rows: their prompts count, their answers do not.
        words: the answers.
        tokenizer: the model's.
        limit: most tokens of prompt and answer together.

    Raises:
        LanguageError: a prompt that does not fit even without the row's text.
    """
    shared = np.array(words.shared, np.int64)
    prompts = _prompts(rows, tokenizer, [limit - words.longest - len(words.shared)] * len(rows), limit)
    return ClassRows(tuple(np.concatenate([prompt, shared]) for prompt in prompts), words)


def fitting_plan(plan: TextPlan, words: LabelWords, tokenizer: PreTrainedTokenizerBase, *, limit: int) -> TextPlan:
    """The plan with as many of its columns, the most telling first, as fit in the limit; other plans as they are.

    The server decides it once, from numbers around the federated means (`TYPICAL` deviations from them): no site's
    rows are looked at. A row that is longer still loses the end of its last column.

    Args:
        plan: how rows are written.
        words: the answers.
        tokenizer: the model's.
        limit: most tokens of prompt and answer together.

    Raises:
        LanguageError: not even one column fits.
    """
    if not plan.columns:
        return plan
    for count in range(len(plan.columns), 0, -1):
        shorter = plan.first(count)
        coded = encode([row.prompt for row in shorter.prompts(shorter.typical(TYPICAL))], tokenizer)
        longest = max(len(ids) for ids in coded)
        if longest + len(opening(tokenizer)) + len(words.shared) + words.longest <= limit:
            return shorter
    raise LanguageError(
        f"language.max-tokens: a row of one column ({plan.names[0]!r}) takes {longest} tokens, the limit is {limit}; "
        "raise it, or shorten the column's name or the prompt"
    )


def answer_rows(
    rows: Sequence[TextRow],
    tokenizer: PreTrainedTokenizerBase,
    *,
    limit: int,
    end: bool = True,
    long_answers: Literal["refuse", "cut"] = "refuse",
) -> TokenRows:
    """Rows of a generation task or of instruction data.

    Args:
        rows: prompts and answers.
        tokenizer: the model's.
        limit: most tokens of a row.
        end: does an answer end with the model's end token? One that was cut does not.
        long_answers: what becomes of an answer that does not fit beside its prompt: refused, or cut where half of the
            row's tokens, or as many as there are, are the prompt's.

    Raises:
        LanguageError: an empty answer, one that does not fit, or a model without an end token.
    """
    if end and tokenizer.eos_token_id is None:
        raise LanguageError("language.model: its tokenizer has no end token; answers cannot end")
    closing = [int(tokenizer.eos_token_id)] if end else []
    answers = [ids + closing for ids in encode([row.answer for row in rows], tokenizer)]
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        if len(answer) == len(closing):
            raise LanguageError(f"row {number}: the answer {row.answer!r} is empty; there is nothing to learn or score")
    if long_answers == "cut":
        shortest = [len(ids) for ids in encode([row.shortened(0) for row in rows], tokenizer)]
        whole = [len(ids) for ids in encode([row.prompt for row in rows], tokenizer)]
        kept = [min(size, max(least, limit // 2)) for size, least in zip(whole, shortest, strict=True)]
        room = [limit - len(opening(tokenizer)) - max(size, 1) for size in kept]
        cut = sum(len(ids) > max(most, 1) for ids, most in zip(answers, room, strict=True))
        if cut:
            _LOG.warning(
                "language.max-tokens=%d cuts %d of %d answers; the rest of them is not learned", limit, cut, len(rows)
            )
        answers = [ids[: max(most, 1)] for ids, most in zip(answers, room, strict=True)]
    prompts = _prompts(rows, tokenizer, [limit - len(answer) for answer in answers], limit)
    ids = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    return TokenRows.of(ids, [len(prompt) for prompt in prompts])


def plain_rows(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, limit: int) -> TokenRows:
    """Texts without a task, cut at the end: every token after the first counts as answer."""
    start = opening(tokenizer)
    return TokenRows.of([[*start, *ids][:limit] for ids in encode(texts, tokenizer)])


def _prompts(
    rows: Sequence[TextRow], tokenizer: PreTrainedTokenizerBase, room: Sequence[int], limit: int
) -> list[np.ndarray]:
    """Tokens of prompts, each within its room; the longest beginning of the row's text that fits is kept."""
    start = opening(tokenizer)
    out = []
    for number, (row, ids) in enumerate(zip(rows, encode([row.prompt for row in rows], tokenizer), strict=True)):
        most = room[number] - len(start)
        if len(ids) > most:
            ids = _shortened(row, most, tokenizer)  # noqa: PLW2901
        if len(ids) > most:
            raise LanguageError(
                f"row {number}: the prompt without the row's text takes {len(ids)} tokens, the limit of {limit} leaves "
                f"{most} beside the answer, which would be cut away; raise language.max-tokens or shorten the prompt"
            )
        if not ids and not start:
            raise LanguageError(
                f"row {number}: the prompt is empty; expected at least one token that an answer follows"
            )
        out.append(np.array([*start, *ids], np.int64))
    return out


def _shortened(row: TextRow, most: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Bisection over characters: any tokenizer will do, and what is kept reads as it would on its own."""
    best = encode([row.shortened(0)], tokenizer)[0]
    low, high = 0, row.stop - row.start
    while high - low > 1:
        middle = (low + high) // 2
        ids = encode([row.shortened(middle)], tokenizer)[0]
        if len(ids) <= most:
            low, best = middle, ids
        else:
            high = middle
    return best

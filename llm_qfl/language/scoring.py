"""p(class | text) from the label words' log-likelihoods, its calibration without labels, and scores of written texts.

A label word's likelihood is the product over its tokens; over the classes it is normalised. What a model says before
it was tuned leans to some words whatever the text: that prior is measured on unlabelled public prompts and divided
out, or a gain of tuning would be calibration alone (Zhao et al., "Calibrate before use", arXiv 2102.09690).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp, softmax

from llm_qfl.federation.errors import LanguageError
from llm_qfl.federation.types import Array, Labels, Scores
from llm_qfl.language.batches import TokenRows, collate
from llm_qfl.language.cache import StateCache
from llm_qfl.language.losses import answer_nll
from llm_qfl.language.route import Route, outputs, score
from llm_qfl.language.tokens import ClassRows

KEPT = 2  # versions of boundary states that a scorer keeps: the compressed model's and the full one's

CacheOf = Callable[[Route, TokenRows], StateCache | None]


class LabelScorer:
    """Log-likelihoods of label words after the same prompts, again and again.

    Frozen layers are run once per row and version. Words of one token are read after the prompt of another's row, so
    a task whose words are single tokens costs one pass a row.

    Args:
        rows: the prompts.
        cache_of: where the boundary states of these rows on this route lie (a site's disk, say), or None to compute
            them anew; by default they are kept in memory.
    """

    def __init__(self, rows: ClassRows, *, cache_of: CacheOf | None = None) -> None:
        self.rows = rows
        long_ones = [word for word, tokens in enumerate(rows.words.tokens) if len(tokens) > 1]
        self._carriers = {word: rows.with_word(word) for word in long_ones or [0]}
        self._cache_of = cache_of or self._in_memory
        self._caches: dict[str, list[tuple[TokenRows, StateCache]]] = {}

    def log_likelihoods(self, route: Route, batch_size: int = 16) -> Array:
        """Sum over the tokens of each word of log p(token | prompt and the tokens before), nats: (N, C) float64.

        Args:
            route: the model.
            batch_size: rows at once.
        """
        out = np.full((len(self.rows), len(self.rows.words.tokens)), np.nan)
        if not len(self.rows):
            return out
        single = [word for word, tokens in enumerate(self.rows.words.tokens) if len(tokens) == 1]
        for place, (word, token_rows) in enumerate(self._carriers.items()):
            others = single if place == 0 else []
            cache = self._cache_of(route, token_rows)
            for chosen, hidden in outputs(route, token_rows, cache, batch_size):
                if others:
                    tokens = [self.rows.words.tokens[other][0] for other in others]
                    out[chosen[:, None], others] = _first_tokens(route, token_rows, chosen, hidden, tokens)
                if word not in others:
                    out[chosen, word] = _whole_words(route, token_rows, chosen, hidden)
        if not np.isfinite(out).all():
            raise LanguageError("scoring: the model's log-likelihoods are not finite; its weights are damaged")
        return out

    def _in_memory(self, route: Route, rows: TokenRows) -> StateCache | None:
        if not route.prefix:  # the embedding alone is no work
            return None
        version = route.version()
        if version not in self._caches:
            while len(self._caches) >= KEPT:
                del self._caches[next(iter(self._caches))]
            self._caches[version] = [(kept, route.cache(kept)) for kept in self._carriers.values()]
        return next(cache for kept, cache in self._caches[version] if kept is rows)


@torch.no_grad()
def _first_tokens(
    route: Route, rows: TokenRows, chosen: np.ndarray, hidden: torch.Tensor, tokens: list[int]
) -> np.ndarray:
    """Log-probabilities of single tokens after each prompt: (rows, tokens)."""
    last = torch.from_numpy(rows.prompt[chosen] - 1).to(hidden.device)
    logits = route.stack.head(hidden[torch.arange(len(chosen), device=hidden.device), last])  # (rows, vocabulary)
    values = (logits[:, tokens] - torch.logsumexp(logits, dim=1, keepdim=True)).cpu().numpy()
    return np.asarray(values, np.float64)


@torch.no_grad()
def _whole_words(route: Route, rows: TokenRows, chosen: np.ndarray, hidden: torch.Tensor) -> np.ndarray:
    """Log-probability of each row's own answer: (rows,)."""
    batch = collate(rows, chosen).to(route.stack.device)
    nll = answer_nll(route.stack, hidden, batch).cpu().numpy().astype(np.float64)
    sums: np.ndarray = -nll.reshape(len(chosen), -1).sum(axis=1)  # every row has the same answer
    return sums


@dataclass(frozen=True)
class Calibration:
    """Class log-probabilities from log-likelihoods: log softmax(scale * likelihoods + bias).

    Attributes:
        bias: one number a class, nats; their mean is zero.
        scale: 1 leaves the spread of the log-likelihoods as it is.
    """

    bias: tuple[float, ...]
    scale: float = 1.0

    @classmethod
    def none(cls, classes: int) -> Calibration:
        """Nothing but the normalisation."""
        return cls((0.0,) * classes)

    def log_probabilities(self, likelihoods: Array) -> Array:
        """Log p(class | text), nats, of log-likelihoods (N, C)."""
        out: Array = log_softmax(self.scale * likelihoods + np.array(self.bias), axis=1)
        return out

    def scores(self, likelihoods: Array, labels: Labels) -> Scores:
        """Accuracy, macro-recall (`balanced_accuracy`) and mean negative log-likelihood in nats, as sums."""
        return Scores.of(self.log_probabilities(likelihoods), labels)


def divide_by_mean(public: Array) -> Calibration:
    """Divide by the mean probability of each class over unlabelled public prompts (one step of `match_prior`).

    Args:
        public: log-likelihoods (N, C) of the words after public prompts.
    """
    return _centred(-(logsumexp(log_softmax(_some(public), axis=1), axis=0) - np.log(len(public))))


def match_prior(public: Array, target: Array | None = None) -> Calibration:
    """Biases with which the mean probabilities over unlabelled public prompts are the target's.

    They minimise mean(logsumexp(likelihoods + bias)) - target . bias, which is convex; the gradient is the difference
    between the two.

    Args:
        public: log-likelihoods (N, C).
        target: (C,) positive shares that sum to 1; equal ones by default.

    Raises:
        LanguageError: shares that are none, or no prompts.
    """
    found = _some(public)
    classes = found.shape[1]
    shares = np.full(classes, 1 / classes) if target is None else np.asarray(target, np.float64)
    if shares.shape != (classes,) or not (shares > 0).all() or not np.isclose(shares.sum(), 1):
        raise LanguageError(f"calibration: expected {classes} positive shares that sum to 1, got {shares}")

    def objective(bias: Array) -> tuple[float, Array]:
        moved = found + bias
        return float(logsumexp(moved, axis=1).mean() - shares @ bias), softmax(moved, axis=1).mean(axis=0) - shares

    start = -found.mean(axis=0)
    return _centred(_minimum(objective, start - start.mean()))


def fit_bias_and_scale(likelihoods: Array, labels: Labels, weights: Array | None = None) -> Calibration:
    """The control with labels: biases and one scale that minimise the negative log-likelihood (Platt, by class).

    What tuning gains beyond this is more than calibration.

    Args:
        likelihoods: (N, C) of labelled training rows.
        labels: (N,).
        weights: (C,) of each class's rows (`class_weights` for a balanced loss); None weighs rows alike.

    Raises:
        LanguageError: no rows, or a class without rows (its bias would be minus infinity).
    """
    found = _some(likelihoods)
    classes = found.shape[1]
    counts = np.bincount(labels, minlength=classes)
    if (counts == 0).any():
        raise LanguageError(f"calibration: expected rows of {classes} classes to fit biases to, got counts {counts}")
    centred = found - found.mean(axis=0)
    one_hot = np.eye(classes)[labels]
    weight = np.ones(len(labels)) if weights is None else weights[labels]
    share = (weight / weight.sum())[:, None]

    def objective(x: Array) -> tuple[float, Array]:
        logits = x[0] * centred + x[1:]
        error = (softmax(logits, axis=1) - one_hot) * share
        value = -(log_softmax(logits, axis=1) * one_hot * share).sum()
        return float(value), np.concatenate([[(error * centred).sum()], error.sum(axis=0)])

    x = _minimum(objective, np.concatenate([[1.0], np.log(counts / counts.sum())]))
    return Calibration(_centred(x[1:] - x[0] * found.mean(axis=0)).bias, float(x[0]))


def class_weights(counts: np.ndarray) -> np.ndarray:
    """Weight of each class in a balanced loss: N / (classes with rows * rows of the class); mean 1 over the rows.

    Args:
        counts: (C,) training rows of each class, of a site or of the federation; a class without rows weighs 1.
    """
    there = counts > 0
    weights = np.ones(len(counts))
    weights[there] = counts.sum() / (there.sum() * counts[there])
    return weights


@dataclass(frozen=True, eq=False)
class WrittenScores:
    """Negative log-likelihoods of answers, nats, the end token apart.

    Attributes:
        text: (N,) sum over each answer's tokens without the end token.
        tokens: (N,) how many these are.
        end: (N,) of the end token; NaN where the answer has none.
    """

    text: Array
    tokens: Labels
    end: Array

    @property
    def text_nll(self) -> float | None:
        """Per token of text, nats."""
        return float(self.text.sum() / self.tokens.sum()) if self.tokens.sum() else None

    @property
    def end_nll(self) -> float | None:
        """Per end token, nats."""
        ends = self.end[np.isfinite(self.end)]
        return float(ends.mean()) if len(ends) else None

    @property
    def nll(self) -> float | None:
        """Per token, end tokens counted, nats."""
        ends = self.end[np.isfinite(self.end)]
        count = int(self.tokens.sum()) + len(ends)
        return float((self.text.sum() + ends.sum()) / count) if count else None


def written_scores(
    route: Route, rows: TokenRows, end: int | None, cache: StateCache | None = None, batch_size: int = 16
) -> WrittenScores:
    """Score answers as the model would have written them.

    Args:
        route: the model.
        rows: prompts and answers.
        end: the end token; an answer that ends with it is scored without it and it on its own.
        cache: boundary states of exactly these rows.
        batch_size: rows at once.
    """
    values = score(route, rows, cache, batch_size)
    ended = [end is not None and int(ids[-1]) == end for ids in rows.ids]
    text = [float(row[:-1].sum() if last else row.sum()) for row, last in zip(values, ended, strict=True)]
    count = [len(row) - last for row, last in zip(values, ended, strict=True)]
    ends = [float(row[-1]) if last else np.nan for row, last in zip(values, ended, strict=True)]
    return WrittenScores(np.array(text), np.array(count, np.intp), np.array(ends))


def _some(likelihoods: Array) -> Array:
    if likelihoods.ndim != 2 or not len(likelihoods):
        raise LanguageError(f"calibration: expected log-likelihoods of at least one row, got shape {likelihoods.shape}")
    return likelihoods


def _centred(bias: Array) -> Calibration:
    return Calibration(tuple(float(b) for b in bias - bias.mean()))


def _minimum(objective: object, start: Array) -> Array:
    found = minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 500})
    if not np.abs(found.jac).max() < 1e-4:
        raise LanguageError(
            f"calibration: no minimum found ({found.message}); the classes are told apart without error"
        )
    return np.asarray(found.x, np.float64)

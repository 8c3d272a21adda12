"""Rows of tokens and the padded batches made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llm_qfl.federation.errors import LanguageError


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Rows as token numbers: a prompt that is given, an answer that is learned and scored.

    Args:
        ids: each row's tokens, prompt and answer together, (length,) int64.
        prompt: how many of a row's tokens are prompt, (rows,) int64; at least 1, since nothing predicts token 0.
        weight: a row's weight in the loss, (rows,) float64.

    Raises:
        LanguageError: for a row without prompt or answer (cut away by truncation), or lengths that do not match.
    """

    ids: tuple[np.ndarray, ...]
    prompt: np.ndarray
    weight: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.prompt) == len(self.weight):
            raise LanguageError(
                f"token rows: {len(self.ids)} rows, {len(self.prompt)} prompt lengths, {len(self.weight)} weights"
            )
        for number, (ids, prompt) in enumerate(zip(self.ids, self.prompt, strict=True)):
            if not 1 <= prompt < len(ids):
                raise LanguageError(
                    f"token rows: row {number} has {len(ids)} tokens, {prompt} of them prompt: expected at least one "
                    "of prompt and one of answer (was the answer cut away? raise the token limit or drop the row)"
                )
        if not (np.isfinite(self.weight).all() and (self.weight > 0).all()):
            raise LanguageError("token rows: weights must be positive and finite")

    @classmethod
    def of(
        cls,
        ids: Sequence[Sequence[int] | np.ndarray],
        prompt: Sequence[int] | np.ndarray | None = None,
        weight: Sequence[float] | np.ndarray | None = None,
    ) -> TokenRows:
        """Rows from plain sequences; without `prompt` every token after the first is learned."""
        return cls(
            tuple(np.asarray(row, dtype=np.int64) for row in ids),
            np.ones(len(ids), np.int64) if prompt is None else np.asarray(prompt, np.int64),
            np.ones(len(ids)) if weight is None else np.asarray(weight, np.float64),
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, (rows,) int64."""
        return np.array([len(row) for row in self.ids], np.int64)

    def take(self, rows: Sequence[int] | np.ndarray) -> TokenRows:
        """Some of the rows, in the order asked for."""
        return TokenRows(tuple(self.ids[i] for i in rows), self.prompt[list(rows)], self.weight[list(rows)])

    def digest(self) -> str:
        """SHA-256 over the tokens (not over prompt lengths and weights: a hidden state does not depend on them)."""
        total = hashlib.sha256()
        for row in self.ids:
            total.update(np.int64(len(row)).tobytes() + np.ascontiguousarray(row).tobytes())
        return total.hexdigest()


@dataclass(frozen=True, eq=False)
class Batch:
    """Some rows, right-padded.

    Attributes:
        ids: (rows, length) int64.
        mask: (rows, length) bool, true at tokens. It is made from lengths: padding may be any token.
        where: row and position whose logits predict an answer token, two (answers,) int64.
        target: those answer tokens, (answers,) int64.
        weight: weight of each in the loss, (answers,) float32.
    """

    ids: Tensor
    mask: Tensor
    where: tuple[Tensor, Tensor]
    target: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return Batch(
            self.ids.to(device),
            self.mask.to(device),
            (self.where[0].to(device), self.where[1].to(device)),
            self.target.to(device),
            self.weight.to(device),
        )


def collate(rows: TokenRows, chosen: Sequence[int] | np.ndarray) -> Batch:
    """Pad the chosen rows to the longest of them."""
    picked = [rows.ids[i] for i in chosen]
    length = max(len(row) for row in picked)
    ids = np.zeros((len(picked), length), np.int64)
    mask = np.zeros((len(picked), length), bool)
    where: list[tuple[int, int]] = []
    target: list[int] = []
    weight: list[float] = []
    for k, (row, number) in enumerate(zip(picked, chosen, strict=True)):
        ids[k, : len(row)] = row
        mask[k, : len(row)] = True
        start = int(rows.prompt[number])
        where += [(k, position - 1) for position in range(start, len(row))]
        target += [int(token) for token in row[start:]]
        weight += [float(rows.weight[number])] * (len(row) - start)
    at = torch.tensor(where, dtype=torch.int64)
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(mask),
        (at[:, 0], at[:, 1]),
        torch.tensor(target, dtype=torch.int64),
        torch.tensor(weight, dtype=torch.float32),
    )


def by_length(lengths: np.ndarray, chosen: Sequence[int] | np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Cut rows into batches of about equal length, so that little padding is computed."""
    order = np.asarray(chosen, np.int64)[np.argsort(lengths[np.asarray(chosen, np.int64)], kind="stable")]
    for start in range(0, len(order), size):
        yield order[start : start + size]


def draw_batches(rows: int, size: int, steps: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Rows of each step: fresh permutations, cut into batches; a batch may span two of them.

    Args:
        rows: how many rows there are.
        size: rows per batch; no more than there are.
        steps: batches.
        generator: the only source of chance.
    """
    size = min(size, rows)
    need = size * steps
    order = np.concatenate([generator.permutation(rows) for _ in range(-(-need // rows))]) if need else np.zeros(0, int)
    return [order[step * size : (step + 1) * size] for step in range(steps)]

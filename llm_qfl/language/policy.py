"""The policy's tensors: a causal language model that scores the options of an action, factored over its fields.

The prompt is the state's text followed by a probe for each field; the letters A, B, C, ... are read after every probe
and normalised over the allowed options alone. That is an exact pi(a|s) for any causal model, without free text. The
probes stand one after the other in one row and no answer is written between them, so all fields together are one pass,
and the row depends on the state alone: its boundary states are computed once, whatever is tried on it.

The adapter `policy` lies on the last layers of the same frozen base that clients' adapters belong to; where a stack
holds others, theirs are not added here, nor this one there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from scipy.special import softmax
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from llm_qfl.federation.errors import LanguageError
from llm_qfl.federation.types import Array
from llm_qfl.language.batches import TokenRows, collate
from llm_qfl.language.cache import StateCache
from llm_qfl.language.device import cast_layers, cast_rest
from llm_qfl.language.lora import LoraAdapter, LoraSpec
from llm_qfl.language.models import BaseModel
from llm_qfl.language.route import Route
from llm_qfl.language.stack import Stack
from llm_qfl.language.tokens import encode, opening

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NAME = "policy"
DEFAULT_SPEC = LoraSpec(rank=8, alpha=16.0, modules="all-linear")
DEFAULT_LAYERS = 4


@dataclass(frozen=True, eq=False)
class PolicyRoute(Route):
    """A route that leaves every LoRA of the stack as it found it, also those on its own modules."""

    def _switched(self) -> contextlib.AbstractContextManager[None]:
        """See Route. Only the policy's update is added inside."""
        return _only(self.stack, self.active[0])


@dataclass(frozen=True, eq=False)
class PolicyRows:
    """States as tokens.

    Attributes:
        rows: one a state.
        positions: where each field's options are read, (states, fields) int64.
    """

    rows: TokenRows
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


class PolicyModel:
    """pi(a|s) over the options of named fields.

    Args:
        stack: the layers; the adapter is put on it, switched off for everybody else.
        tokenizer: the model's.
        base: digest of the base model.
        fields: name -> how many options, in the order in which they are probed.
        spec: the adapter's shape.
        layers: how many of the last layers it lies on.
        seed: of its first matrices; they start as no change at all.

    Raises:
        LanguageError: too many layers or options, or letters that are no single tokens of the model.
    """

    def __init__(
        self,
        stack: Stack,
        tokenizer: PreTrainedTokenizerBase,
        base: str,
        fields: Mapping[str, int],
        *,
        spec: LoraSpec = DEFAULT_SPEC,
        layers: int = DEFAULT_LAYERS,
        seed: int = 0,
    ) -> None:
        if not 1 <= layers <= len(stack):
            raise LanguageError(f"policy: expected an adapter on 1 to {len(stack)} layers, got {layers}")
        self.stack, self.fields, self.base, self._tokenizer = stack, dict(fields), base, tokenizer
        self._letters = _letter_tokens(tokenizer, max(self.fields.values(), default=0))
        self._opening = opening(tokenizer)
        self._probes = encode([f"\n{name}:" for name in self.fields], tokenizer)
        first = len(stack) - layers
        with _keeping(stack):
            self.adapter = LoraAdapter(stack, NAME, {i: i for i in range(first, len(stack))}, spec, seed)
        prefix, suffix = tuple(range(first)), tuple(range(first, len(stack)))
        self.route = PolicyRoute(stack, base, prefix, suffix, (self.adapter,), (self.adapter,))

    @classmethod
    def on(
        cls,
        base: BaseModel,
        fields: Mapping[str, int],
        *,
        spec: LoraSpec = DEFAULT_SPEC,
        layers: int = DEFAULT_LAYERS,
        seed: int = 0,
    ) -> PolicyModel:
        """A policy on a base model of its own, in float32: equal decisions on different machines."""
        stack = Stack(base.model)
        cast_layers(stack, range(len(stack)), torch.float32)
        cast_rest(stack, torch.float32)
        return cls(stack, base.tokenizer, base.digest, fields, spec=spec, layers=layers, seed=seed)

    def encode(self, texts: Sequence[str]) -> PolicyRows:
        """States as tokens, each with the probes after it."""
        rows: list[list[int]] = []
        positions = np.zeros((len(texts), len(self.fields)), np.int64)
        for number, text in enumerate(encode(list(texts), self._tokenizer)):
            row = [*self._opening, *text]
            for place, probe in enumerate(self._probes):
                row = row + probe
                positions[number, place] = len(row) - 1
            rows.append(row)
        return PolicyRows(TokenRows.of(rows), positions)

    def cache(self, rows: PolicyRows, folder: Path | None = None) -> StateCache:
        """A store for the boundary states of these rows: the frozen layers are run once for each of them."""
        return self.route.cache(rows.rows, folder)

    def logits(self, rows: PolicyRows, chosen: Sequence[int] | np.ndarray, cache: StateCache | None = None) -> Tensor:
        """Logits of the letters after every probe: (chosen, fields, letters), float32.

        With the adapter trainable (and gradients on) they carry its gradient; call inside `self.route.adapting()`.

        Args:
            rows: from `encode`.
            chosen: rows.
            cache: boundary states of exactly these rows; what it lacks is computed.
        """
        if cache is None:
            boundary = self.route.boundary_here(collate(rows.rows, chosen).ids)
        else:
            self.route.fill_here(cache, np.asarray(chosen))
            boundary = cache.batch(chosen)
        hidden = self.route.tail(boundary.to(self.stack.device))
        at = torch.from_numpy(rows.positions[list(chosen)]).to(hidden.device)  # (chosen, fields)
        picked = hidden[torch.arange(len(at), device=hidden.device)[:, None], at]
        return self.stack.head(picked)[..., self._letters]

    def log_probabilities(self, logits: Tensor, allowed: Tensor) -> Tensor:
        """Log pi of every option, nats; -inf for those that are not allowed.

        Args:
            logits: (states, fields, letters).
            allowed: the same shape, bool; from `mask`.
        """
        return torch.log_softmax(logits.masked_fill(~allowed, float("-inf")), dim=-1)

    def mask(self, allowed: Sequence[Mapping[str, Sequence[bool]]]) -> Tensor:
        """Masks of several states as one tensor (states, fields, letters); letters beyond a field's options are off.

        Raises:
            LanguageError: other fields or numbers of options than the policy's, or a field with nothing allowed.
        """
        out = torch.zeros((len(allowed), len(self.fields), len(self._letters)), dtype=torch.bool)
        for number, one in enumerate(allowed):
            if {name: len(flags) for name, flags in one.items()} != self.fields:
                given = {name: len(flags) for name, flags in one.items()}
                raise LanguageError(f"policy: expected masks of {self.fields}, got {given}")
            for place, name in enumerate(self.fields):
                if not any(one[name]):
                    raise LanguageError(f"policy: no option of {name} is allowed")
                out[number, place, : len(one[name])] = torch.tensor(list(one[name]), dtype=torch.bool)
        return out

    @torch.no_grad()
    def probabilities(self, text: str, allowed: Mapping[str, Sequence[bool]]) -> dict[str, Array]:
        """pi(.|s) of one state, field by field, in one pass; float64, exactly zero where not allowed.

        One thread: half a second of one core, where two threads that wait for a busy core can take ten.

        Args:
            text: the state.
            allowed: field -> one flag an option.

        Raises:
            LanguageError: masks that do not fit, or a text longer than the model's positions.
        """
        flags = self.mask([allowed])[0].numpy()
        with self.route.adapting(), _one_thread():
            logits = self.logits(self.encode([text]), [0])[0].double().cpu().numpy()
        found: dict[str, Array] = {}
        for place, (name, size) in enumerate(self.fields.items()):
            values = np.where(flags[place, :size], logits[place, :size], -np.inf)
            # A logit that is not a number makes every probability none: the caller must see that.
            found[name] = np.asarray(softmax(values), np.float64)
        return found

    def option_tokens(self) -> tuple[int, ...]:
        """Tokens of the letters, in their order."""
        return tuple(self._letters)


def _letter_tokens(tokenizer: PreTrainedTokenizerBase, options: int) -> list[int]:
    """One token for each of the first letters, after a space where the model has such tokens.

    Raises:
        LanguageError: where a letter is not one token, or there are too few letters.
    """
    if not 1 <= options <= len(LETTERS):
        raise LanguageError(f"policy: expected fields of 1 to {len(LETTERS)} options, got {options}")
    for form in (" {}", "{}"):
        pieces = encode([form.format(letter) for letter in LETTERS[:options]], tokenizer)
        if all(len(piece) == 1 for piece in pieces) and len({piece[0] for piece in pieces}) == options:
            return [piece[0] for piece in pieces]
    raise LanguageError("policy: this model's tokenizer has no single tokens for the letters A, B, C, ...")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _lora_layers(stack: Stack) -> list[Any]:
    return [module for module in stack.model.modules() if isinstance(module, LoraLayer)]


def _switch(modules: Sequence[Any], names: Sequence[Sequence[str]]) -> None:
    """Set which updates each module adds; gradient flags stay as they are."""
    for module, active in zip(modules, names, strict=True):
        parameters: list[nn.Parameter] = [*module.lora_A.parameters(), *module.lora_B.parameters()]
        flags = [parameter.requires_grad for parameter in parameters]
        module.set_adapter(list(active))
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)


@contextlib.contextmanager
def _keeping(stack: Stack) -> Iterator[None]:
    """Whatever is wrapped inside: updates that were added go on being added, new ones are not."""
    before = {id(module): list(module.active_adapters) for module in _lora_layers(stack)}
    try:
        yield
    finally:
        modules = _lora_layers(stack)
        _switch(modules, [before.get(id(module), []) for module in modules])


@contextlib.contextmanager
def _only(stack: Stack, adapter: LoraAdapter) -> Iterator[None]:
    """Add one adapter's update and no other; on the way out, those that were added before."""
    modules = _lora_layers(stack)
    before = [list(module.active_adapters) for module in modules]
    _switch(modules, [[adapter.name] if adapter.name in module.lora_A else [] for module in modules])
    try:
        yield
    finally:
        _switch(modules, before)

"""Which layers are trained, which are kept as the emulator, which are dropped: pure integers, no torch.

A decoder of `n` layers is cut in three: the *adapter layers* (the last `a`; with `head` = h the first h and the last
a - h) carry the LoRA that the sites train; of the N = n - a layers between, k stay as the *emulator*; the rest is
dropped. k is N (1 - beta) rounded half up, in exact rational arithmetic, and kept layer i is `i (N - 1) // (k - 1)`
(FedBiOT's uniform stride; its float form misses the last layer for some N).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from llm_qfl.federation.errors import LanguageError


@dataclass(frozen=True)
class SplitPlan:
    """How a decoder is cut.

    Args:
        n: decoder layers of the full model.
        a: adapter layers; `a == n` trains every layer and keeps no emulator.
        beta: share of the layers between that is dropped, in [0, 1).
        head: how many of the adapter layers lie at the start (FedOT and offsite-tuning: 2 of 4), else 0.

    Raises:
        LanguageError: for a cut that leaves no adapter layer or fewer than two emulator layers.
    """

    n: int
    a: int
    beta: float
    head: int = 0

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise LanguageError(f"split plan n={self.n}, a={self.a}, beta={self.beta}, head={self.head}: {problem}")

    @cached_property
    def kept(self) -> tuple[int, ...]:
        """Numbers, in the full model, of the layers that form the emulator; ascending."""
        between = self.n - self.a
        count = kept_count(between, self.beta)
        if count == between:
            return tuple(range(self.head, self.head + between))
        return tuple(self.head + (i * (between - 1)) // (count - 1) for i in range(count))

    @cached_property
    def adapter(self) -> tuple[int, ...]:
        """Numbers, in the full model, of the layers that are trained at the sites; ascending."""
        tail = self.n - (self.a - self.head)
        return tuple(range(self.head)) + tuple(range(tail, self.n))

    @cached_property
    def held(self) -> tuple[int, ...]:
        """Every layer of the compressed model, by its number in the full one; position = number in the compressed."""
        return tuple(sorted(self.kept + self.adapter))

    @cached_property
    def dropped(self) -> tuple[int, ...]:
        """Numbers of the layers that no site holds."""
        held = set(self.held)
        return tuple(i for i in range(self.n) if i not in held)

    @property
    def first_trained(self) -> int:
        """Number, in the full model, of the first adapter layer: what lies before it is frozen within a round."""
        return self.adapter[0]

    def to_compressed(self, full: int) -> int:
        """Number in the compressed model of a layer of the full one.

        Raises:
            LanguageError: for a layer that was dropped or does not exist.
        """
        try:
            return self._positions[full]
        except KeyError:
            raise LanguageError(
                f"layer {full} of {self.n} is not in the compressed model, which holds {self.held}"
            ) from None

    def to_full(self, compressed: int) -> int:
        """Number in the full model of a layer of the compressed one.

        Raises:
            LanguageError: for a layer that does not exist.
        """
        if not 0 <= compressed < len(self.held):
            raise LanguageError(f"layer {compressed} is not in the compressed model, which has {len(self.held)} layers")
        return self.held[compressed]

    @cached_property
    def _positions(self) -> dict[int, int]:
        return {full: i for i, full in enumerate(self.held)}

    def to_json(self) -> dict[str, Any]:
        """The plan with its kept layers, for metadata."""
        return {"n": self.n, "a": self.a, "beta": self.beta, "head": self.head, "kept": list(self.kept)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SplitPlan:
        """Read `to_json`'s form.

        Raises:
            LanguageError: where a field is missing or the kept layers are not those that this release computes.
        """
        try:
            plan = cls(int(data["n"]), int(data["a"]), float(data["beta"]), int(data["head"]))
            kept = tuple(int(i) for i in data["kept"])
        except (KeyError, TypeError, ValueError) as error:
            raise LanguageError(f"split plan: expected n, a, beta, head and kept, got {dict(data)!r}") from error
        if kept != plan.kept:
            raise LanguageError(f"split plan: its kept layers are {kept}, this release computes {plan.kept}")
        return plan

    def digest(self) -> str:
        """SHA-256 of the JSON form, hexadecimal."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def kept_count(between: int, beta: float) -> int:
    """How many of `between` layers stay: between * (1 - beta), rounded half up, exact for the decimal that beta is."""
    return (2 * between * (1 - Fraction(repr(float(beta)))) + 1).__floor__() // 2


def _problem(plan: SplitPlan) -> str | None:
    if not 1 <= plan.a <= plan.n:
        return f"expected between 1 and {plan.n} adapter layers, got {plan.a}"
    if not 0 <= plan.head < plan.a:
        return f"expected fewer than a={plan.a} adapter layers at the start, got {plan.head}"
    if not 0 <= plan.beta < 1:
        return f"expected beta in [0, 1), got {plan.beta}"
    between = plan.n - plan.a
    count = kept_count(between, plan.beta)
    if count < between and count < 2:
        return f"beta keeps {count} of {between} layers, at least 2 are needed (the first and the last); lower beta"
    return None

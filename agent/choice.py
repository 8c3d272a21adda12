"""From option probabilities to an action, or the reason why the ratio rule decides instead."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
from pydantic import ValidationError

from agent.actions import SIZES, Action
from agent.history import History
from agent.shield import Mask
from llm_qfl.federation.errors import LlmQflError
from llm_qfl.federation.types import Array

Reason = Literal[
    "no history",
    "stale",
    "missing model",
    "timeout",
    "out of range",
    "entropy",
    "regression",
    "not finite",
    "masked",
    "schema",
    "scorer failed",
]
Probabilities = Mapping[str, Array]
Result = TypeVar("Result")
SUM_TOLERANCE = 1e-6


class Scorer(Protocol):
    """A policy pi(a|s), factored over fields; `llm_qfl.language.policy.PolicyModel` is one."""

    def probabilities(self, text: str, allowed: Mask) -> Probabilities:
        """Exact probabilities of every field's options given the state's text; those not allowed get zero."""


@dataclass(frozen=True)
class Fallback:
    """Why the rule decides: the reason by name, and in words."""

    reason: Reason
    why: str

    @property
    def counts(self) -> bool:
        """Does it count against the policy? Before the first closed round nobody could decide."""
        return self.reason != "no history"


class Deadline:
    """Runs a decision in a thread of its own, so that a slow model cannot hold up the round.

    A thread cannot be ended from outside: while a late one still runs, further decisions time out at once, and the
    server's next pass through the same language model waits for it (`Stack.turn`).
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._late: threading.Thread | None = None

    def run(self, call: Callable[[], Result]) -> Result:
        """The call's result.

        Raises:
            TimeoutError: not within the deadline.
            Exception: whatever the call raised.
        """
        if self._late is not None and self._late.is_alive():
            raise TimeoutError("a former decision still runs")
        results: list[Result] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                results.append(call())
            except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
                errors.append(error)

        thread = threading.Thread(target=work, daemon=True, name="decision")
        thread.start()
        thread.join(self.seconds)
        if thread.is_alive():
            self._late = thread
            raise TimeoutError(f"no decision within {self.seconds:g} s")
        if errors:
            raise errors[0]
        return results[0]


@dataclass(frozen=True)
class Trust:
    """When the policy's answer is not taken.

    Attributes:
        max_entropy: share of the largest possible entropy.
        min_probability: least geometric mean of the best options' probabilities.
        regress_rounds: rounds in a row worse than the best.
        tolerance: by more than this, nats.
    """

    max_entropy: float
    min_probability: float
    regress_rounds: int
    tolerance: float

    def regressed(self, history: History) -> Fallback | None:
        """Has validation been worse than its best for too long?

        The rule's own return is not observable in a run that the policy steers; the run's best loss stands in for it.
        """
        losses = history.comparable()
        recent = losses[-self.regress_rounds :]
        if len(losses) <= self.regress_rounds or min(recent) <= min(losses) + self.tolerance:
            return None
        return Fallback(
            "regression",
            f"validation loss worse than its best ({min(losses):.4f}) by more than {self.tolerance:g} nats for "
            f"{self.regress_rounds} rounds",
        )

    def doubts(self, probabilities: Probabilities, allowed: Mask) -> Fallback | None:
        """Is the policy sure enough? Only fields with a choice count."""
        open_fields = [name for name, flags in allowed.items() if sum(flags) > 1]
        if not open_fields:
            return None
        entropy = sum(entropy_of(probabilities[name]) for name in open_fields)
        most = sum(math.log(sum(allowed[name])) for name in open_fields)
        if entropy > self.max_entropy * most:
            return Fallback("entropy", f"entropy {entropy:.2f} of {most:.2f} nats, more than {self.max_entropy:.0%}")
        best = math.exp(sum(math.log(float(probabilities[name].max())) for name in open_fields) / len(open_fields))
        if best < self.min_probability:
            return Fallback("entropy", f"best options at {best:.2f} (geometric mean), below {self.min_probability:.2f}")
        return None


def entropy_of(probabilities: Array) -> float:
    """Entropy of a distribution, nats."""
    there = probabilities[probabilities > 0]
    return float(-(there * np.log(there)).sum())


def ask(scorer: Scorer, text: str, allowed: Mask, deadline: Deadline) -> Probabilities | Fallback:
    """Probabilities of the options, or why there are none.

    Args:
        scorer: the policy.
        text: the state.
        allowed: the shield's mask.
        deadline: of the decision itself.
    """
    try:
        found = deadline.run(lambda: scorer.probabilities(text, allowed))
    except TimeoutError as error:
        return Fallback("timeout", str(error))
    except (LlmQflError, RuntimeError, ValueError, MemoryError) as error:  # torch raises RuntimeError
        return Fallback("scorer failed", f"{type(error).__name__}: {error}")
    return _problem(found, allowed) or found


def _problem(found: Probabilities, allowed: Mask) -> Fallback | None:
    """Are these distributions over exactly the allowed options?"""
    if set(found) != set(SIZES) or any(found[name].shape != (size,) for name, size in SIZES.items()):
        shapes = {name: value.shape for name, value in found.items()}
        return Fallback("schema", f"expected probabilities of {dict(SIZES)}, got {shapes}")
    for name, value in found.items():
        if not np.isfinite(value).all():
            return Fallback("not finite", f"probabilities of {name} are not finite")
        if (value < 0).any() or abs(float(value.sum()) - 1) > SUM_TOLERANCE:
            return Fallback("schema", f"probabilities of {name} sum to {float(value.sum()):.6f}")
        if value[~np.array(allowed[name])].any():
            return Fallback("schema", f"probabilities of {name} give weight to a masked option")
    return None


def pick(probabilities: Probabilities, generator: np.random.Generator | None) -> Action | Fallback:
    """The action of the most probable options (the first of equals), or of a draw.

    Args:
        probabilities: of every field.
        generator: for a draw; None takes the best.
    """
    options = {
        name: int(value.argmax()) if generator is None else int(generator.choice(len(value), p=value / value.sum()))
        for name, value in probabilities.items()
    }
    try:
        return Action.at(options)
    except (ValidationError, IndexError) as error:
        return Fallback("schema", str(error).splitlines()[0])


def mutual_information(policies: Sequence[Array], given: Sequence[Hashable]) -> float:
    """I(state; option | given) of one field over visited states, nats: H(mean of pi) - mean of H(pi) among equals.

    0 where all states that are given the same have the same distribution: such a policy does not depend on its state.
    A mask is not its doing: without it as the condition any policy would know how many sites are there.

    Args:
        policies: pi(.|s) of every visited state, (options,) each.
        given: of every state what it is compared within: its mask, or what that hangs on.
    """
    groups: dict[Hashable, list[Array]] = {}
    for policy, key in zip(policies, given, strict=True):
        groups.setdefault(key, []).append(policy)
    parts = [len(group) * _information(np.stack(group)) for group in groups.values()]
    return sum(parts) / len(policies) if policies else 0.0


def _information(table: Array) -> float:
    return max(0.0, entropy_of(table.mean(axis=0)) - float(np.mean([entropy_of(row) for row in table])))

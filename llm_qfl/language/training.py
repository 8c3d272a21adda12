"""A site's adapter steps: cross-entropy on the answers and the live proximal term, on cached boundary states."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.batches import TokenRows, collate, draw_batches
from llm_qfl.language.cache import StateCache
from llm_qfl.language.device import measure
from llm_qfl.language.lora import LoraAdapter
from llm_qfl.language.losses import answer_nll, proximal
from llm_qfl.language.route import Route


@dataclass(frozen=True)
class StepBudget:
    """What is done in one round, and where in the whole run it lies.

    Attributes:
        steps: optimizer steps.
        batch_size: rows a step.
        learning_rate: at step 0 of the run.
        offset: steps of the run before this round.
        total: steps of the whole run for the cosine; 0 keeps the rate constant.
        micro_batch: rows that go through the layers at once; 0 takes the whole batch (the gradient is the same).
        weight_decay: AdamW's.
        betas: AdamW's.
        clip: largest norm of the gradient; 0 leaves it.
    """

    steps: int
    batch_size: int = 16
    learning_rate: float = 2e-3
    offset: int = 0
    total: int = 0
    micro_batch: int = 0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0

    def rate(self, step: int) -> float:
        """Learning rate of a step of this round."""
        if self.total == 0:
            return self.learning_rate
        done = min((self.offset + step) / self.total, 1.0)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@dataclass
class TrainReport:
    """What a round of steps did.

    Attributes:
        losses: cross-entropy of each step's batch before the step, nats per answer token.
        penalties: squared distance of the effective weights to the received ones, before each step.
        rows: rows that the steps saw, repeats counted.
        computed: rows whose boundary state had to be computed.
        fill_seconds: seconds for those; `step_seconds`: for the steps.
        peak_bytes: most memory in either part; `peak_exact`: of this round alone, not of the process's life.
        cache_bytes: size of the boundary states.
    """

    losses: list[float] = field(default_factory=list)
    penalties: list[float] = field(default_factory=list)
    rows: int = 0
    computed: int = 0
    fill_seconds: float = 0.0
    step_seconds: float = 0.0
    peak_bytes: int = 0
    peak_exact: bool = True
    cache_bytes: int = 0


def train_adapter(
    route: Route,
    adapter: LoraAdapter,
    rows: TokenRows,
    budget: StepBudget,
    eps: float,
    *,
    seed: int,
    cache: StateCache | None,
) -> TrainReport:
    """Tune an adapter in place, from where it is: mean answer cross-entropy + eps/2 * |effective weights - received|^2.

    Source: FedBiOT, equation 1. Frozen layers run without gradients in eval mode; dropout, if any, is the adapter's.

    Args:
        route: the model as the site holds it; `adapter` must be among its active ones.
        adapter: what is trained, on the layers of `route.suffix` alone.
        rows: private rows.
        budget: the steps.
        eps: weight of the proximal term; 0 leaves it out of the gradient (it is still reported).
        seed: of batches and dropout.
        cache: boundary states of these rows, or None to compute every batch's anew.

    Raises:
        LanguageError: for no rows, or a loss that is not finite.
    """
    if not len(rows):
        raise LanguageError("language training: expected at least one row, got none")
    report = TrainReport()
    batches = draw_batches(len(rows), budget.batch_size, budget.steps, np.random.Generator(np.random.PCG64(seed)))
    anchor = {key: value.detach().clone() for key, value in adapter.parameters.items()}
    if cache is not None:
        with measure(route.stack.device) as usage:
            report.computed = route.fill(cache, np.concatenate([*batches, np.zeros(0, np.int64)]))
        report.fill_seconds, report.peak_bytes, report.peak_exact = usage.seconds, usage.peak_bytes, usage.exact
        report.cache_bytes = cache.size
        route.stack.release()  # the layers below the boundary have done their part
    optimizer = torch.optim.AdamW(
        adapter.parameters.values(), lr=budget.learning_rate, betas=budget.betas, weight_decay=budget.weight_decay
    )
    adapter.trainable(on=True)
    try:
        with measure(route.stack.device) as usage, seeded_dropout(adapter, seed), route.adapting():
            for step, chosen in enumerate(batches):
                for group in optimizer.param_groups:
                    group["lr"] = budget.rate(step)
                optimizer.zero_grad(set_to_none=True)
                _backward(route, rows, chosen, cache, budget.micro_batch, report)
                _penalize(adapter, anchor, eps, report)
                if budget.clip:
                    nn.utils.clip_grad_norm_(list(adapter.parameters.values()), budget.clip)
                optimizer.step()
    finally:
        adapter.trainable(on=False)
    report.step_seconds = usage.seconds
    report.peak_bytes = max(report.peak_bytes, usage.peak_bytes)
    report.peak_exact = report.peak_exact and usage.exact
    report.rows = sum(len(chosen) for chosen in batches)
    return report


@contextlib.contextmanager
def seeded_dropout(adapter: LoraAdapter, seed: int) -> Iterator[None]:
    """Dropout draws from the global generator: seeded for the block, then put back as it was."""
    if adapter.spec.dropout == 0:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _backward(
    route: Route, rows: TokenRows, chosen: np.ndarray, cache: StateCache | None, micro: int, report: TrainReport
) -> None:
    """Add the gradient of the batch's weighted mean over answer tokens; micro-batches add up to exactly that."""
    total = float(sum(rows.weight[i] * (len(rows.ids[i]) - rows.prompt[i]) for i in chosen))
    loss = 0.0
    size = micro or len(chosen)
    for start in range(0, len(chosen), size):
        part = chosen[start : start + size]
        batch = collate(rows, part).to(route.stack.device)
        boundary = (route.boundary_here(batch.ids) if cache is None else cache.batch(part)).to(route.stack.device)
        nll = answer_nll(route.stack, route.tail(boundary), batch)
        term = (nll * batch.weight).sum() / total
        if not torch.isfinite(term):
            raise LanguageError(f"language training: the loss is {float(term.detach())}; lower language.learning-rate")
        term.backward()  # type: ignore[no-untyped-call]
        loss += float(term.detach())
    report.losses.append(loss)


def _penalize(adapter: LoraAdapter, anchor: Mapping[str, Tensor], eps: float, report: TrainReport) -> None:
    with torch.set_grad_enabled(eps > 0):
        distance = proximal(adapter, anchor)
    if eps > 0:
        (0.5 * eps * distance).backward()  # type: ignore[no-untyped-call]
    report.penalties.append(float(distance.detach()))

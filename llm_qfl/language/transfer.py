"""After the last aggregation: make the full model answer public prompts as the compressed one does, without labels.

What sites tuned, they tuned on the compressed model; plugged into the full one a part of it is lost. Here the adapter
is tuned a little further, on the server, so that the full model's answer distribution on public prompts (AdapFu) comes
to that of the compressed model with the aggregated adapter (AdapEmu). This step is ours, not the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.batches import TokenRows, collate, draw_batches
from llm_qfl.language.cache import StateCache
from llm_qfl.language.device import measure
from llm_qfl.language.lora import LoraAdapter
from llm_qfl.language.losses import KL_CHUNK
from llm_qfl.language.route import Route, outputs
from llm_qfl.language.training import StepBudget, seeded_dropout


@dataclass
class TransferReport:
    """What the steps did.

    Attributes:
        losses: KL(compressed || full) of each step's batch before the step, nats a position.
        seconds: in all.
    """

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def transfer(
    full: Route,
    compressed: Route,
    adapter: LoraAdapter,
    rows: TokenRows,
    budget: StepBudget,
    *,
    seed: int,
    tokens: Sequence[int] | None = None,
    caches: tuple[StateCache | None, StateCache | None] = (None, None),
) -> TransferReport:
    """Tune the adapter in place so that the full model's answers come to the compressed model's.

    Args:
        full: the full model with the adapter.
        compressed: the compressed one with the adapter as it is now; its answers are taken once, before the first step.
        adapter: what is tuned.
        rows: public prompts with any answer; what the answer says is not looked at.
        budget: the steps.
        seed: of batches and dropout.
        tokens: label words' first tokens: only their distribution at the first answer position counts; None matches
            the whole vocabulary at every answer position.
        caches: boundary states of these rows for the full and for the compressed model.

    Raises:
        LanguageError: for no rows or a loss that is not finite.
    """
    if not len(rows):
        raise LanguageError("calibration: expected public prompts, got none")
    report = TransferReport()
    batches = draw_batches(len(rows), budget.batch_size, budget.steps, np.random.Generator(np.random.PCG64(seed)))
    with measure(full.stack.device) as usage:
        targets = _answers(compressed, rows, caches[1], first_only=tokens is not None)
        parameters = list(adapter.parameters.values())
        optimizer = torch.optim.AdamW(
            parameters, lr=budget.learning_rate, betas=budget.betas, weight_decay=budget.weight_decay
        )
        adapter.trainable(on=True)
        try:
            with seeded_dropout(adapter, seed), full.adapting():
                for step, chosen in enumerate(batches):
                    for group in optimizer.param_groups:
                        group["lr"] = budget.rate(step)
                    optimizer.zero_grad(set_to_none=True)
                    loss = _loss(full, rows, chosen, targets, tokens, caches[0])
                    if not torch.isfinite(loss):
                        raise LanguageError(f"calibration: the loss is {loss.item()}; lower language.calibrate-rate")
                    loss.backward()  # type: ignore[no-untyped-call]
                    report.losses.append(float(loss.detach()))
                    if budget.clip:
                        nn.utils.clip_grad_norm_(parameters, budget.clip)
                    optimizer.step()
        finally:
            adapter.trainable(on=False)
    report.seconds = usage.seconds
    return report


def _answers(route: Route, rows: TokenRows, cache: StateCache | None, *, first_only: bool) -> list[Tensor]:
    """Normed states that the head reads at each row's answer positions: (answers, width) a row."""
    out: list[Tensor] = [torch.empty(0)] * len(rows)
    for chosen, hidden in outputs(route, rows, cache):
        for k, row in enumerate(chosen):
            start = int(rows.prompt[row]) - 1
            stop = start + 1 if first_only else len(rows.ids[row]) - 1
            out[int(row)] = route.stack.norm(hidden[k, start:stop]).detach()
    return out


def _loss(
    full: Route,
    rows: TokenRows,
    chosen: np.ndarray,
    targets: list[Tensor],
    tokens: Sequence[int] | None,
    cache: StateCache | None,
) -> Tensor:
    if cache is None:
        boundary = full.boundary_here(collate(rows, chosen).ids)
    else:
        full.fill_here(cache, chosen)
        boundary = cache.batch(chosen).to(full.stack.device)
    hidden = full.tail(boundary)
    starts = [int(rows.prompt[i]) - 1 for i in chosen]
    mine = torch.cat([hidden[k, s : s + len(targets[i])] for k, (s, i) in enumerate(zip(starts, chosen, strict=True))])
    theirs = torch.cat([targets[i] for i in chosen])
    total = mine.new_zeros((), dtype=torch.float32)
    for at in range(0, len(mine), KL_CHUNK):
        total = total + _kl_sum(full, mine[at : at + KL_CHUNK], theirs[at : at + KL_CHUNK], tokens)
    return total / len(mine)


def _kl_sum(full: Route, mine: Tensor, theirs: Tensor, tokens: Sequence[int] | None) -> Tensor:
    ours, target = full.stack.head(mine), full.stack.logits(theirs)
    if tokens is not None:
        ours, target = ours[:, list(tokens)], target[:, list(tokens)]
    return functional.kl_div(
        functional.log_softmax(ours, dim=-1), functional.log_softmax(target, dim=-1), reduction="sum", log_target=True
    )

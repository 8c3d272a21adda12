"""Alignment on the server: the emulator is distilled towards the layers it replaces, on public text.

Minimises, over the emulator's LoRA, boundary-state loss + lambda * KL(full || compressed), both models carrying the
current adapter (FedBiOT, equation 2). It is alternating minimisation: no gradient goes through the sites' steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.batches import Batch, TokenRows, collate, draw_batches
from llm_qfl.language.cache import StateCache
from llm_qfl.language.device import measure
from llm_qfl.language.lora import LoraAdapter
from llm_qfl.language.losses import kl_divergence, relative_mse, released_mse
from llm_qfl.language.route import Route
from llm_qfl.language.training import StepBudget, seeded_dropout


@dataclass(frozen=True)
class AlignSettings:
    """How the emulator is aligned.

    Attributes:
        budget: the steps of one call.
        kl_weight: lambda; at 0 neither adapter layers nor head are run.
        kl_tokens: positions of a batch that enter the KL, drawn anew each step (an unbiased sample); 0 takes all.
        form: `relative` (per token, without position 0 and padding) or `released` (the published code's: one rms over
            everything, padding counted).
    """

    budget: StepBudget
    kl_weight: float = 0.0
    kl_tokens: int = 0
    form: str = "relative"


@dataclass
class AlignReport:
    """What a call did.

    Attributes:
        boundary_losses, kl_losses: each step's, before the step.
        teacher_rows: rows that the full model had to be run on; the others were cached.
        seconds: in all; `teacher_seconds`: of these for the full model.
        peak_bytes: most memory.
    """

    boundary_losses: list[float] = field(default_factory=list)
    kl_losses: list[float] = field(default_factory=list)
    teacher_rows: int = 0
    seconds: float = 0.0
    teacher_seconds: float = 0.0
    peak_bytes: int = 0


class Teacher:
    """The full model's states on the public rows, each computed once.

    Boundary states last as long as what computed them: for a tail adapter, the whole run. Final states (before the
    head; logits are one product away and 85 times as large) last until the adapter changes.

    Args:
        route: the full model, cut where the emulator ends.
        rows: public rows.
        cached: keep states (needs loss masks on padding), or compute each batch's anew, padding and all.
    """

    def __init__(self, route: Route, rows: TokenRows, *, cached: bool = True) -> None:
        self.route, self.rows, self.cached = route, rows, cached
        self._boundary: StateCache | None = None
        self._final: StateCache | None = None
        self._final_version = ""

    def prepare(self, chosen: np.ndarray, *, final: bool) -> int:
        """Compute what is missing for these rows; returns how many rows the full model was run on."""
        if not self.cached:
            return 0
        version = self.route.version()
        if self._boundary is None or self._boundary.version != version:
            self._boundary = self.route.cache(self.rows)
        computed = self.route.fill(self._boundary, chosen)
        if final:
            version = f"{version} {[adapter.digest() for adapter in self.route.active]}"
            if self._final is None or self._final.version != version:
                self._final = StateCache(self.rows, self.route.stack.width, torch.float32, version)
            self._final.fill(chosen, self._final_states)
        return computed

    def states(self, chosen: np.ndarray, batch: Batch, *, final: bool) -> tuple[Tensor, Tensor | None]:
        """Boundary and (asked for) final normed states of a batch."""
        device = self.route.stack.device
        if self._boundary is None or not self.cached:
            boundary = self.route.boundary(batch.ids)
            return boundary, self._run_tail(boundary) if final else None
        last = None
        if final:
            if self._final is None:
                raise LanguageError("alignment: final states were asked for before they were computed")
            last = self._final.batch(chosen).to(device)
        return self._boundary.batch(chosen).to(device), last

    def _final_states(self, part: np.ndarray) -> Tensor:
        if self._boundary is None:
            raise LanguageError("alignment: final states need boundary states first")
        return self._run_tail(self._boundary.batch(part).to(self.route.stack.device))

    @torch.no_grad()
    def _run_tail(self, boundary: Tensor) -> Tensor:
        with self.route.adapting():
            return self.route.stack.norm(self.route.tail(boundary))


def align(
    student: Route, emulator: LoraAdapter, teacher: Teacher, settings: AlignSettings, *, seed: int
) -> AlignReport:
    """Tune the emulator's LoRA in place; nothing else changes.

    Args:
        student: the compressed model, cut where the emulator ends; `emulator` and the adapter active.
        emulator: what is trained.
        teacher: the full model on the public rows.
        settings: how.
        seed: of batches, sampled positions and dropout.

    Raises:
        LanguageError: for no public rows or a loss that is not finite.
    """
    rows, budget = teacher.rows, settings.budget
    if not len(rows):
        raise LanguageError("alignment: expected public rows, got none")
    generator = np.random.Generator(np.random.PCG64(seed))
    batches = draw_batches(len(rows), budget.batch_size, budget.steps, generator)
    report = AlignReport()
    final = settings.kl_weight > 0
    with measure(student.stack.device) as usage:
        with measure(student.stack.device) as teaching:
            report.teacher_rows = teacher.prepare(np.concatenate([*batches, np.zeros(0, np.int64)]), final=final)
        report.teacher_seconds = teaching.seconds
        optimizer = torch.optim.AdamW(
            emulator.parameters.values(), lr=budget.learning_rate, betas=budget.betas, weight_decay=budget.weight_decay
        )
        emulator.trainable(on=True)
        try:
            with seeded_dropout(emulator, seed):
                for step, chosen in enumerate(batches):
                    for group in optimizer.param_groups:
                        group["lr"] = budget.rate(step)
                    optimizer.zero_grad(set_to_none=True)
                    align_loss(student, teacher, chosen, settings, generator, report).backward()  # type: ignore[no-untyped-call]
                    if budget.clip:
                        nn.utils.clip_grad_norm_(list(emulator.parameters.values()), budget.clip)
                    optimizer.step()
        finally:
            emulator.trainable(on=False)
    report.seconds, report.peak_bytes = usage.seconds, max(usage.peak_bytes, teaching.peak_bytes)
    return report


def align_loss(
    student: Route,
    teacher: Teacher,
    chosen: np.ndarray,
    settings: AlignSettings,
    generator: np.random.Generator,
    report: AlignReport,
) -> Tensor:
    """Loss of one batch; the teacher's part first, since both models share one set of weights."""
    released = settings.form == "released"
    batch = collate(teacher.rows, chosen).to(student.stack.device)
    mask = torch.ones_like(batch.mask) if released else batch.mask
    target, final = teacher.states(chosen, batch, final=settings.kl_weight > 0)
    with student.adapting():
        states = student.stack.run(student.stack.embed(batch.ids), student.prefix)
        loss = (released_mse if released else relative_mse)(states, target, mask)
        report.boundary_losses.append(float(loss.detach()))
        if final is not None:
            at = _positions(mask, settings.kl_tokens, generator)
            kl = kl_divergence(student.stack, student.tail(states)[at], final[at])
            report.kl_losses.append(float(kl.detach()))
            loss = loss + settings.kl_weight * kl
    if not torch.isfinite(loss):
        raise LanguageError(f"alignment: the loss is {float(loss.detach())}; lower language.align-rate")
    return loss


def _positions(mask: Tensor, limit: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    row, position = mask.nonzero(as_tuple=True)
    if limit and len(row) > limit:
        picked = torch.from_numpy(np.sort(generator.choice(len(row), limit, replace=False))).to(row.device)
        row, position = row[picked], position[picked]
    return row, position


@torch.no_grad()
def boundary_error(student: Route, teacher: Teacher, chosen: np.ndarray, batch_size: int = 16) -> float:
    """How far the emulator is from the layers it replaces, on rows of the teacher.

    Returns:
        Mean over tokens of the relative squared error of its output, position 0 left out.
    """
    total, tokens = 0.0, 0
    teacher.prepare(chosen, final=False)
    for start in range(0, len(chosen), batch_size):
        part = chosen[start : start + batch_size]
        batch = collate(teacher.rows, part).to(student.stack.device)
        target, _ = teacher.states(part, batch, final=False)
        count = int(batch.mask[:, 1:].sum())
        total += float(relative_mse(student.boundary(batch.ids), target, batch.mask)) * count
        tokens += count
    return total / max(tokens, 1)

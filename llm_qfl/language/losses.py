"""Loss terms of FedBiOT; each has a test that its gradient is live and right."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from llm_qfl.language.batches import Batch
from llm_qfl.language.lora import LoraAdapter
from llm_qfl.language.stack import Stack

KL_CHUNK = 256  # positions whose logits are held at once: 256 x 49,152 float32 are 50 MB


def answer_nll(stack: Stack, hidden: Tensor, batch: Batch) -> Tensor:
    """Negative log-likelihood of each answer token, nats, (answers,).

    Only the positions that predict an answer reach the head: prompt and padding cost nothing there.

    Args:
        stack: gives norm and head.
        hidden: output of the last layer (rows, length, width).
        batch: the rows.
    """
    logits = stack.head(hidden[batch.where[0], batch.where[1]])
    return functional.cross_entropy(logits, batch.target, reduction="none")


def relative_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean over tokens of |student - teacher|^2 / |teacher|^2.

    Position 0 is left out: its hidden state carries nearly all of the squares and no meaning (an attention sink).

    Args:
        student: boundary states (rows, length, width).
        teacher: the same of the full model.
        mask: true at tokens (rows, length).
    """
    use = mask.clone()
    use[:, 0] = False
    h, t = student[use].float(), teacher[use].float()
    return ((h - t).square().sum(-1) / t.square().sum(-1).clamp_min(1e-12)).mean()


def released_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The published code's form: mean(((teacher - student) / rms(teacher))^2), rms over the whole tensor.

    Position 0 counts; padding counts where the mask says so.
    """
    h, t = student[mask].float(), teacher[mask].float()
    return ((t - h) / t.square().mean().sqrt()).square().mean()


def kl_divergence(stack: Stack, student: Tensor, teacher_normed: Tensor) -> Tensor:
    """Mean over tokens of KL(teacher || student) of the next-token distributions, nats.

    The logits of a chunk are computed again in the backward pass, so that no more than one chunk's are ever held.

    Args:
        stack: gives norm and head.
        student: outputs of the last layer (tokens, width), with gradient.
        teacher_normed: the teacher's, after the final norm (tokens, width), without.
    """
    total = student.new_zeros((), dtype=torch.float32)
    for start in range(0, len(student), KL_CHUNK):
        piece = slice(start, start + KL_CHUNK)
        total = total + checkpoint(_kl_sum, stack, student[piece], teacher_normed[piece], use_reentrant=False)
    return total / max(len(student), 1)


def _kl_sum(stack: Stack, student: Tensor, teacher_normed: Tensor) -> Tensor:
    target = functional.log_softmax(stack.logits(teacher_normed), dim=-1)
    return functional.kl_div(
        functional.log_softmax(stack.head(student), dim=-1), target, reduction="sum", log_target=True
    )


def proximal(adapter: LoraAdapter, anchor: Mapping[str, Tensor]) -> Tensor:
    """Squared Frobenius distance of the effective weights: sum over modules of |s (B A - B0 A0)|^2.

    With P = [B - B0, B0] and Q = [A; A - A0] the difference is P Q, so its square is sum((P^T P) * (Q Q^T)): two
    matrices of size 2r, no matrix of the weights' size, and no cancellation near the anchor.

    Args:
        adapter: the live adapter.
        anchor: the matrices A0 and B0, named as the adapter's.
    """
    terms = []
    for key, a, b in adapter.pairs():
        a0, b0 = anchor[f"{key}/A"], anchor[f"{key}/B"]
        p = torch.cat([b - b0, b0], dim=1)  # (outputs, 2r)
        q = torch.cat([a, a - a0], dim=0)  # (2r, inputs)
        terms.append(((p.T @ p) * (q @ q.T)).sum())
    return adapter.spec.scaling**2 * torch.stack(terms).sum()

"""Training a policy: cloning settings by their regret, then a group-relative policy gradient with KL to the clone.

The frozen layers are run once for every state, whatever is trained after them: their states lie in a `StateCache`.
A trainer's checkpoint holds the adapter and the optimizer's moments, so that training can go on in slices.

Sources: GRPO (Shao et al., arXiv 2402.03300), equations 3 and 4, with pi factored over fields, one update a group (so
there is no ratio to clip) and the exact KL in place of its estimate: every pi(a|s) is known here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.cache import StateCache
from llm_qfl.language.lora import Arrays
from llm_qfl.language.policy import PolicyModel, PolicyRows

Mask = Mapping[str, Sequence[bool]]

SOFTNESS = 0.1
"""Weight of the entropy in cloning: a round that costs a tenth more in the end is wanted e times less."""


@dataclass(frozen=True)
class Tried:
    """A state, and what settings that were tried in its federation cost there.

    Attributes:
        text: the state.
        allowed: field -> one flag an option.
        settings: field -> number of the option, of each setting; all of them allowed.
        regrets: of each setting, log(cost / least cost), nats.
    """

    text: str
    allowed: Mask
    settings: Sequence[Mapping[str, int]]
    regrets: Sequence[float]


@dataclass(frozen=True)
class Taken:
    """A decision that was drawn from the policy, and how much better its run was than its group's.

    Attributes:
        text: the state.
        allowed: field -> one flag an option.
        options: field -> the number of the option.
        advantage: (return - the group's mean) / the group's standard deviation.
    """

    text: str
    allowed: Mask
    options: Mapping[str, int]
    advantage: float


@dataclass(frozen=True)
class Step:
    """What one update saw: the loss that was descended, KL to the reference and entropy of the policy, nats a state."""

    loss: float
    kl: float
    entropy: float


def group_advantages(returns: Sequence[float]) -> list[float]:
    """(R - mean) / standard deviation over a group; zeros where all are alike."""
    values = np.array(returns, np.float64)
    spread = float(values.std())
    return [0.0] * len(values) if spread < 1e-9 else [float(one) for one in (values - values.mean()) / spread]


class PolicyTrainer:
    """Trains a policy's adapter in place.

    Args:
        policy: the policy.
        learning_rate: AdamW's.
        clip: largest norm of the gradient.
        folder: where boundary states are kept across processes, or None.
    """

    def __init__(
        self, policy: PolicyModel, *, learning_rate: float = 1e-3, clip: float = 1.0, folder: Path | None = None
    ) -> None:
        self.policy, self.clip, self.folder = policy, clip, folder
        self._parameters = policy.adapter.parameters
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01
        )
        self.updates = 0

    def clone(self, samples: Sequence[Tried], *, batch: int = 8, seed: int = 0) -> float:
        """One pass over the samples in a seeded order; mean `cloning_loss` before the updates, nats a state.

        Raises:
            LanguageError: no sample, a setting that its state does not allow, or a loss that is not finite.
        """
        if not samples:
            raise LanguageError("policy training: expected at least one state, got none")
        rows, cache = self._rows([one.text for one in samples])
        mask = self.policy.mask([one.allowed for one in samples])
        options, regrets = _settings(self.policy, samples)
        order, total = np.random.default_rng(seed).permutation(len(samples)), 0.0
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]

            def loss(chosen: np.ndarray = chosen) -> Tensor:
                found = self._log_probabilities(rows, chosen, cache, mask)
                return cloning_loss(found, options[chosen], regrets[chosen])

            total += self._update(loss) * len(chosen)
        return total / len(samples)

    def evaluate(self, samples: Sequence[Tried], *, batch: int = 16) -> float:
        """Mean `cloning_loss` of states that are not trained on, nats a state."""
        rows, cache = self._rows([one.text for one in samples])
        mask, (options, regrets) = self.policy.mask([one.allowed for one in samples]), _settings(self.policy, samples)
        total = 0.0
        with torch.no_grad():
            for start in range(0, len(samples), batch):
                chosen = np.arange(start, min(start + batch, len(samples)))
                with self.policy.route.adapting():
                    found = self._log_probabilities(rows, chosen, cache, mask)
                total += float(cloning_loss(found, options[chosen], regrets[chosen])) * len(chosen)
        return total / len(samples)

    def improve(self, taken: Sequence[Taken], reference: Arrays, *, beta: float = 0.05, batch: int = 16) -> Step:
        """One update on a group's decisions: -advantage x log pi + beta x KL(pi || reference), means over decisions.

        Args:
            taken: decisions of the policy as it stands.
            reference: matrices of the clone.
            beta: weight of the KL term.
            batch: decisions at once; their gradients add up to that of all.

        Raises:
            LanguageError: no decision, or a loss that is not finite.
        """
        if not taken:
            raise LanguageError("policy training: expected at least one decision, got none")
        rows = self.policy.encode([one.text for one in taken])
        cache = self.policy.cache(rows)  # in memory: no later group meets the same rows
        mask = self.policy.mask([one.allowed for one in taken])
        options = torch.tensor([[one.options[name] for name in self.policy.fields] for one in taken])
        advantages = torch.tensor([one.advantage for one in taken], dtype=torch.float32)
        parts = [np.arange(start, min(start + batch, len(taken))) for start in range(0, len(taken), batch)]
        with self._holding(reference), torch.no_grad(), self.policy.route.adapting():
            former = [self._log_probabilities(rows, part, cache, mask) for part in parts]
        seen = np.zeros(2)

        def loss(number: int) -> Tensor:
            part = parts[number]
            found = self._log_probabilities(rows, part, cache, mask)
            kl, entropy = divergence(found, former[number]), entropy_of(found)
            seen[:] += np.array([float(kl.detach().sum()), float(entropy.detach().sum())]) / len(taken)
            gain = advantages[part] * chosen_log_probability(found, options[part])
            return (beta * kl - gain).sum() / len(taken)

        total = self._update(*[lambda number=number: loss(number) for number in range(len(parts))])
        return Step(total, float(seen[0]), float(seen[1]))

    def save(self, path: Path) -> None:
        """Adapter and moments, whole or not at all."""
        arrays: dict[str, np.ndarray] = {"updates": np.array(self.updates)}
        for key, parameter in self._parameters.items():
            arrays[f"value/{key}"] = parameter.detach().cpu().numpy()
            state = self._optimizer.state.get(parameter, {})
            for name in ("step", "exp_avg", "exp_avg_sq"):
                if name in state:
                    arrays[f"{name}/{key}"] = state[name].detach().cpu().numpy()
        partial = path.with_name(f".{path.stem}.partial.npz")
        np.savez(partial, **arrays)  # type: ignore[arg-type]
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            LanguageError: it is damaged, or belongs to another policy.
        """
        try:
            with np.load(path, allow_pickle=False) as data:
                held = {key: np.array(data[key]) for key in data.files}
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            raise LanguageError(f"policy training: {path} cannot be read ({error}); delete it") from error
        self.policy.adapter.load({key.removeprefix("value/"): v for key, v in held.items() if key.startswith("value/")})
        for key, parameter in self._parameters.items():
            state = {
                name: torch.from_numpy(held[f"{name}/{key}"])
                for name in ("step", "exp_avg", "exp_avg_sq")
                if f"{name}/{key}" in held
            }
            if state:
                self._optimizer.state[parameter] = state
        self.updates = int(held["updates"])

    def _rows(self, texts: Sequence[str]) -> tuple[PolicyRows, StateCache]:
        rows = self.policy.encode(texts)
        return rows, self.policy.cache(rows, self.folder)

    def _log_probabilities(self, rows: PolicyRows, chosen: np.ndarray, cache: StateCache, mask: Tensor) -> Tensor:
        logits = self.policy.logits(rows, chosen, cache)
        return self.policy.log_probabilities(logits, mask[chosen].to(logits.device)).cpu()

    def _update(self, *losses: Callable[[], Tensor]) -> float:
        """One optimizer step on the sum of these losses, each computed and differentiated on its own."""
        self._optimizer.zero_grad(set_to_none=True)
        self.policy.adapter.trainable(on=True)
        total = 0.0
        try:
            with self.policy.route.adapting():
                for make in losses:
                    value = make()
                    if not torch.isfinite(value):
                        raise LanguageError("policy training: the loss is not finite; take a smaller rate")
                    value.backward()  # type: ignore[no-untyped-call]
                    total += float(value.detach())
                nn.utils.clip_grad_norm_(list(self._parameters.values()), self.clip)
                self._optimizer.step()
        finally:
            self.policy.adapter.trainable(on=False)
        self.updates += 1
        return total

    @contextlib.contextmanager
    def _holding(self, arrays: Arrays) -> Iterator[None]:
        now = self.policy.adapter.arrays()
        self.policy.adapter.load(arrays)
        try:
            yield
        finally:
            self.policy.adapter.load(now)


def cloning_loss(log_probabilities: Tensor, options: Tensor, regrets: Tensor) -> Tensor:
    """Mean over states of three terms, nats: expected regret, `-SOFTNESS` x entropy, -log of taking a tried setting.

    The first two are over the settings that were tried; without the entropy a policy settles on one setting for all
    states before it has learned to tell them apart. Imitating each federation's cheapest setting would imitate its luck
    (which of near-equals won); the expected regret is linear in the costs, and luck averages out.

    Args:
        log_probabilities: (states, fields, letters), -inf where not allowed.
        options: (states, settings, fields) numbers of options.
        regrets: (states, settings), inf where a state has fewer settings.
    """
    there = torch.isfinite(regrets)
    each = log_probabilities[:, None].expand(-1, options.shape[1], -1, -1).gather(3, options[..., None])
    whole = each.squeeze(3).sum(dim=2).masked_fill(~there, -torch.inf)  # log pi of every setting
    any_of = torch.logsumexp(whole, dim=1)
    among = (whole - any_of[:, None]).masked_fill(~there, 0.0)  # log probability among those that were tried
    costs = regrets.masked_fill(~there, 0.0) + SOFTNESS * among
    return ((among.exp() * there * costs).sum(dim=1) - any_of).mean()


def chosen_log_probability(log_probabilities: Tensor, options: Tensor) -> Tensor:
    """Log pi(a|s) of whole actions (states,), nats; options is (states, fields)."""
    return log_probabilities.gather(2, options[..., None]).squeeze(2).sum(dim=1)


def divergence(log_probabilities: Tensor, reference: Tensor) -> Tensor:
    """KL(pi || reference) of whole actions (states,), nats: fields are independent, theirs add up."""
    there = torch.isfinite(log_probabilities)
    mine, theirs = log_probabilities.masked_fill(~there, 0.0), reference.masked_fill(~there, 0.0)
    return (mine.exp() * there * (mine - theirs)).sum(dim=(1, 2))


def entropy_of(log_probabilities: Tensor) -> Tensor:
    """Entropy of whole actions (states,), nats."""
    there = torch.isfinite(log_probabilities)
    mine = log_probabilities.masked_fill(~there, 0.0)
    return -(mine.exp() * there * mine).sum(dim=(1, 2))


def _settings(policy: PolicyModel, samples: Sequence[Tried]) -> tuple[Tensor, Tensor]:
    """Options (states, settings, fields) and regrets (states, settings) of what was tried."""
    most = max((len(one.settings) for one in samples), default=0)
    options = torch.zeros((len(samples), most, len(policy.fields)), dtype=torch.long)
    regrets = torch.full((len(samples), most), torch.inf)
    for number, one in enumerate(samples):
        if not one.settings or len(one.settings) != len(one.regrets) or not np.isfinite(one.regrets).all():
            raise LanguageError("policy training: expected at least one setting, each with a regret that is finite")
        for place, setting in enumerate(one.settings):
            if banned := [name for name in policy.fields if not one.allowed[name][setting[name]]]:
                raise LanguageError(f"policy training: a setting that was tried is not allowed ({', '.join(banned)})")
            options[number, place] = torch.tensor([setting[name] for name in policy.fields])
        regrets[number, : len(one.regrets)] = torch.tensor(one.regrets)
    return options, regrets

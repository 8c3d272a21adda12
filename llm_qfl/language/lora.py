"""Named LoRA on chosen layers of a stack, made by PEFT, read and written strictly by name.

Wu et al. call the *block of layers* that clients train the adapter; here `LoraAdapter` is the low-rank update on it.
An adapter's matrices are named by the layer's number in the *full* model on both sides (`26/self_attn.q_proj/A`);
where a model is pruned, the remapping to its own numbers happens once, here, through `SplitPlan`.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.stack import Stack

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class LoraSpec:
    """Shape of a low-rank update `alpha / rank * B A`.

    Attributes:
        rank: r.
        alpha: scale; the update is multiplied by alpha / rank.
        dropout: on the update's input, in training.
        modules: `all-linear`, or `attention` (queries and values).
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    modules: str = "all-linear"

    @property
    def scaling(self) -> float:
        """What the product B A is multiplied by: alpha / rank."""
        return self.alpha / self.rank

    def targets(self, stack: Stack) -> tuple[str, ...]:
        """Paths of the adapted modules in a layer."""
        return stack.family.linear if self.modules == "all-linear" else stack.family.attention


class LoraAdapter:
    """A named LoRA on layers of a stack.

    B starts at zero and A uniform in +-1/sqrt(inputs), drawn from `seed` alone, so that the update starts at zero and
    every party could draw the same.

    Args:
        stack: the stack; its modules are wrapped in place.
        name: the adapter's name.
        layers: number in the full model -> number in this stack.
        spec: its shape.
        seed: of the draw.
    """

    def __init__(self, stack: Stack, name: str, layers: Mapping[int, int], spec: LoraSpec, seed: int) -> None:
        self.stack, self.name, self.layers, self.spec = stack, name, dict(sorted(layers.items())), spec
        self._modules: dict[str, Any] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        if not layers:
            return
        _inject(stack, name, list(self.layers.values()), spec)
        for full, own in self.layers.items():
            for path in spec.targets(stack):
                module: Any = stack.layers[own].get_submodule(path)
                self._modules[f"{full}/{path}"] = module
                self._parameters[f"{full}/{path}/A"] = module.lora_A[name].weight
                self._parameters[f"{full}/{path}/B"] = module.lora_B[name].weight
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in self._parameters.items():
                parameter.data = parameter.data.float()  # PEFT makes it in the base's numbers; it is trained in float32
                if key.endswith("/A"):
                    bound = 1 / math.sqrt(parameter.shape[1])
                    drawn = torch.rand(parameter.shape, generator=generator) * (2 * bound) - bound
                    parameter.copy_(drawn)
                else:
                    parameter.zero_()
        self.trainable(on=False)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The matrices by name, A (rank, inputs) and B (outputs, rank), live."""
        return dict(self._parameters)

    def pairs(self) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
        """(module, A, B) of every adapted module."""
        for key in self._modules:
            yield key, self._parameters[f"{key}/A"], self._parameters[f"{key}/B"]

    def trainable(self, *, on: bool) -> None:
        """Let gradients reach the matrices, or not; with them goes the dropout."""
        with self.stack.turn:  # a policy's late decision puts the flags back as it found them
            for parameter in self._parameters.values():
                parameter.requires_grad_(on)
            for module in self._modules.values():
                module.lora_dropout.train(on)

    def active(self, *, on: bool) -> None:
        """Switch the update on or off; gradient flags stay as they are."""
        flags = {key: parameter.requires_grad for key, parameter in self._parameters.items()}
        for module in self._modules.values():
            module.set_adapter([self.name] if on else [])
        for key, flag in flags.items():
            self._parameters[key].requires_grad_(flag)

    def arrays(self) -> Arrays:
        """A copy of every matrix, float32."""
        return {key: value.detach().cpu().numpy().copy() for key, value in self._parameters.items()}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write every matrix.

        Raises:
            LanguageError: unless names, shapes and dtypes are exactly this adapter's and every number is finite.
        """
        check_arrays(arrays, {key: tuple(p.shape) for key, p in self._parameters.items()}, self.name)
        with torch.no_grad():
            for key, parameter in self._parameters.items():
                parameter.copy_(torch.from_numpy(np.array(arrays[key], dtype=np.float32)))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every matrix, by name."""
        return {key: tuple(parameter.shape) for key, parameter in self._parameters.items()}

    def digest(self) -> str:
        """SHA-256 over the matrices, hexadecimal."""
        return digest_of_arrays(self.arrays())


def check_arrays(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Compare received matrices with what is expected.

    Raises:
        LanguageError: naming what is missing, unknown, of another shape or not finite.
    """
    missing, unknown = sorted(set(shapes) - set(arrays)), sorted(set(arrays) - set(shapes))
    if missing or unknown:
        raise LanguageError(
            f"{what}: expected {len(shapes)} matrices, got {len(arrays)}: missing {missing[:3]}, unknown {unknown[:3]} "
            "(made for another plan, model or LoRA?)"
        )
    for key, shape in shapes.items():
        array = arrays[key]
        if tuple(array.shape) != shape or array.dtype != np.float32:
            raise LanguageError(f"{what}: {key} expected float32 {shape}, got {array.dtype} {tuple(array.shape)}")
        if not np.isfinite(array).all():
            raise LanguageError(f"{what}: {key} holds numbers that are not finite")


def digest_of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over named arrays, hexadecimal."""
    total = hashlib.sha256()
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        total.update(f"{key} {array.shape} {array.dtype.str}".encode())
        total.update(array.tobytes())
    return total.hexdigest()


@contextlib.contextmanager
def only_active(adapters: Iterable[LoraAdapter], active: Sequence[LoraAdapter]) -> Iterator[None]:
    """Add the updates of `active` and of no other of `adapters`; on the way out all are added again.

    Gradients must be taken inside: backward after a switch is right for what was recorded, but a recomputation
    (checkpointing) would see the other setting.
    """
    every = list(adapters)
    for adapter in every:
        adapter.active(on=adapter in active)
    try:
        yield
    finally:
        for adapter in every:
            adapter.active(on=True)


def _inject(stack: Stack, name: str, layers: list[int], spec: LoraSpec) -> None:
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # PEFT says int and divides: a float is as good
        lora_dropout=spec.dropout,
        target_modules=list(spec.targets(stack)),
        layers_to_transform=layers,
        layers_pattern=stack.family.layers,
        fan_in_fan_out=stack.config.model_type == "gpt2",
        inference_mode=True,
    )
    with torch.random.fork_rng(devices=[]):  # PEFT draws from the global generator; what it drew is overwritten
        inject_adapter_in_model(config, stack.model, name)
    del stack.model.peft_config  # or a second adapter warns; nothing here reads it
    for module in stack.model.modules():  # PEFT makes the newest adapter the active one everywhere: each keeps its own
        if isinstance(module, LoraLayer):
            module.set_adapter(list(module.lora_A))
            module.requires_grad_(False)


def as_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Copies of named arrays as tensors."""
    return {key: torch.from_numpy(np.array(value)) for key, value in arrays.items()}

"""What a split costs in parameters and bytes, from a model's configuration alone: no weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from llm_qfl.language.lora import LoraSpec
from llm_qfl.language.split import SplitPlan
from llm_qfl.language.stack import Stack


@dataclass(frozen=True)
class SplitSizes:
    """Parameters of a split.

    Attributes:
        full: of the full model; tied weights count once.
        compressed: of what a site holds.
        layer: of one layer.
        lora: of each LoRA, by adapter name.
    """

    full: int
    compressed: int
    layer: int
    lora: dict[str, int]

    def model_bytes(self, each: int = 2) -> int:
        """Bytes of the compressed model (2 a number: bfloat16)."""
        return self.compressed * each

    def wire_bytes(self, name: str, each: int = 4) -> int:
        """Bytes of a LoRA on the wire, one way (4 a number: fp32)."""
        return self.lora[name] * each

    @property
    def share(self) -> float:
        """Compressed over full."""
        return self.compressed / self.full


def split_sizes(config: Any, plan: SplitPlan, lora: Mapping[str, LoraSpec]) -> SplitSizes:  # noqa: ANN401
    """Count a split of the model that a transformers config describes.

    Args:
        config: the model's.
        plan: how it is cut.
        lora: the LoRA called `adapter` lies on the plan's adapter layers, any other on the kept ones.

    Raises:
        LanguageError: for an unknown stack.
    """
    with torch.device("meta"):
        stack = Stack(AutoModelForCausalLM.from_config(config))
    full = sum(parameter.numel() for parameter in stack.model.parameters())
    layer = sum(parameter.numel() for parameter in stack.layers[0].parameters())
    counts = {}
    for name, spec in lora.items():
        layers = plan.adapter if name == "adapter" else plan.kept
        counts[name] = len(layers) * sum(_lora_size(stack, path, spec.rank) for path in spec.targets(stack))
    return SplitSizes(full, full - len(plan.dropped) * layer, layer, counts)


def _lora_size(stack: Stack, path: str, rank: int) -> int:
    module: Any = stack.layers[0].get_submodule(path)
    rows, columns = module.weight.shape
    return rank * (int(rows) + int(columns))

"""One face over the decoder stacks of transformers: embed, run any range of layers on hidden states, head.

Known stacks are named in `FAMILIES`; anything else is refused by name. Everything here is for right-padded rows
without a key/value cache: with causal attention no row sees its own padding, so no padding mask is needed and every
value at a real token is that of the row alone. Layers are run by number, one by one: a "compressed model" on the
server is a list of numbers, nothing is swapped, re-indexed or patched.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.mapped import MappedFile


@dataclass(frozen=True)
class Family:
    """Names of the parts of one kind of stack.

    Attributes:
        core: attribute of the causal model that holds the decoder.
        layers, embeddings, norm: attributes of the decoder.
        linear: linear modules of a layer, by their path in it.
        attention: of these, the ones that make queries and values.
        rotary: does the decoder hand rotary embeddings to its layers?
    """

    core: str
    layers: str
    embeddings: str
    norm: str
    linear: tuple[str, ...]
    attention: tuple[str, ...]
    rotary: bool


_LLAMA = Family(
    core="model",
    layers="layers",
    embeddings="embed_tokens",
    norm="norm",
    linear=(
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    ),
    attention=("self_attn.q_proj", "self_attn.v_proj"),
    rotary=True,
)
_GPT2 = Family(
    core="transformer",
    layers="h",
    embeddings="wte",
    norm="ln_f",
    linear=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    attention=("attn.c_attn",),  # queries, keys and values are one matrix
    rotary=False,
)
FAMILIES = {"llama": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA, "gpt2": _GPT2}


def family_of(config: Any) -> Family:  # noqa: ANN401 - a transformers config, each of its own class
    """The family of a model, from its config alone.

    Raises:
        LanguageError: for a stack that is not known, or a variant of a known one that cannot be cut.
    """
    kind = getattr(config, "model_type", None)
    if kind not in FAMILIES:
        raise LanguageError(f"language.model: its layer stack is {kind!r}, known are {', '.join(sorted(FAMILIES))}")
    if getattr(config, "scale_attn_by_inverse_layer_idx", False) or getattr(config, "add_cross_attention", False):
        raise LanguageError(
            f"language.model: this {kind} scales attention by the layer's number or attends to an encoder: "
            "it is another model once layers are dropped"
        )
    return FAMILIES[kind]


class Stack:
    """A causal language model as embedding, numbered layers and head.

    Args:
        model: of a known family; it is put in eval mode and frozen.

    Attributes:
        mapped: the file that some layers' weights are pages of, or None.
        turn: held by whoever runs layers with some of the updates switched on: a policy's decision that comes too late
            goes on in a thread of its own, and would switch them in the middle of another pass.

    Raises:
        LanguageError: for an unknown stack.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.family = family_of(model.config)
        self.model = model
        self.mapped: MappedFile | None = None
        self.turn = threading.RLock()
        self.config = model.config
        self.core: Any = getattr(model, self.family.core)
        self.layers: nn.ModuleList = getattr(self.core, self.family.layers)
        if len(self.layers) != self.config.num_hidden_layers:
            raise LanguageError(
                f"language.model: its config says {self.config.num_hidden_layers} layers, it has {len(self.layers)}"
            )
        model.eval().requires_grad_(False)

    def __len__(self) -> int:
        """Layers of the stack."""
        return len(self.layers)

    def release(self) -> None:
        """Give back the memory of layers that are pages of a file; they come back when they are run."""
        if self.mapped is not None:
            self.mapped.release()

    @property
    def device(self) -> torch.device:
        """Where the embedding lies."""
        device: torch.device = self._embeddings.weight.device
        return device

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        return int(self.config.hidden_size)

    @property
    def vocabulary(self) -> int:
        """Tokens that the head tells apart."""
        return int(self.config.vocab_size)

    @property
    def _embeddings(self) -> Any:  # noqa: ANN401 - the module's class differs by family
        return getattr(self.core, self.family.embeddings)

    def dtype_of(self, layer: int) -> torch.dtype:
        """In what numbers a layer computes: that of its norm, which no quantization touches."""
        return next(p.dtype for p in self.layers[layer].parameters() if p.ndim == 1)

    def embed(self, ids: Tensor) -> Tensor:
        """Input of layer 0.

        Args:
            ids: token numbers (rows, length), right-padded.

        Returns:
            Hidden states (rows, length, width).

        Raises:
            LanguageError: for rows longer than the model's positions.
        """
        length, limit = ids.shape[1], int(self.config.max_position_embeddings)
        if length > limit:
            raise LanguageError(f"a row of {length} tokens is longer than the model's {limit} positions; cut it")
        hidden: Tensor = self._embeddings(ids)
        if not self.family.rotary:
            hidden = hidden + self.core.wpe(torch.arange(length, device=ids.device))
        return hidden

    def run(self, hidden: Tensor, layers: Sequence[int]) -> Tensor:
        """Run layers, by number and in the order given, on hidden states (rows, length, width)."""
        arguments: dict[tuple[torch.dtype, str], dict[str, Any]] = {}
        for number in layers:
            dtype, kind = self.dtype_of(number), self._attention_of(number)
            hidden = hidden.to(dtype)
            if (dtype, kind) not in arguments:
                arguments[dtype, kind] = self._arguments(hidden, kind)
            hidden = self.layers[number](hidden, **arguments[dtype, kind])
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        """Final norm and head: hidden states (..., width) of the last layer to logits (..., vocabulary) in float32."""
        return self.logits(self.norm(hidden))

    def norm(self, hidden: Tensor) -> Tensor:
        """The final norm alone."""
        module: Any = getattr(self.core, self.family.norm)
        out: Tensor = module(hidden.to(module.weight.dtype))
        return out

    def logits(self, normed: Tensor) -> Tensor:
        """The head alone, on what `norm` gave."""
        head: Any = self.model.get_output_embeddings()
        out: Tensor = head(normed.to(head.weight.dtype))
        return out.float()

    def _attention_of(self, layer: int) -> str:
        kinds = getattr(self.config, "layer_types", None)
        return str(kinds[layer]) if kinds else "full_attention"

    def _arguments(self, hidden: Tensor, kind: str) -> dict[str, Any]:
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        make = create_sliding_window_causal_mask if kind == "sliding_attention" else create_causal_mask
        mask = make(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=None,
            past_key_values=None,
            position_ids=positions,
        )
        arguments = {"attention_mask": mask, "position_ids": positions, "use_cache": False}
        if self.family.rotary:
            arguments["position_embeddings"] = self.core.rotary_emb(hidden, position_ids=positions)
        return arguments

"""A random model of 2 to 8 layers with a byte tokenizer: the whole protocol in seconds, for tests and dry runs."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from llm_qfl.federation.errors import LanguageError

WIDTH, HEADS, POSITIONS = 32, 4, 512
END = "<|end|>"
VOCABULARY = 257  # the bytes and the end token


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and an end token that also pads."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END, pad_token=END, model_max_length=POSITIONS)


def tiny_model(layers: int = 4, kind: str = "llama", seed: int = 0) -> PreTrainedModel:
    """A random model with tied embeddings, equal for equal arguments.

    Raises:
        LanguageError: for fewer than 2 or more than 8 layers, or an unknown kind.
    """
    if not 2 <= layers <= 8:
        raise LanguageError(f"language.model: a tiny model has 2 to 8 layers, got {layers}")
    if kind not in ("llama", "qwen2", "qwen3", "gpt2"):
        raise LanguageError(f"language.model: a tiny model is llama, qwen2, qwen3 or gpt2, got {kind!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build(layers, kind).eval()


def _build(layers: int, kind: str) -> PreTrainedModel:
    # transformers initialises with a deviation of .02, which leaves a random stack nearly the identity: .15 gives
    # layers that matter, so that dropping one is felt
    ends = {"bos_token_id": None, "eos_token_id": 256, "pad_token_id": 256, "initializer_range": 0.15}
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=layers, n_head=HEADS, n_positions=POSITIONS, **ends
        )
        return GPT2LMHeadModel(config)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // 2,
        "head_dim": WIDTH // HEADS,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": True,
        **ends,
    }
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape))
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": layers // 2}
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**shape, **window))
    return Qwen3ForCausalLM(Qwen3Config(**shape, **window))

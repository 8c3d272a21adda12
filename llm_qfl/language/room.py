"""Has this machine room for a site's language model? Asked before anything is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_qfl.federation.config_language import LanguageConfig
from llm_qfl.language.compress import Manifest
from llm_qfl.language.files import SPARE

# Measured on SmolLM2-135M (16 rows of 98 tokens, last 4 layers, all linear modules, float32): about 500 MB of
# activations for 3.6 million hidden numbers, and 400 MB for Python with torch and transformers.
BYTES_PER_NUMBER = 160
PROCESS = 400 << 20
NF4 = 0.55  # bytes a number, scales included
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def client_memory(manifest: Manifest, model_config: Any, config: LanguageConfig) -> int:  # noqa: ANN401
    """About how many bytes of memory a site's local round takes at most, boundary states apart (they can lie on disk).

    Args:
        manifest: of the compressed model.
        model_config: its transformers config.
        config: the section `language`.
    """
    rows = config.micro_batch or config.batch_size
    tokens = rows * config.max_tokens
    crossed = len(manifest.plan.held) - manifest.plan.to_compressed(
        manifest.plan.first_trained
    )  # layers that gradients pass
    activations = BYTES_PER_NUMBER * tokens * crossed * int(model_config.hidden_size)
    answers = tokens if config.task == "generation" else rows
    logits = 4 * 4 * answers * int(model_config.vocab_size)  # logits, their softmax, its gradient, a copy
    stored = _stored_bytes(model_config)
    weights = manifest.size * (2 if stored == 2 and config.dtype != "bfloat16" else 1)
    if config.quantization == "nf4":  # linear layers in half a byte a number and its scales, the embedding as it is
        embedding = stored * int(model_config.vocab_size) * int(model_config.hidden_size)
        weights = embedding + int(NF4 * max(manifest.size - embedding, 0) / stored)
    return PROCESS + weights + activations + logits


def available_memory(device: str = "cpu") -> int | None:
    """Bytes that this process can still take: of the machine, or of its container where that is less; None: unknown.

    Args:
        device: `cpu`, or `cuda` for the memory of the GPU.
    """
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    found = []
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            found.append(int(limit) - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no Linux, or no second version of control groups: what was found counts
    return max(min(found), 0) if found else None


def room_problem(manifest: Manifest, model_config: Any, config: LanguageConfig) -> str | None:  # noqa: ANN401
    """Why the model does not fit here, or None where it does (or nothing is known)."""
    from llm_qfl.language.device import choose_device

    device = choose_device(config.device).type
    free, need = available_memory(device), client_memory(manifest, model_config, config)
    if free is None or need <= free:
        return None
    where = "GPU" if device == "cuda" else "machine"
    return (
        f"the language model needs about {need / 1e6:.0f} MB of memory, this {where} has {free / 1e6:.0f} MB free; "
        "lower language.batch-size or micro-batch, or take part without it"
    )


def long_words(folder: Path, words: Sequence[str]) -> int:
    """How many label words are more than one token of this model, each of which may be scored in rows of its own.

    All of them where the model's tokenizer is no JSON file: only that can be read without transformers.

    Args:
        folder: of the compressed model.
        words: the answers of the classes.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        return len(words)
    tokenizer = Tokenizer.from_file(str(path))
    return sum(len(tokenizer.encode(f" {word}", add_special_tokens=False).ids) > 1 for word in words)


def state_bytes(rows: int, model_config: Any, config: LanguageConfig) -> int:  # noqa: ANN401
    """At most how many bytes of disk boundary states take: every token of every row, in float32.

    Args:
        rows: those of all files; a row that lies in two of them counts twice.
        model_config: its transformers config.
        config: the section `language`.
    """
    if config.method == "fedlora-all":  # the first layer is trained already
        return 0
    return 4 * rows * config.max_tokens * int(model_config.hidden_size)


def disk_problem(folder: Path, need: int, rows: int) -> str | None:
    """Why what a site keeps does not fit on its disk, or None where it does; names no path.

    Args:
        folder: the node's.
        need: from `state_bytes`.
        rows: the site's, for the message.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if need + SPARE <= free:
        return None
    return (
        f"the boundary states of {rows} rows need up to {need / 1e6:.0f} MB of disk, the node's folder has "
        f"{free / 1e6:.0f} MB free; lower language.max-tokens, or take part without it"
    )


def _stored_bytes(model_config: Any) -> int:  # noqa: ANN401
    return 2 if str(getattr(model_config, "dtype", None)).endswith("16") else 4

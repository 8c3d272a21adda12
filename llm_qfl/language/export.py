"""The tuned adapter as a PEFT folder for the full model, and the merged model.

`PeftModel.from_pretrained(full, folder)` loads the folder; `base.json` names the model that it belongs to by digest.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.files import check_tensor_files, read_json, write_folder
from llm_qfl.language.lora import Arrays, LoraAdapter, LoraSpec
from llm_qfl.language.models import BaseModel
from llm_qfl.language.route import Route
from llm_qfl.language.stack import Family, Stack, family_of

BASE_FILE = "base.json"
WEIGHTS_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class AdapterFolder:
    """A PEFT folder of ours, read.

    Attributes:
        base_name, base_digest: the full model it belongs to.
        spec: the LoRA's shape.
        layers: numbers of its layers in the full model.
        arrays: its matrices, named as in `LoraAdapter`.
        class_bias: nats, by label word; added to the words' log-likelihoods they give every class an equal share of
            public prompts (the first of the run's). Empty where none were measured.
    """

    base_name: str
    base_digest: str
    spec: LoraSpec
    layers: tuple[int, ...]
    arrays: Arrays
    class_bias: Mapping[str, float] = field(default_factory=dict)


def export_adapter(
    folder: Path,
    base: BaseModel,
    adapter: LoraAdapter,
    arrays: Mapping[str, np.ndarray],
    card: Mapping[str, str],
    *,
    compressed: bool = True,
    class_bias: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """Write the PEFT folder.

    Args:
        folder: where to; it is replaced.
        base: the full model.
        adapter: gives shape and layers.
        arrays: its matrices, named by the layers of the full model.
        card: lines for the model card: what -> value (data set, method, scores, ...).
        compressed: did sites hold a compressed model? For the card.
        class_bias: as in `AdapterFolder`.

    Raises:
        LanguageError: where it cannot be written.
    """
    family, spec = adapter.stack.family, adapter.spec
    layers = sorted(adapter.layers)
    tensors = {_peft_key(family, key): torch.from_numpy(np.array(value)) for key, value in arrays.items()}
    name = Path(base.name).name if base.name.startswith(("/", ".", "~")) else base.name

    def write(part: Path) -> None:
        _peft_config(family, spec, layers, name, base).save_pretrained(part)
        save_file(tensors, part / WEIGHTS_FILE, metadata={"format": "pt"})
        about = {"name": name, "digest": base.digest, "lora": asdict(spec), "layers": layers}
        lines = dict(card)
        if class_bias:
            about["class-bias"] = dict(class_bias)
            lines["class biases for a flat prior, nats"] = ", ".join(f"{k} {v:+.3f}" for k, v in class_bias.items())
        (part / BASE_FILE).write_text(json.dumps(about, indent=1))
        (part / "README.md").write_text(_card(name, base.digest, spec, layers, lines, compressed=compressed))

    write_folder(folder, write, size=sum(v.nbytes for v in arrays.values()), what="the adapter")


def read_adapter(folder: Path) -> AdapterFolder:
    """Read a PEFT folder that `export_adapter` wrote.

    Raises:
        LanguageError: where a file is missing or damaged.
    """
    data = read_json(folder / BASE_FILE, "adapter folder")
    try:
        spec, layers = LoraSpec(**data["lora"]), tuple(int(i) for i in data["layers"])
        name, digest = str(data["name"]), str(data["digest"])
    except (KeyError, TypeError, ValueError) as error:
        raise LanguageError(f"adapter folder: {folder / BASE_FILE} lacks a field: {error}") from error
    bias = data.get("class-bias", {})
    if not isinstance(bias, dict) or not all(type(value) is float and isfinite(value) for value in bias.values()):
        raise LanguageError(
            f"adapter folder: {folder / BASE_FILE}: expected class-bias to map label words to numbers, got {bias!r}; "
            "copy the folder again"
        )
    path = folder / WEIGHTS_FILE
    check_tensor_files([path])
    arrays = {_own_key(key): value.float().numpy() for key, value in load_file(path).items()}
    return AdapterFolder(name, digest, spec, layers, arrays, bias)


def load_tuned(base: BaseModel, folder: Path) -> Route:
    """The full model with a folder's adapter on it (what AdapFu is), to score or predict with.

    Raises:
        LanguageError: where the adapter belongs to another model, or does not fit it.
    """
    read = read_adapter(folder)
    check_base(base, read, folder)
    stack = Stack(base.model)
    if read.layers and max(read.layers) >= len(stack):
        raise LanguageError(f"adapter in {folder}: made for layer {max(read.layers)}, the model has {len(stack)}")
    adapter = LoraAdapter(stack, "adapter", {i: i for i in read.layers}, read.spec, seed=0)
    adapter.load(read.arrays)
    start = min(read.layers)
    prefix, suffix = tuple(range(start)), tuple(range(start, len(stack)))
    return Route(stack, base.digest, prefix, suffix, (adapter,), (adapter,))


def check_base(base: BaseModel, read: AdapterFolder, folder: Path) -> None:
    """Refuse an adapter on a model that it was not made for.

    Raises:
        LanguageError: with both digests.
    """
    if read.base_digest != base.digest:
        raise LanguageError(
            f"adapter in {folder}: made for {read.base_name} ({read.base_digest[:16]}), the model given is {base.name} "
            f"({base.digest[:16]})"
        )


def merge_adapter(base: BaseModel, folder: Path, target: Path) -> None:
    """Write the full model with the adapter's update added to its weights, for use without PEFT.

    The sum is taken in float32 and rounded once, to the numbers that the model is stored in.

    Args:
        base: the full model; its weights change, do not use it afterwards.
        folder: the PEFT folder.
        target: where the merged model goes; it is replaced.

    Raises:
        LanguageError: where the adapter belongs to another model or does not fit it, or there is no room.
    """
    read = read_adapter(folder)
    check_base(base, read, folder)
    stored = next(base.model.parameters()).dtype
    expected = _expected_keys(family_of(base.model.config), read)
    if expected != set(read.arrays):  # PEFT would load what it finds and go on
        raise LanguageError(
            f"adapter in {folder}: {len(read.arrays)} matrices, {len(expected)} expected; "
            f"first of those that differ: {sorted(expected ^ set(read.arrays))[:3]}"
        )
    with warnings.catch_warnings():  # peft 0.21 asks transformers 5.23 for a property by its old name
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        peft = PeftModel.from_pretrained(base.model.float(), folder)
    merged = peft.merge_and_unload(safe_merge=True).to(stored)
    size = sum(p.numel() * p.element_size() for p in merged.parameters())

    def write(part: Path) -> None:
        merged.save_pretrained(part)
        base.tokenizer.save_pretrained(part)

    write_folder(target, write, size=size, what="the merged model")


def _expected_keys(family: Family, read: AdapterFolder) -> set[str]:
    targets = family.linear if read.spec.modules == "all-linear" else family.attention
    return {f"{layer}/{path}/{side}" for layer in read.layers for path in targets for side in "AB"}


def _peft_config(family: Family, spec: LoraSpec, layers: list[int], name: str, base: BaseModel) -> LoraConfig:
    targets = family.linear if spec.modules == "all-linear" else family.attention
    alpha = int(spec.alpha) if float(spec.alpha).is_integer() else spec.alpha
    return LoraConfig(
        r=spec.rank,
        lora_alpha=alpha,
        lora_dropout=spec.dropout,
        target_modules=list(targets),
        layers_to_transform=layers,
        layers_pattern=family.layers,
        fan_in_fan_out=base.model.config.model_type == "gpt2",
        base_model_name_or_path=name,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )


def _peft_key(family: Family, key: str) -> str:
    layer, module, side = key.split("/")
    return f"base_model.model.{family.core}.{family.layers}.{layer}.{module}.lora_{side}.weight"


def _own_key(key: str) -> str:
    """`base_model.model.model.layers.26.self_attn.q_proj.lora_A.weight` -> `26/self_attn.q_proj/A`."""
    parts = key.split(".")
    if len(parts) < 8 or parts[-1] != "weight" or parts[-2] not in ("lora_A", "lora_B") or not parts[4].isdigit():
        raise LanguageError(f"adapter folder: {key!r} is no LoRA matrix of a layer")
    return f"{parts[4]}/{'.'.join(parts[5:-2])}/{parts[-2][-1]}"


def _card(
    name: str, digest: str, spec: LoraSpec, layers: list[int], card: Mapping[str, str], *, compressed: bool
) -> str:
    title = " on a compressed model (FedBiOT)" if compressed else ""
    where = (
        "a compressed model, each on its own rows; it is loaded on the full one:" if compressed else "their own rows:"
    )
    lines = [f"| {key} | {value} |" for key, value in card.items()]
    return "\n".join(
        [
            "---",
            "library_name: peft",
            f"base_model: {name}",
            "tags: [lora, federated-learning]",
            "---",
            f"# Adapter tuned federated{title}",
            "",
            f"LoRA (rank {spec.rank}, alpha {spec.alpha:g}, {spec.modules}) on layers {layers} of the *full* model "
            f"`{name}`, SHA-256 `{digest}`.",
            f"Sites tuned it on {where}",
            "",
            "```python",
            "from peft import PeftModel",
            "model = PeftModel.from_pretrained(full, folder)",
            "```",
            "",
            "| what | value |",
            "|---|---|",
            *lines,
            "",
            "What sites were trained on may shape what the model says: nothing was made private by noise.",
            *(["Withheld from the sites were some of the full model's layers."] if compressed else []),
            "",
        ]
    )

"""The compressed model as a folder: what a site holds, and all that it holds.

The folder has `model.safetensors` with the kept layers under their new numbers, an edited `config.json`, the tokenizer
and `manifest.json`: split plan, digest of the base model, shapes of the LoRAs, size and SHA-256 of every file. The
SHA-256 of the manifest names the folder, so whoever knows that one number can check all of it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.files import cached_digest, file_digest, read_json, write_folder
from llm_qfl.language.lora import LoraSpec
from llm_qfl.language.mapped import map_layers
from llm_qfl.language.models import load_model, load_tokenizer
from llm_qfl.language.split import SplitPlan
from llm_qfl.language.stack import Stack

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What a compressed model says of itself.

    Attributes:
        plan: how the full model was cut.
        base_name, base_digest: the full model.
        lora: shapes of the LoRAs that go on it, by adapter name.
        files: size and SHA-256 of every file.
    """

    plan: SplitPlan
    base_name: str
    base_digest: str
    lora: dict[str, LoraSpec]
    files: dict[str, tuple[int, str]]

    @property
    def size(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(size for size, _ in self.files.values())

    def text(self) -> str:
        """The file's text; its SHA-256 is the model's name."""
        data = {
            "format": FORMAT,
            "plan": self.plan.to_json(),
            "base": {"name": self.base_name, "digest": self.base_digest},
            "lora": {name: asdict(spec) for name, spec in self.lora.items()},
            "files": {name: {"size": size, "sha256": digest} for name, (size, digest) in self.files.items()},
        }
        return json.dumps(data, indent=1, sort_keys=True)

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Manifest:
        """Read the JSON form.

        Raises:
            LanguageError: for another format, a missing field, or a file name that leads out of the folder.
        """
        try:
            if data["format"] != FORMAT:
                raise LanguageError(f"{MANIFEST}: expected format {FORMAT}, got {data['format']}; use one release")
            files = {str(k): (int(v["size"]), str(v["sha256"])) for k, v in data["files"].items()}
            lora = {str(k): LoraSpec(**v) for k, v in data["lora"].items()}
            base = data["base"]
            manifest = cls(SplitPlan.from_json(data["plan"]), str(base["name"]), str(base["digest"]), lora, files)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LanguageError(f"{MANIFEST}: a field is missing or of another kind: {error}") from error
        for name in manifest.files:
            if Path(name).name != name or name.startswith("."):
                raise LanguageError(f"{MANIFEST}: a file may not be called {name!r}")
        return manifest


@dataclass(frozen=True, eq=False)
class CompressedModel:
    """A compressed model, loaded.

    Attributes:
        stack: its layers, numbered as in `manifest.plan.held`.
        tokenizer: the base model's.
        manifest: what it says of itself.
        sha256: its name.
    """

    stack: Stack
    tokenizer: PreTrainedTokenizerBase
    manifest: Manifest
    sha256: str


@dataclass(frozen=True)
class ExportedModel:
    """Where a compressed model was written.

    Attributes:
        folder: the folder.
        sha256: its name.
        size: bytes of all files.
        parameters: numbers in it.
    """

    folder: Path
    sha256: str
    size: int
    parameters: int


def export_compressed(
    stack: Stack,
    tokenizer: PreTrainedTokenizerBase,
    plan: SplitPlan,
    base: tuple[str, str],
    lora: dict[str, LoraSpec],
    parent: Path,
    dtype: torch.dtype = torch.float32,
    tensors: Mapping[str, Tensor] | None = None,
) -> ExportedModel:
    """Write the compressed model to `parent/<sha256>`.

    Args:
        stack: the full model; LoRAs on it stay out.
        tokenizer: its tokenizer.
        plan: how it is cut.
        base: name and digest of the full model.
        lora: LoRAs that sites put on it.
        parent: folder of the folder.
        dtype: numbers of the weights in the file: those that the base model is stored in.
        tensors: from `pruned_tensors`, where the stack's own weights have been rounded since.

    Raises:
        LanguageError: where the plan is for another number of layers, or there is no room.
    """
    if plan.n != len(stack):
        raise LanguageError(f"split plan: made for {plan.n} layers, the model has {len(stack)}")
    found = pruned_tensors(stack, plan) if tensors is None else tensors
    weights = {name: t.to(dtype).contiguous() for name, t in found.items()}
    config = pruned_config(stack, plan)
    config.dtype = dtype
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    digest = ""

    def write(folder: Path) -> None:
        nonlocal digest, size
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        files = {}
        for path in sorted(folder.iterdir()):
            path.chmod(0o644)
            files[path.name] = (path.stat().st_size, file_digest(path))
        text = Manifest(plan, Path(base[0]).name, base[1], lora, files).text()
        (folder / MANIFEST).write_text(text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        size = sum(path.stat().st_size for path in folder.iterdir())

    part = parent / f".compressed-{os.getpid()}"
    write_folder(part, write, size=size, what="the compressed model")
    target = parent / digest
    try:
        part.rename(target)
    except OSError:
        if not target.exists():
            raise
        shutil.rmtree(part)  # the same bytes: another run's, perhaps in use
    return ExportedModel(target, digest, size, sum(tensor.numel() for tensor in weights.values()))


def pruned_tensors(stack: Stack, plan: SplitPlan) -> dict[str, Tensor]:
    """Weights of the kept layers under their new numbers, and of everything that is no layer; tied ones once."""
    prefix = f"{stack.family.core}.{stack.family.layers}."
    tensors: dict[str, Tensor] = {}
    held = set(plan.held)
    for name, tensor in stack.model.state_dict().items():
        if ".lora_" in name:
            continue
        key = name.replace(".base_layer.", ".")
        if key.startswith(prefix):
            number, rest = key[len(prefix) :].split(".", 1)
            if int(number) not in held:
                continue
            key = f"{prefix}{plan.to_compressed(int(number))}.{rest}"
        elif key == "lm_head.weight" and stack.config.tie_word_embeddings:
            continue
        tensors[key] = tensor.detach().cpu()
    return tensors


def pruned_config(stack: Stack, plan: SplitPlan) -> Any:  # noqa: ANN401 - a transformers config, each of its own class
    """The configuration of the compressed model: fewer layers, and each keeps its own kind of attention."""
    data = copy.deepcopy(stack.config.to_dict())
    kinds = data.get("layer_types")
    data["n_layer" if stack.config.model_type == "gpt2" else "num_hidden_layers"] = len(plan.held)
    if kinds:
        data["layer_types"] = [kinds[i] for i in plan.held]
    data["_name_or_path"] = ""
    data["architectures"] = [type(stack.model).__name__]
    return type(stack.config).from_dict(data)


def load_compressed(folder: Path, sha256: str, *, quantization: str = "none") -> CompressedModel:
    """Load a compressed model after every byte of it was read and checked; the base model is not needed.

    Args:
        folder: its folder.
        sha256: its name, as the server said it.
        quantization: `none` or `nf4`.

    Raises:
        LanguageError: where anything differs from what the name promises.
    """
    path = folder / MANIFEST
    manifest = Manifest.parse(read_json(path, "compressed model"))
    found = file_digest(path)
    if found != sha256:
        raise LanguageError(
            f"compressed model in {folder}: expected SHA-256 {sha256}, got {found}: it is another model"
        )
    check_files(folder, manifest, anew=True)
    stack = Stack(load_model(folder, quantization=quantization))
    if len(stack) != len(manifest.plan.held):
        raise LanguageError(f"compressed model: {len(stack)} layers, its plan holds {len(manifest.plan.held)}")
    if quantization == "none":
        frozen = [i for i, full in enumerate(manifest.plan.held) if full < manifest.plan.first_trained]
        stack.mapped = map_layers(stack, folder / WEIGHTS, frozen)
    return CompressedModel(stack, load_tokenizer(folder), manifest, sha256)


def check_files(folder: Path, manifest: Manifest, *, anew: bool = False) -> None:
    """Compare every file with its size and digest, and refuse files of other names.

    Args:
        folder: the folder.
        manifest: what it must hold.
        anew: read every byte. Else a note beside a file stands for its digest as long as size and time of change are
            the same: enough to say whether the model is here, not to compute with it.

    Raises:
        LanguageError: naming the first that differs.
    """
    digest_of = file_digest if anew else cached_digest
    listed = {MANIFEST, *manifest.files}
    for path in sorted(folder.iterdir()):
        if path.name not in listed and not path.name.startswith("."):  # transformers would look into some of them
            raise LanguageError(
                f"compressed model: {path} is not among the files of the manifest, whose digest is the model's name; "
                "remove it"
            )
    for name, (size, digest) in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise LanguageError(f"compressed model: {path} is missing; fetch the model again")
        if path.stat().st_size != size:
            raise LanguageError(
                f"compressed model: {path} has {path.stat().st_size} bytes, expected {size}: cut short? fetch it again"
            )
        if digest_of(path) != digest:
            raise LanguageError(f"compressed model: {path} is not the file that the manifest names; fetch it again")

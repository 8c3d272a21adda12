"""The model whose hidden states a run's QNN reads (`data.encoding = language`), kept in a run folder.

The compressed model as it was first distributed is the base model less the dropped layers, plus a few megabytes of
updates from the first alignment. These updates and what names the rest are one file; predictions add the base model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from llm_qfl.federation.config_language import LanguageConfig
from llm_qfl.federation.errors import LanguageError
from llm_qfl.federation.types import Array
from llm_qfl.language.lora import Arrays
from llm_qfl.language.methods import EMULATOR, FIRST
from llm_qfl.language.models import load_base
from llm_qfl.language.server import ServerLanguage
from llm_qfl.language.task import text_features

FILE = "features.safetensors"
FORMAT = "feature-model 1"


def save_feature_model(folder: Path, server: ServerLanguage, layer: int) -> None:
    """Write `features.safetensors`.

    Args:
        folder: is there.
        server: the run's language model.
        layer: after which of the distributed model's layers; 0 is the middle one.
    """
    first = {key: value for key, value in server.state().items() if key.startswith(f"{FIRST}/")}
    about = {
        "format": FORMAT,
        "base": server.base.name,
        "base_digest": server.base.digest,
        "seed": str(server.seed),
        "layer": str(layer),
        "language": server.config.model_dump_json(by_alias=True),
    }
    (folder / FILE).write_bytes(save(first, metadata=about))


def language_features(folder: Path, texts: Sequence[str], base: str, models: Path) -> Array:
    """Numbers of texts (N, width), as the run's sites made them of theirs.

    Args:
        folder: where `features.safetensors` lies.
        texts: the rows.
        base: the base model: a name that `load_base` takes.
        models: folder of converted models.

    Raises:
        LanguageError: the file is missing or damaged, or the base model is another one or not to be had.
    """
    first, about = _read(folder / FILE)
    try:
        config = LanguageConfig.model_validate_json(about["language"])
        seed, layer, digest = int(about["seed"]), int(about["layer"]), about["base_digest"]
    except (KeyError, ValueError, ValidationError) as error:
        raise LanguageError(f"{folder / FILE}: its description cannot be read ({error}); copy it again") from error
    model = load_base(base, models)
    if model.digest != digest:
        raise LanguageError(
            f"{folder / FILE}: made with {about.get('base')} ({digest[:16]}), the model given is {base} "
            f"({model.digest[:16]}); name the right one with --base"
        )
    server = ServerLanguage(model, config, seed=seed)
    as_emulator = {key.replace(FIRST, EMULATOR, 1): value for key, value in first.items()}
    server.load_state({**server.state(), **as_emulator, **first})
    with server.distributed() as route:
        return text_features(route, texts, model.tokenizer, config, layer)


def _read(path: Path) -> tuple[Arrays, dict[str, str]]:
    try:
        with safe_open(path, framework="np") as file:
            found, about = {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise LanguageError(f"{path}: cannot be read as a run's feature model ({error}); copy it again") from error
    if about.get("format") != FORMAT:
        raise LanguageError(f"{path}: expected the format {FORMAT!r}, got {about.get('format')!r}")
    return found, about

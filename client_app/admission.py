"""Does a site take part in the language model: what is installed, what it may, whether the model fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from logging import ERROR
from pathlib import Path

from flwr.common import log

from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.errors import ConfigError, LanguageError, LlmQflError
from llm_qfl.federation.records import ModelOffer
from llm_qfl.federation.settings import NodeSettings

NEEDED = ("torch", "transformers", "peft", "safetensors")
# What a language part may fail with; anything else is a fault of ours and ends the task.
FAILURES = (LlmQflError, RuntimeError, OSError, MemoryError)


def missing_packages() -> list[str]:
    """Packages that a language model needs and that are not installed."""
    return [name for name in NEEDED if find_spec(name) is None]


def library_problem(theirs: Mapping[str, str]) -> str:
    """Which libraries differ from the server's, or an empty string."""
    differ = []
    for name, wanted in sorted(theirs.items()):
        try:
            found = version(name).split("+")[0]
        except PackageNotFoundError:
            found = "none"
        if found != wanted:
            differ.append(f"{name} (server {wanted}, site {found})")
    return ", ".join(differ)


def why_not(
    config: RunConfig,
    settings: NodeSettings,
    offer: ModelOffer | None,
    rows: Mapping[str, int],
    class_names: Sequence[str],
) -> str:
    """Why this site takes no part in the language model; empty where it does.

    The text goes to the server: it names no path.

    Args:
        config: the run config.
        settings: the site's own settings.
        offer: what the query says of the model.
        rows: the site's, by part of the split.
        class_names: of its labels.
    """
    if offer is None:
        return "no language model was offered"
    if settings.language == "no":
        return "switched off at the site (node config: language)"
    if missing := missing_packages():
        return f"not installed at the site: {', '.join(missing)}; pip install 'llm-qfl[language]'"
    if problem := library_problem(offer.libraries):
        return f"other versions than the server's: {problem}"
    if config.language.quantization == "nf4" and find_spec("bitsandbytes") is None:
        return "language.quantization=nf4 needs bitsandbytes, which is not installed at the site"
    try:
        return _room_problem(config, settings, offer, rows, class_names)
    except FAILURES as error:
        log(ERROR, "language model: %s", error)
        return f"the model cannot be had ({type(error).__name__}; the full text is in the site's own log)"


def _room_problem(
    config: RunConfig, settings: NodeSettings, offer: ModelOffer, rows: Mapping[str, int], class_names: Sequence[str]
) -> str:
    """Fetch and check the model, and see whether it fits."""
    from types import SimpleNamespace

    from llm_qfl.language.compress import MANIFEST, Manifest, check_files
    from llm_qfl.language.fetch import fetch_compressed
    from llm_qfl.language.files import file_digest, read_json
    from llm_qfl.language.room import disk_problem, room_problem, state_bytes

    folder = fetch_compressed(offer.source, offer.sha256, settings.folder / "models")
    if (found := file_digest(folder / MANIFEST)) != offer.sha256:
        raise LanguageError(f"compressed model in {folder}: expected SHA-256 {offer.sha256}, got {found}")
    manifest = Manifest.parse(read_json(folder / MANIFEST, "compressed model"))
    check_files(folder, manifest)
    about = read_json(folder / "config.json", "compressed model")
    sizes = SimpleNamespace(
        hidden_size=about.get("hidden_size", about.get("n_embd")),
        vocab_size=about["vocab_size"],
        dtype=about.get("dtype", about.get("torch_dtype")),
    )
    language = config.language.effective()
    need = state_bytes(_rows_in_files(config, folder, rows, class_names), sizes, language)
    problem = room_problem(manifest, sizes, language) or disk_problem(settings.folder, need, sum(rows.values()))
    return "" if problem is None else f"no room: {problem}"


def _rows_in_files(config: RunConfig, folder: Path, rows: Mapping[str, int], class_names: Sequence[str]) -> int:
    """Rows in all files of boundary states: with their own answer to train on, with each answer to score on its own.

    As far as this site knows the classes: a label word of several tokens that it has no row of is not counted.
    """
    from llm_qfl.federation.data.prompts import label_words
    from llm_qfl.language.room import long_words

    language = config.language
    if language.task == "generation":
        return sum(rows.values())
    words = [word.strip() for word in language.label_words.split(",")]  # of all classes; a site may have rows of fewer
    if len(words) == 1:
        try:
            words = list(label_words("auto" if words == ["classes"] else words[0], class_names))
        except ConfigError:
            words = list(class_names)  # the server refuses them, with the reason
    scored = max(long_words(folder, words), 1)
    held_out = sum(rows.values()) - rows["train"]
    return rows["train"] * (1 + scored * config.agent.distills) + held_out * scored

"""The tuned adapter of a run folder and the base model that it belongs to, opened strictly."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_qfl.federation.errors import LanguageError, RunFolderError
from llm_qfl.federation.settings import default_folder, project_folder

if TYPE_CHECKING:
    from llm_qfl.language.export import AdapterFolder
    from llm_qfl.language.models import BaseModel

ADAPTER = "adapter"
PEFT_CONFIG = "adapter_config.json"
PACKAGES = ("torch", "transformers", "peft", "safetensors", "tokenizers")
# What would make PEFT compute something else than `alpha / rank * B A` with these matrices.
_VARIANTS = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias")


@dataclass(frozen=True, eq=False)
class TunedAdapter:
    """The PEFT folder of a run, read and found to be consistent.

    Attributes:
        folder: where it lies.
        read: what it holds.
        base_name: where the base model is to be had, a name that `load_base` takes.
    """

    folder: Path
    read: AdapterFolder
    base_name: str

    def base_size(self) -> int:
        """Bytes of the base model's weight files, 0 for one that has none (`tiny`); checks its digest on the way.

        Raises:
            LanguageError: the base model is not to be had, is another one, or its stack is unknown.
        """
        from llm_qfl.language.models import folder_digest, read_config, resolve_folder, weight_files
        from llm_qfl.language.stack import family_of

        if self.base_name.startswith("tiny"):
            return 0
        try:
            place = resolve_folder(self.base_name, models_folder())
        except LanguageError as error:
            raise LanguageError(f"{error}; where the base model is another folder, name it with --base") from error
        family_of(read_config(place))
        found = folder_digest(place)
        if found != self.read.base_digest:  # before gigabytes are read
            raise LanguageError(
                f"adapter in {self.folder}: made for {self.read.base_name} ({self.read.base_digest[:16]}), the model "
                f"given is {self.base_name} ({found[:16]}); name the right one with --base"
            )
        return sum(path.stat().st_size for path in weight_files(place))

    def load_base(self) -> BaseModel:
        """The base model, its digest checked.

        Raises:
            LanguageError: it is not to be had, damaged, or another one.
        """
        from llm_qfl.language.export import check_base
        from llm_qfl.language.models import load_base

        self.base_size()
        base = load_base(self.base_name, models_folder())
        check_base(base, self.read, self.folder)
        return base


def open_adapter(run: Path, base: str | None = None) -> TunedAdapter:
    """The adapter of a run folder.

    Args:
        run: the run folder; `adapter/` in it is read, and `config.json` for where the base model was.
        base: the base model's folder, hub id or name; default: what the run had.

    Raises:
        LanguageError: packages are missing, or the adapter is damaged or inconsistent.
        RunFolderError: the run has no adapter.
    """
    need_packages()
    from llm_qfl.language.export import BASE_FILE, read_adapter

    folder = run / ADAPTER
    if not (folder / BASE_FILE).is_file():
        raise RunFolderError(
            f"{run}: no {ADAPTER}/{BASE_FILE} in it; expected the folder of a finished run with a language model "
            "(language.model) whose sites' adapters were averaged (language.method is not local)"
        )
    read = read_adapter(folder)
    _check_config(folder, read)
    return TunedAdapter(folder, read, base or configured_base(run) or read.base_name)


def run_value(run: Path, key: str) -> Any:  # noqa: ANN401 - a JSON value
    """A key of the run config that a run folder's `config.json` holds, or None.

    Raises:
        RunFolderError: the file is damaged.
    """
    path = run / "config.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))["config"].get(key)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"{path}: cannot be read as a run's ({type(error).__name__}: {error}); copy it again"
        ) from error


def need_packages() -> None:
    """Refuse work with a language model where its packages are not installed.

    Raises:
        LanguageError: naming them.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise LanguageError(
            f"a language model needs packages that are not installed here: {', '.join(missing)}; "
            "install llm-qfl with its extra `language`"
        )


def models_folder() -> Path:
    """Where converted models lie."""
    return default_folder() / "models"


def configured_base(run: Path) -> str | None:
    """The base model as the run had it: the adapter folder keeps a local folder's last name only."""
    name = run_value(run, "language.model")
    if not isinstance(name, str) or name == "none":
        return None
    return str(project_folder() / name) if name.startswith(".") else name  # as the server read it


def _check_config(folder: Path, read: AdapterFolder) -> None:
    """PEFT reads `adapter_config.json`, we read `base.json`: both must say the same.

    Raises:
        LanguageError: they do not, or the matrices are of other layers.
    """
    from llm_qfl.language.files import read_json

    spec, layers = read.spec, sorted(set(read.layers))
    there = sorted({int(key.split("/")[0]) for key in read.arrays})
    if not layers or layers[0] < 0 or there != layers:
        raise LanguageError(
            f"adapter in {folder}: made for the layers {layers}, its matrices are of {there} (another plan?)"
        )
    config = read_json(folder / PEFT_CONFIG, "adapter folder")
    expected = {"peft_type": "LORA", "r": spec.rank, "lora_alpha": spec.alpha, "layers_to_transform": layers}
    expected |= {"target_modules": sorted({key.split("/")[1] for key in read.arrays})}
    found = {key: sorted(value) if isinstance(value := config.get(key), list) else value for key in expected}
    wrong = [f"{key} {found[key]!r} for {value!r}" for key, value in expected.items() if found[key] != value]
    wrong += [f"{key} {config[key]!r}" for key in _VARIANTS if config.get(key)]
    if wrong:
        raise LanguageError(
            f"adapter in {folder}: {PEFT_CONFIG} does not go with its other files: {', '.join(wrong)}; copy the folder "
            "again"
        )

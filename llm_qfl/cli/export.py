"""`llm-qfl export`: a run's adapter as a PEFT folder, or the full model with the adapter merged into it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from llm_qfl.cli.tuned import PEFT_CONFIG, TunedAdapter, open_adapter
from llm_qfl.federation.errors import LanguageError, RunFolderError

CARD = "README.md"


def export_run(run: Path, *, merge: bool, to: Path | None = None, base: str | None = None) -> Path:
    """Check the adapter of a run against its base model, then write it, or the merged model, to a new folder.

    Args:
        run: the run folder.
        merge: write the full model with the adapter's update in its weights, else the PEFT folder.
        to: the new folder; default: `<run>-adapter` or `<run>-merged` where the command runs.
        base: the base model's folder, hub id or name; default: what the run had.

    Returns:
        The folder.

    Raises:
        RunFolderError: the run has no adapter, or the target is there already.
        LanguageError: packages are missing, the base model is another one or not to be had, the adapter does not fit
            it, or there is no room on the disk.
    """
    target = to or Path(f"{run.resolve().name}-{'merged' if merge else 'adapter'}")
    if target.exists():
        raise RunFolderError(f"{target}: is there already and is not overwritten; name another folder with --to")
    tuned = open_adapter(run, base)
    if merge:
        _merge(tuned, target)
    else:
        _copy(tuned, target)
    return target


def _copy(tuned: TunedAdapter, target: Path) -> None:
    from llm_qfl.language.export import BASE_FILE, WEIGHTS_FILE, load_tuned
    from llm_qfl.language.files import need_room, write_folder

    files = [tuned.folder / name for name in (PEFT_CONFIG, WEIGHTS_FILE, BASE_FILE, CARD)]
    files = [path for path in files if path.is_file() or path.name != CARD]
    size = sum(path.stat().st_size for path in files)
    need_room(target, size, "the adapter")
    load_tuned(tuned.load_base(), tuned.folder)  # every name and shape, on the model itself

    def write(part: Path) -> None:
        for path in files:
            shutil.copyfile(path, part / path.name)

    write_folder(target, write, size=size, what="the adapter")


def _merge(tuned: TunedAdapter, target: Path) -> None:
    from llm_qfl.language.export import load_tuned, merge_adapter
    from llm_qfl.language.files import need_room

    need_room(target, tuned.base_size(), "the merged model")
    load_tuned(tuned.load_base(), tuned.folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as part:
            merged = Path(part) / "merged"
            merge_adapter(tuned.load_base(), tuned.folder, merged)
            (merged / CARD).write_text(_card(tuned), encoding="utf-8")
            merged.rename(target)
    except OSError as error:
        raise LanguageError(
            f"cannot write the merged model to {target}: {error.strerror or error}; name another folder with --to"
        ) from error


def _card(tuned: TunedAdapter) -> str:
    read = tuned.read
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            f"base_model: {read.base_name}",
            "tags: [federated-learning, merged-lora]",
            "---",
            f"# {read.base_name} with an adapter tuned in a federation",
            "",
            f"`{read.base_name}`, SHA-256 `{read.base_digest}`, with a LoRA (rank {read.spec.rank}, alpha",
            f"{read.spec.alpha:g}, {read.spec.modules}) on layers {list(read.layers)} added to its weights: the sum in",
            "float32, rounded once to the numbers that the model is stored in. It needs no PEFT:",
            "",
            "```python",
            "from transformers import AutoModelForCausalLM",
            "model = AutoModelForCausalLM.from_pretrained(folder)",
            "```",
            "",
            *_run_table(tuned.folder / CARD),
            "What sites were trained on may shape what the model says; nothing was made private by noise.",
            "The base model's licence holds for this one, too.",
            "",
        ]
    )


def _run_table(card: Path) -> list[str]:
    """The lines that the adapter's own card says of the run."""
    if not card.is_file():
        return []
    lines = [line for line in card.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return [*lines, ""] if lines else []

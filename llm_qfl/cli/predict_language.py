"""`llm-qfl predict --with language`: the full model with a run's adapter (AdapFu) names the class of each row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llm_qfl.cli.tuned import TunedAdapter, configured_base, models_folder, need_packages, open_adapter, run_value
from llm_qfl.federation.config_language import LanguageConfig
from llm_qfl.federation.data.encodings import encode
from llm_qfl.federation.data.table import Table
from llm_qfl.federation.data.text import TextPlan
from llm_qfl.federation.errors import RunFolderError
from llm_qfl.federation.setup import Setup
from llm_qfl.federation.types import Array

if TYPE_CHECKING:
    from llm_qfl.language.models import BaseModel
    from llm_qfl.language.route import Route


def text_plan(run: Path, setup: Setup) -> tuple[TextPlan, int]:
    """How the run's rows read as text, and the most tokens of a row.

    Raises:
        RunFolderError: the run had no language model, or one that writes texts.
    """
    if setup.text is None:
        raise RunFolderError(
            f"{run}: its model/features.json does not say how rows read as text; expected the folder of a finished run "
            "with a language model (language.model)"
        )
    if run_value(run, "language.task") == "generation":
        raise RunFolderError(f"{run}: its language model was tuned to write texts, not to name classes; use --with qnn")
    limit = run_value(run, "language.max-tokens")
    if not isinstance(limit, int) or isinstance(limit, bool):
        raise RunFolderError(
            f"{run}/config.json: expected a number at language.max-tokens, got {limit!r}; copy it again"
        )
    return setup.text, limit


def language_probabilities(
    run: Path, table: Table, setup: Setup, base: str | None, *, flat_prior: bool = False
) -> Array:
    """p(class | row), (N, C): likelihoods of the label words after each prompt, normalised over the classes.

    They are those of the adapter that the run folder holds (AdapFu, after the calibration where the run had one), plain
    or with the class prior divided out.

    Args:
        run: the run folder.
        table: the rows.
        setup: the run's.
        base: the base model's folder, hub id or name; default: what the run had.
        flat_prior: divide out the class prior that the run measured on public text.

    Raises:
        RunFolderError: the run has no adapter, one that names no classes, or measured no prior.
        LanguageError: packages are missing, the base model is another one or not to be had, the adapter does not fit
            it, or a row does not fit in the tokens.
    """
    plan, limit = text_plan(run, setup)
    tuned = open_adapter(run, base)
    from llm_qfl.language.scoring import Calibration, LabelScorer
    from llm_qfl.language.task import TaskView

    calibration = Calibration(class_bias(tuned, plan)) if flat_prior else Calibration.none(len(plan.words))
    numbers, _ = encode(table, setup.encoding, k=setup.k)
    texts = plan.row_texts(table, numbers, np.arange(len(table)))
    route, base_model = _full_model(run, tuned)
    config = LanguageConfig().model_copy(update={"max_tokens": limit})
    rows = TaskView.of(plan, config, base_model.tokenizer).prompts(texts)
    scorer = LabelScorer(rows, cache_of=lambda *_: None)  # each row is seen once: nothing to keep
    found: Array = np.exp(calibration.log_probabilities(scorer.log_likelihoods(route)))
    return found


def class_bias(tuned: TunedAdapter, plan: TextPlan) -> tuple[float, ...]:
    """The biases that the run measured, one a class.

    Raises:
        RunFolderError: it measured none, or of other classes.
    """
    bias = tuned.read.class_bias
    if set(bias) != set(plan.words):
        raise RunFolderError(
            f"{tuned.folder}: --flat-prior needs class biases of {', '.join(plan.words)} in base.json, got "
            f"{', '.join(bias) or 'none'}; they are measured where the server holds validation or test rows "
            "(data.test, data.validation); leave --flat-prior away"
        )
    return tuple(bias[word] for word in plan.words)


def hidden_states(run: Path, table: Table, base: str | None) -> Array:
    """Numbers of texts (N, width) for a QNN that reads language features.

    Args:
        run: the run folder; `features.safetensors` in its `model/` is read.
        table: the rows, with texts.
        base: the base model's folder, hub id or name; default: what the run had.

    Raises:
        RunFolderError: the folder is damaged.
        LanguageError: packages are missing, or the base model is another one or not to be had.
    """
    need_packages()
    from llm_qfl.language.feature_model import language_features

    name = base or configured_base(run)
    if name is None:
        raise RunFolderError(f"{run}: its config.json names no language model; name the base model with --base")
    if table.texts is None:
        raise RunFolderError(f"{run}: its model/features.json names no text column; copy it again")
    return language_features(run / "model", table.texts, name, models_folder())


def _full_model(run: Path, tuned: TunedAdapter) -> tuple[Route, BaseModel]:
    """The full model with the adapter, in the numbers in which the server scored it on such a machine."""
    from llm_qfl.language.device import DTYPES, cast_layers, cast_rest, choose_device
    from llm_qfl.language.export import load_tuned
    from llm_qfl.language.stack import Stack

    base = tuned.load_base()
    device = choose_device("auto")
    halved = device.type == "cuda" and run_value(run, "language.dtype") != "float32"
    dtype = DTYPES["bfloat16" if halved else "float32"]
    base.model.to(device)
    stack = Stack(base.model)
    cast_layers(stack, range(len(stack)), dtype)
    cast_rest(stack, dtype)
    return load_tuned(base, tuned.folder), base

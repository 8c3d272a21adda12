"""A site's soft labels: what its own tuned language model says of its own training rows.

They are computed once for an adapter version, kept on the site's disk beside its other private files, and used by the
QNN's training until the adapter is tuned again. Nothing here leaves the site.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np
from scipy.special import softmax

from llm_qfl.federation.errors import LanguageError
from llm_qfl.federation.types import Array

if TYPE_CHECKING:
    from llm_qfl.language.route import Route
    from llm_qfl.language.scoring import CacheOf
    from llm_qfl.language.tokens import ClassRows

NAME = "soft-labels"


@dataclass(frozen=True, eq=False)
class SoftLabels:
    """Probabilities of the classes.

    Attributes:
        probabilities: (N, C) float64, rows sum to one, in the order of the site's training rows.
        version: digest of the model with its adapters, and of the rows.
    """

    probabilities: Array
    version: str


def soft_labels(
    route: Route, rows: ClassRows, *, folder: Path | None = None, cache_of: CacheOf | None = None
) -> SoftLabels:
    """p(class | row) by the label words' likelihoods, uncalibrated: as L_i is scored.

    Args:
        route: the site's model with the adapter that it has tuned.
        rows: the training rows' prompts.
        folder: where they are kept; what lies there for this version is not computed again.
        cache_of: where boundary states of these rows lie; in memory by default.

    Raises:
        LanguageError: likelihoods that are not finite, or a folder that cannot be used.
    """
    from llm_qfl.language.scoring import LabelScorer

    version = _version(route, rows)
    kept = kept_soft_labels(folder)
    if kept is not None and kept.version == version:
        return kept
    found = softmax(LabelScorer(rows, cache_of=cache_of).log_likelihoods(route), axis=1)
    made = SoftLabels(np.asarray(found, np.float64), version)
    if folder is not None:
        _keep(folder, made)
    return made


def kept_soft_labels(folder: Path | None) -> SoftLabels | None:
    """The newest that lie in a folder, or None; needs neither torch nor the model.

    Raises:
        LanguageError: for a damaged file.
    """
    if folder is None or not (path := folder / f"{NAME}.npz").is_file():
        return None
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
            return SoftLabels(np.array(data["probabilities"], np.float64), str(data["version"]))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise LanguageError(f"{path} cannot be read (cut short?): {error}; delete it") from error


def _version(route: Route, rows: ClassRows) -> str:
    """Of everything that the answers depend on: the route with the layers after the boundary, and the prompts."""
    parts = [route.version(), *(f"{adapter.name} {adapter.digest()}" for adapter in route.active)]
    parts += [repr(rows.words.tokens), rows.with_word(0).digest() if len(rows) else "no rows"]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _keep(folder: Path, made: SoftLabels) -> None:
    from llm_qfl.language.files import need_room

    need_room(folder, made.probabilities.nbytes, NAME)
    partial = folder / f".{NAME}-{os.getpid()}.npz"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            np.savez(stream, probabilities=made.probabilities, version=np.array(made.version))
        partial.replace(folder / f"{NAME}.npz")
    except OSError as error:
        raise LanguageError(f"cannot keep soft labels in {folder}: {error.strerror}") from error

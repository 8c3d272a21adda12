"""Scores of the language model on rows that the server holds, along its four routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.setup import Setup
from llm_qfl.federation.types import Labels, Scores
from server_app.evaluation import pool
from server_app.rows import server_pool

if TYPE_CHECKING:
    from llm_qfl.language.scoring import Calibration
    from llm_qfl.language.server import ServerLanguage
    from llm_qfl.language.task import HeldOut, TaskView

PRIOR_PROMPTS = 64
"""Public prompts that a prior is measured on."""
Own = Mapping[str, Mapping[str, "np.ndarray[Any, Any]"]]
Texts = Mapping[str, tuple[tuple[str, ...], Labels, tuple[str, ...] | None]]


@dataclass(frozen=True, eq=False)
class RouteScores:
    """Of one route on some rows.

    Attributes:
        plain: as the model answers.
        calibrated: with the class prior that the same route shows on public prompts divided out; None where there are
            no classes, or the rows are the sites'.
        models: sites' own adapters that were pooled, each on all rows; 1 where there is one adapter.
    """

    plain: Scores
    calibrated: Scores | None
    models: int = 1


def server_texts(config: RunConfig, setup: Setup) -> Texts:
    """What the server's own validation and test rows read as, with their classes, by part."""
    found: dict[str, tuple[tuple[str, ...], Labels, tuple[str, ...] | None]] = {}
    for part in ("validation", "test"):
        held = server_pool(config, setup, part)
        if held is None or setup.text is None:
            continue
        rows, chosen, labels = held
        texts, answers = setup.text.row_texts(rows.table, rows.x, chosen), setup.text.row_answers(rows.table, chosen)
        found[part] = (texts, labels, answers)
    return found


class LanguageScores:
    """Scores rows of the server; what frozen layers make of a row is computed once.

    Args:
        server: the model.
        view: what rows are.
        public: public texts, for the prior of the label words.
        texts: the server's own rows by part.
    """

    def __init__(self, server: ServerLanguage, view: TaskView, public: Sequence[str], texts: Texts) -> None:
        self._server, self._view, self._public = server, view, public
        self._held: dict[str, HeldOut] = {part: view.held_out(*rows) for part, rows in texts.items()}
        self._prompts: HeldOut | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts of which the server holds rows."""
        return tuple(self._held)

    @property
    def validation(self) -> HeldOut | None:
        """The server's own validation rows."""
        return self.rows("validation")

    def rows(self, part: str) -> HeldOut | None:
        """The server's own rows of a part, or None."""
        return self._held.get(part)

    def on_validation(self, kind: str, own: Own) -> Scores | None:
        """Of the adapter as it is (or of each site's own) on the validation rows."""
        rows = self.validation
        return None if rows is None else self._scored(rows, kind, own, prior=False).plain

    def final(self, part: str, own: Own, *, tuned: bool = True) -> dict[str, RouteScores]:
        """Every route on the rows of a part; without `tuned` those without an adapter alone."""
        from llm_qfl.language.server import ROUTES

        rows = self._held[part]
        return {
            kind: self._scored(rows, kind, own, prior=True) for kind in ROUTES if tuned or not kind.startswith("adap")
        }

    def route(self, part: str, kind: str) -> RouteScores:
        """A route with the adapter as it is, on the rows of a part."""
        return self._now(self._held[part], kind, prior=True)

    def _scored(self, rows: HeldOut, kind: str, own: Own, *, prior: bool) -> RouteScores:
        if not own or not kind.startswith("adap"):
            return self._now(rows, kind, prior=prior)
        each = []
        for site in sorted(own):
            with self._server.using(dict(own[site])):
                each.append(self._now(rows, kind, prior=prior))
        plain = pool([one.plain for one in each]) or each[0].plain
        calibrated = [one.calibrated for one in each if one.calibrated is not None]
        return RouteScores(plain, pool(calibrated), len(each))

    def _now(self, rows: HeldOut, kind: str, *, prior: bool) -> RouteScores:
        route = self._server.route(kind)
        return RouteScores(*rows.both(route, self._prior(kind) if prior else None))

    def class_bias(self, kind: str) -> dict[str, float]:
        """Biases (nats, by label word) with which a route gives every class an equal share of public prompts; or none.

        Raises:
            LanguageError: the model's answers are not finite.
        """
        prior = self._prior(kind)
        if prior is None or self._view.words is None:
            return {}
        return dict(zip(self._view.plan.words, prior.bias, strict=True))

    def _prior(self, kind: str) -> Calibration | None:
        """What this route says whatever the text."""
        from llm_qfl.language.task import public_prior

        if self._view.words is None:
            return None
        if self._prompts is None:
            texts = self._public[:PRIOR_PROMPTS]
            self._prompts = self._view.held_out(texts, np.zeros(len(texts), np.intp))
        if self._prompts.scorer is None:
            return None
        return public_prior(self._prompts.scorer, self._server.route(kind))

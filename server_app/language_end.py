"""The end of a run's language model: scores along all routes, calibration, the folder of the adapter."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llm_qfl.federation.records import Evaluation
from server_app.evaluation import pool
from server_app.language_scores import RouteScores

if TYPE_CHECKING:
    from server_app.language import LanguageSession

CALIBRATED = "adap-fu-calibrated"
"""AdapFu after the calibration on public prompts; the adapter of that name is what the run folder holds."""


def finish(session: LanguageSession, evaluations: Sequence[Evaluation]) -> None:
    """Score the final adapter on the test rows: the server's along all routes, the sites' along their own.

    Nothing is scored where no site took part, and no route with an adapter where no answer ever counted. The
    calibration comes last: it changes the adapter, and AdapEmu is what the sites have tuned.
    """
    if session.scores is None or not session.trainers:
        return
    started = time.monotonic()
    if session.scores.parts:
        session.note(f"scoring the language model on the server's {' and '.join(session.scores.parts)} rows ...")
    tuned, own = session.exchange.tuned, session.exchange.own
    for part, found in session.found.items():
        if session.scores.rows(part) is not None:
            found.update(session.scores.final(part, own, tuned=tuned))
        else:
            found.update(_from_sites(evaluations, part, tuned=tuned))
    if tuned and _calibrate(session):
        for part, found in session.found.items():
            if session.scores.rows(part) is not None:
                found[CALIBRATED] = session.scores.route(part, "adap-fu")
    if tuned and session.scores.parts and session.server.config.federated:  # else the full model is not run here at all
        session.class_bias = session.scores.class_bias("adap-fu")
    session.timing.score += time.monotonic() - started - session.timing.calibrate


def save(session: LanguageSession, folder: Path, card: Mapping[str, str]) -> None:
    """Write the PEFT folder `adapter/` with the full model's layer numbers; nothing where no adapter was averaged.

    With the adapter lie the class biases that `finish` has measured of it.
    Where states are the rows' numbers, what makes them goes beside the QNN, into `model/`.
    """
    from llm_qfl.language.export import export_adapter
    from llm_qfl.language.feature_model import save_feature_model

    server = session.server
    if session.makes_features:
        save_feature_model(folder / "model", server, session.config.data.layer)
    if server.config.federated and session.exchange.tuned:
        export_adapter(
            folder / "adapter",
            server.base,
            server.adapter,
            server.adapter_arrays(),
            card,
            compressed=server.config.compresses,
            class_bias=session.class_bias,
        )


def _calibrate(session: LanguageSession) -> bool:
    """Fit the full model's answers on public prompts to the compressed one's, where the run asks for it."""
    config, view = session.server.config, session.view
    if not (config.calibrate_steps and config.federated and config.compresses) or view is None:
        return False
    started = time.monotonic()
    rows = session.public_rows(view, answered=True)
    session.server.calibrate(rows, session.config.server.rounds, view.first_tokens)
    session.timing.calibrate = time.monotonic() - started
    return True


def _from_sites(evaluations: Sequence[Evaluation], part: str, *, tuned: bool) -> dict[str, RouteScores]:
    found: dict[str, RouteScores] = {}
    for route in ("compressed-zero-shot", "adap-emu") if tuned else ("compressed-zero-shot",):
        total = pool([one.language[route][part] for one in evaluations if route in one.language])
        if total is not None:
            found[route] = RouteScores(total, None)
    return found

"""A site's adapter, so that nobody can tell whether the site took part: its update clipped, with noise of the site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client_app.privacy import Guard
from llm_qfl.federation.errors import LanguageError, PrivacyError
from llm_qfl.federation.robust import scale_down
from llm_qfl.federation.types import LanguageAnswer

PREFIX = "adapter/"


def hidden(
    answer: LanguageAnswer, sent: Mapping[str, NDArray[Any]], clip: float, guard: Guard | None
) -> LanguageAnswer:
    """The answer with received + clipped update + Gaussian noise of standard deviation noise x clip, as float32.

    Rounding to float32 comes after the noise, so it costs nothing.

    Args:
        answer: with values, not changes (`language.wire=fp32`).
        sent: arrays of the task.
        clip: longest update, Euclidean over all matrices.
        guard: the noise.

    Raises:
        PrivacyError: no guard.
        LanguageError: the answer has other matrices than the task.
    """
    if guard is None:
        raise PrivacyError("privacy.unit=client-local needs the site's secret, the adapter was given none")
    received = {key: value for key, value in sent.items() if key.startswith(PREFIX)}
    keys = sorted(answer.arrays)
    if keys != sorted(received):
        raise LanguageError(f"adapter: expected matrices {sorted(received)[:3]}..., got {keys[:3]}...")
    starts = [received[key].astype(np.float64).ravel() for key in keys]
    start = np.concatenate(starts)
    update = np.concatenate([answer.arrays[key].astype(np.float64).ravel() for key in keys]) - start
    kept, _ = scale_down(update, clip)
    values = start + kept + guard.noise.gaussian(len(start), guard.release.noise * clip)
    ends = np.cumsum([len(one) for one in starts])[:-1]
    parts = zip(keys, np.split(values, ends), strict=True)
    return replace(answer, arrays={k: part.reshape(received[k].shape).astype(np.float32) for k, part in parts})

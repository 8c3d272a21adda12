"""What a run releases, and the noise that keeps all of it within `privacy.epsilon`; both sides reckon alike."""

from __future__ import annotations

from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.privacy.accountant import Release, noise_for


def feature_release(config: RunConfig) -> Release:
    """The sums behind the feature map: one answer, with its share of epsilon."""
    privacy = config.privacy
    return Release(noise_for(privacy.epsilon * privacy.feature_share, privacy.delta, rate=1.0, times=1))


def adapter_rounds(config: RunConfig) -> int:
    """Rounds in which sites release an adapter, where the run hides sites."""
    if config.privacy.unit == "record" or not config.language.enabled:
        return 0
    return len(range(1, config.server.rounds + 1, config.language.every))


def training_release(config: RunConfig, rows: int, steps: int) -> Release:
    """A round's training, with what the sums have left of epsilon spread over all rounds.

    With `client-...` an adapter is a release of its own, as large as a QNN's: each update over its clip gets the same
    noise.

    Args:
        config: the run config.
        rows: of the site that train.
        steps: of this round; the noise is made for `training.steps` in each of `server.rounds`.
    """
    privacy, training, rounds = config.privacy, config.training, config.server.rounds
    before = (feature_release(config),)
    if privacy.unit != "record":
        times = rounds + adapter_rounds(config)
        return Release(noise_for(privacy.epsilon, privacy.delta, rate=1.0, times=times, before=before))
    rate = min(1.0, training.batch_size / rows) if training.batch_size else 1.0
    times = rounds * training.steps
    return Release(noise_for(privacy.epsilon, privacy.delta, rate=rate, times=times, before=before), rate, steps)

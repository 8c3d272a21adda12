"""A site's adapter under client-local privacy, against numpy and the normal distribution."""

import numpy as np
import pytest

from client_app.privacy import Guard
from client_app.private_language import hidden
from llm_qfl.federation.errors import LanguageError, PrivacyError
from llm_qfl.federation.privacy.accountant import Release
from llm_qfl.federation.privacy.noise import SecretNoise
from llm_qfl.federation.types import LanguageAnswer, Scores

SHAPES = {"adapter/3/q/A": (40, 60), "adapter/3/q/B": (60, 40)}
RNG = np.random.default_rng(5)
SENT = {key: RNG.normal(size=shape).astype(np.float32) for key, shape in SHAPES.items()}


def answer(length):
    """An answer whose update has this length."""
    update = {key: RNG.normal(size=shape) for key, shape in SHAPES.items()}
    norm = np.sqrt(sum((one**2).sum() for one in update.values()))
    arrays = {key: (SENT[key] + one * length / norm).astype(np.float32) for key, one in update.items()}
    return LanguageAnswer(arrays, "digest", 10, 2, Scores.none(2), Scores.none(2), None, None)


def guard(noise, key=b"k" * 32):
    return Guard(SecretNoise(key), Release(noise), 1.0)


def flat(arrays):
    return np.concatenate([np.asarray(arrays[key], np.float64).ravel() for key in sorted(SHAPES)])


@pytest.mark.parametrize(("length", "kept"), [(0.5, 0.5), (7.0, 2.0)])
def test_an_update_is_clipped_over_all_matrices_together(length, kept):
    one = answer(length)
    found = flat(hidden(one, SENT, 2.0, guard(1e-12)).arrays) - flat(SENT)
    assert np.linalg.norm(found) == pytest.approx(kept, rel=1e-5)
    direct = flat(one.arrays) - flat(SENT)
    assert found @ direct / np.linalg.norm(found) / np.linalg.norm(direct) == pytest.approx(1, abs=1e-6)


def test_the_noise_is_the_releases_times_the_clip():
    one = answer(0.5)
    plain, noisy = (flat(hidden(one, SENT, 2.0, guard(z)).arrays) for z in (1e-12, 3.0))
    noise = noisy - plain
    assert noise.std() == pytest.approx(6.0, rel=0.05)  # 4,800 draws: 1 % standard error
    assert abs(noise.mean()) < 4 * 6.0 / np.sqrt(len(noise))
    again = flat(hidden(one, SENT, 2.0, guard(3.0)).arrays)
    assert np.array_equal(again, noisy)  # the same question
    assert not np.array_equal(flat(hidden(one, SENT, 2.0, guard(3.0, b"o" * 32)).arrays), noisy)


def test_nothing_leaves_without_a_guard_or_with_other_matrices():
    with pytest.raises(PrivacyError, match="secret"):
        hidden(answer(0.5), SENT, 2.0, None)
    with pytest.raises(LanguageError, match="expected matrices"):
        hidden(answer(0.5), {"adapter/3/q/A": SENT["adapter/3/q/A"]}, 2.0, guard(1.0))

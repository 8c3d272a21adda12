"""Rounds in numbers, as a strategy would close them."""

import pytest

from agent.history import History, RoundRecord, SiteRecord


@pytest.fixture
def site():
    def make(name, loss=0.5, language=None, examples=100, seconds=1.0, evaluations=0):
        return SiteRecord(name, examples, loss, language, evaluations, evaluations * examples, seconds)

    return make


@pytest.fixture
def history_of():
    """Rounds of validation losses alone, or of whole records."""

    def make(*rounds, language=None):
        records = [
            one if isinstance(one, RoundRecord) else RoundRecord(k, (), (), server_loss=one, language_loss=language)
            for k, one in enumerate(rounds, start=1)
        ]
        return History(tuple(records))

    return make

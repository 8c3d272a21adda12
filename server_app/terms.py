"""What a strategy is told once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.records import Census
from llm_qfl.federation.setup import Setup
from server_app.language import LanguageSession


@dataclass(frozen=True)
class Terms:
    """What stays the same for a whole run.

    Attributes:
        config: the run config.
        roster: site -> node id, from the census.
        setup: classes, encoding, feature map.
        fingerprint: this side's, with circuit and setup.
        parameter_names: names of theta's entries.
        budget: objective evaluations of a site's optimizer in a round.
        run: the run's id; jobs of a site belong to it.
        censuses: site -> its answer to the census.
        language: the language model beside the QNN, if the run has one; it changes as the run goes on.
    """

    config: RunConfig
    roster: Mapping[str, int]
    setup: Setup
    fingerprint: Mapping[str, str]
    parameter_names: tuple[str, ...]
    budget: int
    run: str = "local"
    censuses: Mapping[str, Census] = field(default_factory=dict)
    language: LanguageSession | None = None

    @property
    def paying(self) -> frozenset[str]:
        """Sites whose tasks may cost QPU seconds."""
        return frozenset(site for site, census in self.censuses.items() if census.pays)

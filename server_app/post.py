"""Tasks as messages to the sites' nodes."""

from __future__ import annotations

from flwr.app import Message

from llm_qfl.federation.records import Task, content_bytes, encode_task, language_bytes
from llm_qfl.federation.types import GlobalState, RoundPlan
from server_app.roster import Roster
from server_app.terms import Terms


class Post:
    """Writes messages, counts their bytes, and knows which sites have the setup already.

    Args:
        terms: of the run.
        roster: which node is which site now.
    """

    def __init__(self, terms: Terms, roster: Roster) -> None:
        self._terms, self._roster = terms, roster
        self._setup_json, self._setup_digest = terms.setup.to_json(), terms.setup.digest()
        self.has_setup: set[str] = set()
        self.bytes_down = 0
        """Of the messages since it was last set to 0."""

    def message(self, kind: str, site: str, state: GlobalState, plan: RoundPlan | None, ttl: float) -> Message:
        """A task for one site, valid for `ttl` seconds."""
        terms = self._terms
        text = None if site in self.has_setup else self._setup_json
        model = (
            None
            if terms.language is None
            else terms.language.exchange.task(site, state.server_round, final=plan is None)
        )
        task = Task(site, state, plan, text, self._setup_digest, terms.fingerprint, terms.run, model)
        content = encode_task(task)
        if terms.language is not None and model is not None:
            terms.language.exchange.was_sent(language_bytes(content))
        self.bytes_down += content_bytes(content)
        group = str(state.server_round)
        return Message(content, dst_node_id=self._roster.nodes[site], message_type=kind, group_id=group, ttl=ttl)

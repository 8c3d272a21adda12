"""Record what every site's language model says in one real federation, for `policy_teachers.Recording`.

The federation is the one that the recording is for (the same rows, deal, seed and sites), run through the whole client
and server with the language model on, but for the scores on test rows; its QNN takes one step a round, since what it
does changes nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flwr.app import Context, Message, MessageType
from flwr.clientapp import ClientApp

from client_app.app import app as client_app
from client_app.language import Held
from llm_qfl.federation.config import RunConfig, Scalar
from llm_qfl.federation.errors import LanguageError
from llm_qfl.federation.records import decode_task
from llm_qfl.federation.settings import NodeSettings
from llm_qfl.federation.types import Array
from llm_qfl.language.soft_labels import kept_soft_labels
from server_app.session import run_rounds
from simulation.grid import InMemoryGrid
from simulation.policy_teachers import Recording
from simulation.policy_world import Case
from simulation.run import Memory


class Listening(ClientApp):
    """The real client app, whose sites' soft labels are read after every train task."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: dict[int, dict[str, Array]] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        """See ClientApp."""
        about = None
        if message.metadata.message_type == MessageType.TRAIN:
            task = decode_task(message.content)
            if task.plan is not None and task.language is not None and task.language.train:
                about = task.run, task.site, task.plan.server_round
        reply = client_app(message, context)
        if about is not None:
            run, site, number = about
            kept = kept_soft_labels(Held(NodeSettings.from_node_config(context.node_config), run, site).folder)
            if kept is not None:
                self.heard.setdefault(number, {})[site] = kept.probabilities
        return reply


def record(case: Case, language: Mapping[str, Scalar]) -> Recording:
    """Run the federation of a case with its language model.

    Args:
        case: the federation.
        language: keys of `language`: model, steps, rounds between two trainings.

    Raises:
        LanguageError: a site gave no L_i or no soft labels in a language round.
    """
    flat: dict[str, Scalar] = {
        **case.flat(),
        "training.steps": 1,
        "agent.mode": "llm-qfl-all",
        "agent.distill-weight": 0.3,  # or sites keep no soft labels
        "agent.cap-steps": 1,
        "agent.stop-plateau": 0.0,
        **language,
    }
    nodes: dict[int, dict[str, Scalar]] = {
        n + 1: {"partition-id": n, "num-partitions": case.sites} for n in range(case.sites)
    }
    app = Listening()
    finished = run_rounds(InMemoryGrid(app, nodes, flat), RunConfig.from_run_config(flat), Memory())
    losses: dict[int, dict[str, float]] = {}
    for closed in finished.rounds:
        for report in closed.reports:
            if report.language is not None and report.language.trained.loss is not None:
                losses.setdefault(closed.server_round, {})[report.site] = report.language.trained.loss
    missing = [
        f"{site} in round {number}"
        for number, sites in app.heard.items()
        for site in sites
        if site not in losses.get(number, {}) and _has_validation(finished.opened.roll.answers[site].rows)
    ]
    if missing or not losses:
        raise LanguageError(f"recording: no language loss of {', '.join(missing) or 'any site'}")
    about = {"model": str(flat["language.model"]), "source": case.source, "seed": str(case.seed)}
    return replace(Recording(losses, app.heard), about=about)


def _has_validation(rows: Mapping[str, int]) -> bool:
    return rows["validation"] > 0

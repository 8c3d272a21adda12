"""What a train or evaluate task needs, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flwr.app import Context, Message

from client_app.data import site_partition
from client_app.privacy import Guard, SiteSecrets, require_privacy
from client_app.round import SiteQNN
from client_app.store import take_setup
from llm_qfl.baselines import Baseline, make_baselines
from llm_qfl.federation import logs
from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.fingerprint import check_fingerprint, fingerprint
from llm_qfl.federation.records import Task, check_state, decode_task
from llm_qfl.federation.seeding import stream
from llm_qfl.federation.settings import NodeSettings
from llm_qfl.federation.setup import Setup
from llm_qfl.federation.types import Array, Partition, RoundPlan
from llm_qfl.quantum.model import get_model
from llm_qfl.quantum.scope import Place, Scope

if TYPE_CHECKING:
    from client_app.language import SiteLanguage


@dataclass(frozen=True, eq=False)
class Work:
    """A task with what it is about: rows, baselines, and the QNN where it trains and where it is scored."""

    config: RunConfig
    task: Task
    partition: Partition
    qnn: SiteQNN
    baselines: Mapping[str, Baseline]
    fingerprint: Mapping[str, str]
    setup: Setup
    language: SiteLanguage | None = None
    """The language model, where the task is about it, too."""
    settings: NodeSettings | None = None

    def guard(self, plan: RoundPlan, steps: int) -> Guard | None:
        """What hides this site's rows, or the site, in a round; None where the server does.

        Raises:
            PrivacyError: the budget is spent.
        """
        if self.settings is None or self.config.privacy.unit not in ("record", "client-local"):
            return None
        secrets, task = SiteSecrets(self.settings, self.task.site), self.task
        return secrets.round(self.config, task.run, task.state, plan, self.partition.train, steps)

    def adapter_guard(self) -> Guard | None:
        """What hides this site in its adapter; None where nothing is hidden, or the server does it.

        Raises:
            PrivacyError: the budget is spent.
        """
        part, plan = self.task.language, self.task.plan
        if self.settings is None or part is None or plan is None or self.config.privacy.unit != "client-local":
            return None
        secrets = SiteSecrets(self.settings, self.task.site)
        return secrets.adapter(self.config, self.task.run, part, plan.server_round, self.partition.train)

    def soft_labels(self) -> Array | None:
        """What the adapter that this site tuned or was sent last says of its training rows; None where it had none."""
        if self.settings is None:
            return None
        from client_app.language import Held
        from llm_qfl.language.soft_labels import kept_soft_labels

        kept = kept_soft_labels(Held(self.settings, self.task.run, self.task.site).folder)
        return None if kept is None else kept.probabilities


def prepare(message: Message, context: Context) -> Work:
    """Decode a task, find setup, model and rows.

    Raises:
        ConfigError, RecordError, SetupMissingError, FingerprintError, DataError: nothing was computed.
    """
    config = RunConfig.from_run_config(context.run_config)
    settings = NodeSettings.from_node_config(context.node_config)
    require_privacy(config, settings)
    task = decode_task(message.content)
    number = task.state.server_round if task.plan is None else task.plan.server_round
    logs.add(run=task.run, site=task.site, round=number)
    setup = take_setup(settings.folder, task.setup, task.setup_digest)
    classes = len(setup.class_names)
    quantum = config.quantum.at_site(settings.backend, settings.evaluation_backend)
    place = (
        None if quantum.backend == quantum.scoring.backend == "exact" else Place(settings.folder, settings.qpu_seconds)
    )
    model, scorer = get_model(quantum, classes, place), get_model(quantum.scoring, classes, place)
    mark = fingerprint(config, circuit=model.circuit.digest(), setup=task.setup_digest)
    check_fingerprint(task.fingerprint, mark)
    # What the baselines learn is not covered, so they do not learn.
    baselines: Mapping[str, Baseline] = {}
    if not config.privacy.on:
        baselines = make_baselines(config.quantum.qubits, classes, model.num_parameters, config.baselines)
    shapes = {name: baseline.initial(stream(0, settings.site, 0, "shapes")) for name, baseline in baselines.items()}
    check_state(task.state, model.parameter_names, shapes)
    shots = config.quantum.shots if task.plan is None else task.plan.shots or config.quantum.shots
    scope = Scope(task.run, task.site, task.state.server_round, "task", config.server.seed, shots)
    language = None
    if task.language is not None:
        from client_app.language import SiteLanguage

        language = SiteLanguage(config, settings, task.site, task.run, task.language)
    partition = site_partition(config, settings, task.site, setup, task.setup_digest, language)
    return Work(config, task, partition, SiteQNN(model, scorer, scope), baselines, mark, setup, language, settings)

"""What a train or evaluate task needs, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Context, Message

from client_app.data import site_partition
from client_app.store import take_setup
from llm_qfl.baselines import Baseline, make_baselines
from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.fingerprint import check_fingerprint, fingerprint
from llm_qfl.federation.records import Task, check_state, decode_task
from llm_qfl.federation.seeding import stream
from llm_qfl.federation.settings import NodeSettings
from llm_qfl.federation.types import Partition
from llm_qfl.quantum.model import QNNModel, get_model


@dataclass(frozen=True, eq=False)
class Work:
    """A task with what it is about: rows, model and baselines."""

    config: RunConfig
    task: Task
    partition: Partition
    model: QNNModel
    baselines: Mapping[str, Baseline]
    fingerprint: Mapping[str, str]


def prepare(message: Message, context: Context) -> Work:
    """Decode a task, find setup, model and rows.

    Raises:
        ConfigError, RecordError, SetupMissingError, FingerprintError, DataError: nothing was computed.
    """
    config = RunConfig.from_run_config(context.run_config)
    settings = NodeSettings.from_node_config(context.node_config)
    task = decode_task(message.content)
    setup = take_setup(settings.folder, task.setup, task.setup_digest)
    classes = len(setup.class_names)
    model = get_model(config.quantum, classes)
    mark = fingerprint(config, circuit=model.circuit.digest(), setup=task.setup_digest)
    check_fingerprint(task.fingerprint, mark)
    baselines = make_baselines(config.quantum.qubits, classes, model.num_parameters, config.baselines)
    shapes = {name: baseline.initial(stream(0, settings.site, 0, "shapes")) for name, baseline in baselines.items()}
    check_state(task.state, model.parameter_names, shapes)
    return Work(
        config, task, site_partition(config, settings, task.site, setup, task.setup_digest), model, baselines, mark
    )

"""The ClientApp: decode -> round -> encode, each handler guarded. Heavy libraries load inside the handlers."""

from __future__ import annotations

from contextlib import closing

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client_app.guard import guarded
from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.errors import RecordError
from llm_qfl.federation.fingerprint import check_fingerprint, fingerprint
from llm_qfl.federation.records import decode_query, encode_census, encode_evaluation, encode_report
from llm_qfl.federation.settings import NodeSettings

app = ClientApp()


@app.query()
@guarded
def query(message: Message, context: Context) -> Message:
    """Who this site is, what rows it has, and the sums for the feature map."""
    from client_app.data import census

    config = RunConfig.from_run_config(context.run_config)
    settings = NodeSettings.from_node_config(context.node_config)
    registered, theirs = decode_query(message.content)
    check_fingerprint(theirs, fingerprint(config))
    return Message(encode_census(census(config, settings, registered or settings.site)), reply_to=message)


@app.train()
@guarded
def train(message: Message, context: Context) -> Message:
    """One local round."""
    from client_app.round import local_round
    from client_app.work import prepare

    work = prepare(message, context)
    if work.task.plan is None:
        raise RecordError("plan: expected a ConfigRecord in a train task, got none")
    with closing(work.qnn) as qnn:
        report = local_round(work.task.state, work.task.plan, work.partition, qnn, work.baselines, work.config)
    return Message(encode_report(report, work.qnn.model.parameter_names, work.fingerprint), reply_to=message)


@app.evaluate()
@guarded
def evaluate(message: Message, context: Context) -> Message:
    """The final model's scores on this site's validation and test rows."""
    from client_app.round import local_evaluation
    from client_app.work import prepare

    work = prepare(message, context)
    with closing(work.qnn) as qnn:
        evaluation = local_evaluation(work.task.state, work.partition, qnn, work.baselines)
    return Message(encode_evaluation(evaluation), reply_to=message)

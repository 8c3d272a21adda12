"""The ClientApp: decode -> round -> encode, each handler guarded. Heavy libraries load inside the handlers."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client_app.guard import guarded
from llm_qfl.federation import logs
from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.errors import PrivacyError, RecordError
from llm_qfl.federation.fingerprint import check_fingerprint, fingerprint
from llm_qfl.federation.records import (
    decode_query,
    encode_census,
    encode_evaluation,
    encode_report,
    read_offer,
)
from llm_qfl.federation.settings import NodeSettings

app = ClientApp()


@app.query()
@guarded
def query(message: Message, context: Context) -> Message:
    """Who this site is, what rows it has, the sums for the feature map, and whether it has room for the model."""
    from client_app.data import census, site_rows
    from client_app.privacy import require_privacy

    config = RunConfig.from_run_config(context.run_config)
    settings = NodeSettings.from_node_config(context.node_config)
    require_privacy(config, settings)
    registered, theirs = decode_query(message.content)
    check_fingerprint(theirs, fingerprint(config))
    site, offer = registered or settings.site, read_offer(message.content)
    logs.add(site=site)
    if offer is None:
        return Message(encode_census(census(config, settings, site)), reply_to=message)
    from client_app.admission import why_not
    from client_app.language import SiteLanguage

    own = site_rows(config, settings, site)
    rows = {name: len(part) for name, part in own.parts.items()}
    problem = why_not(config, settings, offer, rows, own.pool.class_names)
    numbers = None if problem else SiteLanguage(config, settings, site, offer.run, offer)
    found = census(config, settings, site, language=problem, numbers=numbers)
    return Message(encode_census(found), reply_to=message)


@app.train()
@guarded
def train(message: Message, context: Context) -> Message:
    """One local round: the adapter first, then the QNN."""
    from client_app.round import local_round
    from client_app.work import prepare

    work = prepare(message, context)
    if work.task.plan is None:
        raise RecordError("plan: expected a ConfigRecord in a train task, got none")
    answer, teacher, problem = None, None, ""
    if work.language is not None and work.task.language is not None:
        if work.task.language.train:
            guard = work.adapter_guard()
            answer, problem = work.language.train(work.setup, work.task.plan.server_round, guard)
        elif work.task.language.teach:
            teacher, problem = work.language.teach(work.setup)
    state, plan = work.task.state, work.task.plan
    with closing(work.qnn) as qnn:
        if work.config.privacy.on:
            from client_app.private_round import planned_steps, private_round

            guard = work.guard(plan, planned_steps(qnn.model, plan))
            report = private_round(state, plan, work.partition, qnn, work.config, guard)
        else:
            soft = work.soft_labels() if plan.distill_weight else None
            report = local_round(state, plan, work.partition, qnn, work.baselines, work.config, soft)
    report = replace(report, language=answer, language_problem=problem, teacher=teacher)
    return Message(encode_report(report, work.qnn.model.parameter_names, work.fingerprint), reply_to=message)


@app.evaluate()
@guarded
def evaluate(message: Message, context: Context) -> Message:
    """The final model's scores on this site's validation and test rows."""
    from client_app.round import local_evaluation
    from client_app.work import prepare

    work = prepare(message, context)
    if work.config.privacy.on:
        raise PrivacyError("scores of the site's own rows are not covered by privacy.unit; none are given")
    with closing(work.qnn) as qnn:
        evaluation = local_evaluation(work.task.state, work.partition, qnn, work.baselines)
    if work.language is not None and work.task.language is not None and work.task.language.score:
        scores, problem = work.language.scores(work.setup)
        evaluation = replace(evaluation, language=scores, language_problem=problem)
    return Message(encode_evaluation(evaluation), reply_to=message)

"""The query exchange: who is there, and from the answers the setup of the run.

A site that does not answer, answers nonsense, differs in columns or shares its name is left out with a reason and
the run goes on with the others where that is possible.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Message, MessageType

from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.config_checks import readout_problems
from llm_qfl.federation.data.encodings import number_names
from llm_qfl.federation.data.features import fit_feature_map
from llm_qfl.federation.data.shrinkage import SHRINKAGE
from llm_qfl.federation.data.sums import FeatureSums, combine
from llm_qfl.federation.data.table import sorted_classes
from llm_qfl.federation.errors import ConfigError, FederationError, RecordError
from llm_qfl.federation.records import Census, ModelOffer, content_bytes, decode_census, encode_query
from llm_qfl.federation.setup import Setup
from server_app.grid import BoundedGrid
from server_app.language import LanguageSession
from server_app.privacy import CentralNoise

MOST_SUM = 1e100  # a product of two such numbers is still finite


@dataclass(frozen=True, eq=False)
class Roll:
    """Who takes part.

    Attributes:
        nodes: site -> node id.
        answers: site -> what it said.
        left_out: site or node -> why it does not take part.
        bytes_up: bytes of the answers.
        bytes_down: bytes of the questions.
    """

    nodes: Mapping[str, int]
    answers: Mapping[str, Census]
    left_out: Mapping[str, str]
    bytes_up: int
    bytes_down: int


def take_census(
    grid: BoundedGrid, config: RunConfig, fingerprint: Mapping[str, str], offer: ModelOffer | None = None
) -> Roll:
    """Ask every node once.

    Args:
        grid: the nodes.
        config: the run config.
        fingerprint: this side's.
        offer: the language model that sites may take part with.

    Raises:
        FederationError: too few nodes came, none gave a usable answer, or two answered with one name.
    """
    server = config.server
    node_ids = grid.wait_for(max(1, server.sites), server.wait)
    names = {node.node_id: node.name for node in grid.get_nodes()}
    questions = {node: encode_query(names.get(node, ""), fingerprint, offer) for node in sorted(node_ids)}
    messages = [
        Message(content, dst_node_id=node, message_type=MessageType.QUERY, group_id="0", ttl=server.deadline)
        for node, content in questions.items()
    ]
    replies = grid.send_and_receive(messages, timeout=server.deadline)
    left_out = {_who(node, names): _reason(error) for node, error in grid.failed.items()}
    answers: dict[int, Census] = {}
    for reply in replies:
        node = reply.metadata.src_node_id
        try:
            answers[node] = decode_census(reply.content)
        except RecordError as error:
            left_out[_who(node, names)] = str(error)
    _refuse_twins(answers)
    by_site = {census.site: (node, census) for node, census in answers.items()}
    left_out |= _odd_ones({site: census for site, (_, census) in by_site.items()}, config)
    kept = {site: pair for site, pair in sorted(by_site.items()) if site not in left_out}
    needed = max(1, math.ceil(server.quorum * server.sites))
    if len(kept) < needed:
        listing = "; ".join(f"{who}: {why}" for who, why in sorted(left_out.items())) or "no node answered"
        raise FederationError(f"{len(kept)} sites can take part, {needed} are needed. {listing}")
    return Roll(
        {site: node for site, (node, _) in kept.items()},
        {site: census for site, (_, census) in kept.items()},
        left_out,
        sum(content_bytes(reply.content) for reply in replies),
        sum(content_bytes(content) for content in questions.values()),
    )


def make_setup(roll: Roll, config: RunConfig, language: LanguageSession | None = None) -> Setup:
    """Classes, feature map and text form from the answers.

    Raises:
        ConfigError: circuit and readout cannot tell the classes apart, or the server's hold-out is asked for where
            the sites bring their own files.
        FederationError: one class in the whole federation, or no site sent sums.
    """
    censuses = list(roll.answers.values())
    classes = config.data.class_list or sorted_classes({name for census in censuses for name in census.class_names})
    problems = readout_problems(config.quantum, len(classes)) if len(classes) > 1 else []
    for key, value in (("data.test", config.data.test), ("data.validation", config.data.validation)):
        if value == "server" and any(census.own_data for census in censuses):
            problems.append(
                f"{key}: 'server' holds out rows of a pool, but the sites bring their own files; "
                "expected federated or file:<path>"
            )
    if problems:
        raise ConfigError(problems)
    there = {name for census in censuses for name, n in zip(census.class_names, census.class_counts, strict=True) if n}
    if len(there & set(classes)) < 2:
        raise FederationError(
            f"one class over the whole federation ({', '.join(sorted(there)) or 'none'}): nothing to tell apart; "
            "check the label column and data.classes"
        )
    sums = [
        (site, FeatureSums.from_arrays(census.sums, classes=census.class_names, reduction=config.data.reduction))
        for site, census in sorted(roll.answers.items())
        if census.sums is not None
    ]
    if not sums:
        raise FederationError(
            f"no site has data.min-rows={config.data.min_rows} training rows, so none sent sums for the feature map; "
            "lower data.min-rows (a sum of few rows is a row) or bring more rows"
            + (", or raise privacy.epsilon: the noise left no class with as many" if config.privacy.on else "")
        )
    first = censuses[0]
    if config.privacy.unit == "client-central":
        by_class = {site: census.class_counts for site, census in roll.answers.items()}
        total = CentralNoise(config).sums(sums, by_class)
    else:
        total = combine(sums, classes)
    # private sums hold no products of different numbers, which the choice would need
    shrinkage = config.data.shrinkage or (SHRINKAGE if config.privacy.on else 0.0)
    feature_map = fit_feature_map(
        total, reduction=config.data.reduction, qubits=config.quantum.qubits, shrinkage=shrinkage
    )
    text = None if language is None else language.text_plan(first, classes, total)
    return Setup(classes, first.encoding, config.data.k, first.columns, feature_map, text)


def _who(node: int, names: Mapping[int, str]) -> str:
    return names.get(node) or f"node {node}"


def _reason(error: object) -> str:
    code, reason = getattr(error, "code", "?"), getattr(error, "reason", None)
    return f"{reason or 'error'} (code {code}; the full text is in that site's own log)"


def _refuse_twins(answers: Mapping[int, Census]) -> None:
    count = Counter(census.site for census in answers.values())
    twins = sorted(name for name, n in count.items() if n > 1)
    if twins:
        raise FederationError(
            f"two sites of one name: {', '.join(twins)}; give each SuperNode a site name of its own "
            "(--node-config 'site=\"clinic-a\" ...')"
        )


def _claims_problem(census: Census, config: RunConfig) -> str:
    """What no honest site says of its rows; an empty string where there is nothing."""
    rows = census.rows["train"]
    if not config.privacy.on and int(census.class_counts.sum()) != rows:
        return f"{rows} training rows, by class {int(census.class_counts.sum())}"
    if census.sums is None:
        return ""
    try:
        sums = FeatureSums.from_arrays(census.sums, classes=census.class_names, reduction=config.data.reduction)
    except RecordError as error:
        return str(error)
    # With noise on every class their sum may be more; each is at most all of them.
    if sums.rows > rows * (len(sums.groups) if config.privacy.on else 1):
        return f"sums of {sums.rows} rows, it has {rows} to train with"
    names = number_names(census.encoding, census.columns, config.data.k)
    if names and sums.means.shape[1] != len(names):
        return f"sums of {sums.means.shape[1]} numbers a row, expected {len(names)}"
    if max(np.max(np.abs(array), initial=0.0) for array in (sums.means, sums.scatter)) > MOST_SUM:
        return f"sums hold numbers beyond {MOST_SUM:g}"
    return ""


def _odd_ones(censuses: Mapping[str, Census], config: RunConfig) -> dict[str, str]:
    """Sites that cannot take part beside the others."""
    odd: dict[str, str] = {}
    for site, census in censuses.items():
        if census.rows["train"] < 1:
            odd[site] = "no training rows"
        elif census.encoding == "language" and census.language:
            odd[site] = f"data.encoding=language needs the language model: {census.language}"
        elif problem := _claims_problem(census, config):
            odd[site] = problem
    shapes = Counter((c.encoding, c.columns) for s, c in sorted(censuses.items()) if s not in odd)
    if not shapes:
        return odd
    common = max(shapes.items(), key=lambda item: item[1])[0]
    for site, census in censuses.items():
        if site not in odd and (census.encoding, census.columns) != common:
            missing, extra = set(common[1]) - set(census.columns), set(census.columns) - set(common[1])
            odd[site] = (
                f"other columns than the rest: {census.encoding}, missing {sorted(missing)[:5]}, "
                f"unknown {sorted(extra)[:5]}"
                if missing or extra or census.encoding != common[0]
                else "the same columns in another order"
            )
    return odd

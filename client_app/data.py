"""A site's rows: loaded, encoded and split once a process, mapped to features once a setup.

In simulation every site gets its partition of one pool; a real site has its own file. Nothing here leaves the site
but what `census` returns.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Protocol

import numpy as np

from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.data.partition import Deal
from llm_qfl.federation.data.pool import Pool, fractions, read_pool
from llm_qfl.federation.data.split import PARTS, make_split, split_site
from llm_qfl.federation.data.sums import FeatureSums, local_sums
from llm_qfl.federation.errors import ConfigError, DataError
from llm_qfl.federation.privacy.sums import private_sums
from llm_qfl.federation.records import Census
from llm_qfl.federation.settings import NodeSettings
from llm_qfl.federation.setup import Setup
from llm_qfl.federation.types import Array, Labels, Partition, Rows


class TextNumbers(Protocol):
    """What makes numbers of texts (`data.encoding = language`)."""

    @property
    def first_digest(self) -> str:
        """Names what the numbers depend on, beside the run's configuration."""

    def features(self, texts: Sequence[str]) -> Array:
        """Numbers of texts (N, D)."""


@dataclass(frozen=True, eq=False)
class SiteRows:
    """One site's rows: indices into a pool by part."""

    pool: Pool
    parts: Mapping[str, Labels]
    own_data: bool


@lru_cache(maxsize=4096)
def site_rows(config: RunConfig, settings: NodeSettings, site: str) -> SiteRows:
    """Load a site's rows and find its part of the split table.

    Args:
        config: the run config.
        settings: the site's own settings.
        site: the name that counts: the registered one, else the site's own.

    Raises:
        ConfigError: the partition does not exist.
        DataError: the rows are not what the configuration says.
    """
    shares = fractions(config.data)
    if settings.data_path is not None:
        pool = read_pool(f"csv:{settings.data_path}", config.data, role="site")
        part = split_site(pool.y, config.server.seed, site, shares)
        rows = np.arange(len(pool.y))
    else:
        if not 0 <= settings.partition_id < settings.num_partitions:
            raise ConfigError(
                f"node config: partition-id {settings.partition_id} of num-partitions {settings.num_partitions}"
            )
        pool = read_pool(config.data.source, config.data)
        data = config.data
        deal = Deal(data.partitioner, settings.num_partitions, config.server.seed, data.alpha)
        table = make_split(pool.y, deal, shares, pool.groups)
        rows = np.flatnonzero(table.site == settings.partition_id)
        part = table.part[rows]
    parts = {name: rows[part == number] for number, name in enumerate(PARTS)}
    return SiteRows(pool, parts, settings.data_path is not None)


def census(
    config: RunConfig,
    settings: NodeSettings,
    site: str,
    *,
    language: str = "no language model was offered",
    numbers: TextNumbers | None = None,
) -> Census:
    """What the server may know before the first round: names, counts, and sums over at least `data.min-rows` rows.

    Args:
        config: the run config.
        settings: the site's own settings.
        site: the name that counts.
        language: why the site takes no part in the language model; empty where it does.
        numbers: makes numbers of texts; without it a site whose rows are texts sends no sums.
    """
    rows = site_rows(config, settings, site)
    pool, train = rows.pool, rows.parts["train"]
    y = pool.y[train]
    data, quantum = config.data, config.quantum.at_site(settings.backend, settings.evaluation_backend)
    sums, by_class = None, np.bincount(y, minlength=len(pool.class_names))
    if config.privacy.on:
        sums, by_class = _private_sums(config, settings, site, Rows(row_numbers(pool, train, numbers), y), pool)
    elif pool.encoding != "language" or numbers is not None:
        x = row_numbers(pool, train, numbers)
        sums = local_sums(x, y, classes=pool.class_names, reduction=data.reduction, min_rows=data.min_rows)
    return Census(
        site=site,
        own_data=rows.own_data,
        encoding=pool.encoding,
        columns=pool.columns,
        class_names=pool.class_names,
        rows={name: len(indices) for name, indices in rows.parts.items()},
        class_counts=by_class,
        sums=None if sums is None else sums.to_arrays(),
        backend=quantum.backend,
        scoring_backend=quantum.scoring.backend,
        language=language,
    )


def _private_sums(
    config: RunConfig, settings: NodeSettings, site: str, rows: Rows, pool: Pool
) -> tuple[FeatureSums | None, Labels]:
    """Sums within the public ranges and rows by class, both with the site's noise (`client-central`: the server's)."""
    from client_app.privacy import SiteSecrets

    data, privacy = config.data, config.privacy
    noise: Callable[[int], Array] = np.zeros
    if privacy.unit != "client-central":
        guard = SiteSecrets(settings, site).census(config, rows)
        noise = partial(guard.noise.gaussian, scale=guard.release.noise)
    return private_sums(
        rows.x,
        rows.y,
        classes=pool.class_names,
        reduction=data.reduction,
        min_rows=data.min_rows,
        bounds=privacy.bounds,
        noise=noise,
        whole=privacy.unit == "client-local",
    )


def row_numbers(pool: Pool, rows: Labels, numbers: TextNumbers | None) -> Array:
    """Numbers of these rows (M, D), before the feature map.

    Raises:
        DataError: texts, and nothing that makes numbers of them.
    """
    if pool.encoding != "language":
        return pool.x[rows]
    if numbers is None or pool.table.texts is None:
        raise DataError("data.encoding: language makes numbers of texts by the language model, this site has none")
    return numbers.features([pool.table.texts[row] for row in rows])


@lru_cache(maxsize=4096)
def _partition(
    config: RunConfig, settings: NodeSettings, site: str, setup: _Keyed, numbers: _Numbers | None
) -> Partition:
    rows = site_rows(config, settings, site)
    order = _label_order(rows.pool.class_names, setup.setup.class_names)

    def part(name: str) -> Rows:
        indices = rows.parts[name]
        raw = row_numbers(rows.pool, indices, None if numbers is None else numbers.source())
        x = np.ascontiguousarray(setup.setup.feature_map.transform(raw))
        return Rows(x, order[rows.pool.y[indices]])

    return Partition(site, *(part(name) for name in PARTS))


@dataclass(frozen=True)
class _Keyed:
    """A setup that the memory knows by its digest."""

    digest: str
    setup: Setup

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Keyed) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@dataclass(frozen=True)
class _Numbers:
    """What makes numbers of texts, known by what it makes them with; the memory keeps no model alive."""

    digest: str
    source: weakref.ref[TextNumbers]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Numbers) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def site_partition(
    config: RunConfig,
    settings: NodeSettings,
    site: str,
    setup: Setup,
    digest: str,
    numbers: TextNumbers | None = None,
) -> Partition:
    """A site's rows as features, by the run's setup; kept for the next round.

    Raises:
        DataError: columns or labels that the setup does not know.
    """
    pool = site_rows(config, settings, site).pool
    if (pool.encoding, pool.columns) != (setup.encoding, setup.columns):
        raise DataError(
            f"columns: the run was set up for {setup.encoding} of {list(setup.columns)[:5]} ..., "
            f"this site has {pool.encoding} of {list(pool.columns)[:5]} ..."
        )
    keyed = (
        None if numbers is None or pool.encoding != "language" else _Numbers(numbers.first_digest, weakref.ref(numbers))
    )
    return _partition(config, settings, site, _Keyed(digest, setup), keyed)


def site_texts(
    config: RunConfig, settings: NodeSettings, site: str, setup: Setup, part: str
) -> tuple[tuple[str, ...], Labels, tuple[str, ...] | None]:
    """What a site's rows of one part read as, their classes in the run's order, and answers to instructions.

    Raises:
        DataError: the setup has no text form, or one for rows of another kind; labels that it does not know.
    """
    if setup.text is None:
        raise DataError("text: the setup says nothing of how rows read")
    rows = site_rows(config, settings, site)
    chosen = rows.parts[part]
    table = rows.pool.table
    texts, answers = setup.text.row_texts(table, rows.pool.x, chosen), setup.text.row_answers(table, chosen)
    return texts, _label_order(rows.pool.class_names, setup.class_names)[rows.pool.y[chosen]], answers


def _label_order(site: tuple[str, ...], federation: tuple[str, ...]) -> Labels:
    """Code of each of the site's classes in the federation's order."""
    unknown = [name for name in site if name not in federation]
    if unknown:
        raise DataError(f"labels {unknown} are not among the run's classes {list(federation)}; see data.classes")
    return np.array([federation.index(name) for name in site], np.intp)

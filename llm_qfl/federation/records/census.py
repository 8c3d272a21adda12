"""The query exchange: who is there, with what rows, and the sums for the feature map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from llm_qfl.federation.errors import RecordError
from llm_qfl.federation.records.fields import (
    PARTS,
    SCHEMA,
    array_record,
    read_array,
    read_backend,
    read_counts,
    read_int,
    read_meta,
    read_metrics,
    read_string,
    read_strings,
    read_strings_list,
)
from llm_qfl.federation.records.language import ModelOffer, put_offer
from llm_qfl.federation.types import Array, Labels


@dataclass(frozen=True, eq=False)
class Census:
    """A site's answer to the query: who it is, what rows it has, and the sums for the feature map (or none)."""

    site: str
    own_data: bool
    """The site brought its own file; else it holds a partition of a pool."""
    encoding: str
    columns: tuple[str, ...]
    class_names: tuple[str, ...]
    rows: Mapping[str, int]
    """Rows by part: train, validation, test."""
    class_counts: Labels
    """Training rows by class, in the order of `class_names`."""
    sums: Mapping[str, Array] | None
    backend: str = "exact"
    """Where this site's circuits run when it trains."""
    scoring_backend: str = "exact"
    """Where they run when it scores validation and test rows."""
    language: str = "no language model was offered"
    """Why this site takes no part in the language model; empty where it does."""

    @property
    def pays(self) -> bool:
        """May a task cost this site QPU seconds on IBM Quantum?"""
        return self.backend.startswith("ibm:") or self.scoring_backend.startswith("ibm:")


def encode_query(site: str, fingerprint: Mapping[str, str], offer: ModelOffer | None = None) -> RecordDict:
    """Content of the query task.

    Args:
        site: the name that the node is registered under, or an empty string: the site's own name counts.
        fingerprint: the server's.
        offer: the language model that the site may take part with.
    """
    meta = ConfigRecord({"schema": SCHEMA, "site": site})
    content = RecordDict({"meta": meta, "fingerprint": ConfigRecord(dict(fingerprint))})
    if offer is not None:
        put_offer(content, offer)
    return content


def decode_query(content: RecordDict) -> tuple[str, dict[str, str]]:
    """The registered name (or an empty string) and the server's fingerprint.

    Raises:
        RecordError: another schema, or no fingerprint.
    """
    return read_string(read_meta(content), "site"), read_strings(content, "fingerprint")


def encode_census(census: Census) -> RecordDict:
    """Content of the reply to the query."""
    meta = ConfigRecord(
        {
            "schema": SCHEMA,
            "site": census.site,
            "own-data": census.own_data,
            "encoding": census.encoding,
            "columns": list(census.columns),
            "classes": list(census.class_names),
            "backend": census.backend,
            "scoring-backend": census.scoring_backend,
            "language": census.language,
        }
    )
    counts = MetricRecord({part: int(census.rows[part]) for part in PARTS})
    counts["by-class"] = [int(n) for n in census.class_counts]
    content = RecordDict({"meta": meta, "counts": counts})
    if census.sums is not None:
        content["sums"] = array_record(census.sums)
    return content


def decode_census(content: RecordDict) -> Census:
    """Read a site's answer to the query.

    Raises:
        RecordError: anything missing, of another type, negative or not finite.
    """
    meta = read_meta(content)
    counts = read_metrics(content, "counts")
    names = read_strings_list(meta, "classes")
    by_class = read_counts(counts, "by-class", length=len(names))
    sums = None
    if "sums" in content:
        record = content["sums"]
        if not isinstance(record, ArrayRecord):
            raise RecordError(f"sums: expected an ArrayRecord, got {type(record).__name__}")
        sums = {key: read_array(key, value) for key, value in record.items()}
    rows = {part: read_int(counts, part) for part in PARTS}
    own_data = meta.get("own-data")
    if not isinstance(own_data, bool):
        raise RecordError(f"own-data: expected true or false, got {own_data!r}")
    columns, encoding = read_strings_list(meta, "columns"), read_string(meta, "encoding")
    return Census(
        site=read_string(meta, "site"),
        own_data=own_data,
        encoding=encoding,
        columns=columns,
        class_names=names,
        rows=rows,
        class_counts=by_class,
        sums=sums,
        backend=read_backend(meta, "backend"),
        scoring_backend=read_backend(meta, "scoring-backend"),
        language=read_string(meta, "language")[:500],
    )

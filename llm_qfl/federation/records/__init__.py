"""The only place where a Flower message's content is written or read.

One schema, five contents: query task, census (its reply), train task, train report, evaluate task with its scores;
the language model travels with them in records of its own.
Arrays are named, typed and checked strictly: every name expected, nothing else, shape, float64, finite; never pickle.
Numbers travel in one MetricRecord, strings in ConfigRecords. Each encode makes fresh records: Flower's own
strategies share and mutate one ConfigRecord across rounds.
"""

from llm_qfl.federation.records.census import Census, decode_census, decode_query, encode_census, encode_query
from llm_qfl.federation.records.fields import PARTS, SCHEMA, content_bytes, state_arrays
from llm_qfl.federation.records.language import LanguageTask, ModelOffer, language_bytes, read_offer
from llm_qfl.federation.records.replies import (
    Evaluation,
    decode_evaluation,
    decode_report,
    encode_evaluation,
    encode_report,
)
from llm_qfl.federation.records.tasks import Task, arrays_state, check_state, decode_task, encode_task, state_record

__all__ = [
    "PARTS",
    "SCHEMA",
    "Census",
    "Evaluation",
    "LanguageTask",
    "ModelOffer",
    "Task",
    "arrays_state",
    "check_state",
    "content_bytes",
    "decode_census",
    "decode_evaluation",
    "decode_query",
    "decode_report",
    "decode_task",
    "encode_census",
    "encode_evaluation",
    "encode_query",
    "encode_report",
    "encode_task",
    "language_bytes",
    "read_offer",
    "state_arrays",
    "state_record",
]

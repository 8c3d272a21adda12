"""The setup: what the server fixes from the query's answers and every side then shares.

Classes, the numbers a row becomes, and the feature map. It travels as JSON in a site's first train task; later tasks
carry its digest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from llm_qfl.federation.data.features import FeatureMap
from llm_qfl.federation.data.text import TextPlan
from llm_qfl.federation.errors import RecordError
from llm_qfl.federation.fingerprint import digest_of


@dataclass(frozen=True, eq=False)
class Setup:
    """Classes, encoding, feature map and text form of a run.

    Attributes:
        class_names: labels in the order of the outputs.
        encoding: what numbers a row becomes (`columns`, `kmer`, `onehot`).
        k: length of the k-mers.
        columns: names of the raw columns that a row must have.
        feature_map: numbers of a row -> one feature per qubit.
        text: how a row reads as text, where the run has a language model.
    """

    class_names: tuple[str, ...]
    encoding: str
    k: int
    columns: tuple[str, ...]
    feature_map: FeatureMap
    text: TextPlan | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        text = {} if self.text is None else {"text": self.text.to_dict()}
        return {
            "class_names": list(self.class_names),
            "encoding": self.encoding,
            "k": self.k,
            "columns": list(self.columns),
            "feature_map": self.feature_map.to_dict(),
            **text,
        }

    def to_json(self) -> str:
        """As JSON text; floats round-trip exactly."""
        return json.dumps(self.to_dict(), sort_keys=True)

    def digest(self) -> str:
        """Digest of the JSON text."""
        return digest_of(self.to_json())

    @classmethod
    def from_json(cls, text: str) -> Setup:
        """Read what `to_json` wrote.

        Raises:
            RecordError: not such a text.
        """
        try:
            value = json.loads(text)
            return cls(
                tuple(value["class_names"]),
                str(value["encoding"]),
                int(value["k"]),
                tuple(value["columns"]),
                FeatureMap.from_dict(value["feature_map"]),
                TextPlan.from_dict(value["text"]) if "text" in value else None,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise RecordError(f"setup: not the JSON of a setup ({type(error).__name__}: {error})") from error

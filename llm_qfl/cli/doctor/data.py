"""The site's rows, read by the client's own code. Counts are told; no row, no value and no label is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from llm_qfl.cli.doctor.check import Check, failure
from llm_qfl.cli.doctor.node import Node
from llm_qfl.federation.errors import DataError

_CONTENT = re.compile(r"(got|the labels there are) [^;]*")


@dataclass(frozen=True)
class Rows:
    """Counts that the other checks need; where the rows cannot be read, the least that could be.

    Attributes:
        classes: of the labels.
        train: rows.
        validation: rows.
    """

    classes: int = 2
    train: int = 1
    validation: int = 1


def check_data(node: Node) -> tuple[Check, Rows]:
    """A line about the rows, and their counts."""
    from client_app.data import census

    config, settings = node.config, node.settings
    source = config.data.source if settings.data_path is None else settings.data_path
    try:
        found = census(config, settings, settings.site)
    except DataError as error:
        # Some messages quote the cell or label that is wrong: it stays in the file.
        shown = DataError(_CONTENT.sub(r"\1 something that is not shown here", str(error)))
        return failure("data", shown), Rows(len(config.data.class_list or ()) or Rows.classes)
    rows, classes, least = found.rows, len(found.class_names), int(found.class_counts.min())
    parts = ", ".join(f"{count} {name}" for name, count in rows.items() if count)
    said = f"{source}: {sum(rows.values())} rows ({parts}), {found.encoding}; {classes} classes, {least} training rows "
    by_model = found.encoding == "language"  # then sums can be made only in a run, with its model
    check = _judged(said + "in the smallest", by_model or found.sums is not None, rows, config.data.min_rows)
    return check, Rows(classes, rows["train"], rows["validation"])


def _judged(said: str, sums: bool, rows: Mapping[str, int], min_rows: int) -> Check:
    if not rows["train"]:
        return Check("data", "fail", said, "a site without training rows cannot take part: bring more rows")
    if not sums:
        advice = f"bring more rows: sums of fewer than data.min-rows={min_rows} do not leave the site"
        return Check("data", "warn", said, advice)
    if not rows["validation"]:
        return Check("data", "warn", said, "no validation row, so this site scores nothing: bring more rows")
    return Check("data", "ok", said)

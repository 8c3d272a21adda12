"""The site's rows, read by the client's own code. Counts are told; no row, no value and no label is."""

from __future__ import annotations

import re

from llm_qfl.cli.doctor.check import Check, failure
from llm_qfl.cli.doctor.node import Node
from llm_qfl.federation.errors import DataError

_CONTENT = re.compile(r"(got|the labels there are) [^;]*")


def check_data(node: Node) -> tuple[Check, int | None, int]:
    """A line about the rows, the number of classes where it is known, and the number of training rows."""
    from client_app.data import census

    config, settings = node.config, node.settings
    source = config.data.source if settings.data_path is None else settings.data_path
    try:
        found = census(config, settings, settings.site)
    except DataError as error:
        # Some messages quote the cell or label that is wrong: it stays in the file.
        return failure("data", DataError(_CONTENT.sub(r"\1 something that is not shown here", str(error)))), None, 0
    rows = {name: count for name, count in found.rows.items() if count}
    parts = ", ".join(f"{count} {name}" for name, count in rows.items())
    train = rows.get("train", 0)
    classes, least = len(found.class_names), int(found.class_counts.min())
    said = f"{source}: {sum(rows.values())} rows ({parts}), {found.encoding}, {classes} classes, {least} training rows "
    said += "in the smallest"
    if not train:
        return Check("data", "fail", said, "a site without training rows cannot take part"), classes, train
    if found.sums is None:
        advice = f"bring more rows: sums of fewer than data.min-rows={config.data.min_rows} do not leave the site"
        return Check("data", "warn", said, advice), classes, train
    if not rows.get("validation"):
        return Check("data", "warn", said, "no validation row: this site's scores will not be known"), classes, train
    return Check("data", "ok", said), classes, train

"""All checks in order, as a table for people or JSON for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm_qfl.cli.deploy_folders import RENEW_WITHIN
from llm_qfl.cli.doctor import container, ibm, machine, packages
from llm_qfl.cli.doctor.check import Check, guarded
from llm_qfl.cli.doctor.data import Rows, check_data
from llm_qfl.cli.doctor.node import Node, read_node

_WORD = {"ok": "ok", "warn": "WARN", "fail": "FAIL", "skipped": "-"}
_STYLE = {"ok": "green", "warn": "yellow", "fail": "bold red", "skipped": "dim"}


def run_checks(
    node_config: str,
    overrides: Sequence[str],
    *,
    superlink: str | None = None,
    offline: bool = False,
    keys: Path | None = None,
) -> Iterator[Check]:
    """Every check, one after the other, as it ends.

    Args:
        node_config: as `flower-supernode --node-config` takes it.
        overrides: as `flwr run -c` takes them.
        superlink: `host:port`, or None to leave it out.
        offline: ask nobody outside this machine.
        keys: folder of certificates and secrets; None looks where they are by default.
    """
    node, lines = read_node(node_config, overrides)
    yield from guarded("Python", machine.check_python)
    yield from guarded("user", container.check_user)
    yield from guarded("packages", lambda: packages.check_packages(node))
    yield from lines
    if node is None:
        yield Check("the rest", "skipped", "data, circuit, backend and jobs need a configuration that can be read")
    else:
        yield from guarded("disk", lambda: machine.check_disk(node.settings.folder))
        yield from guarded("node folder", lambda: container.check_node_folder(node))
    yield from guarded("temporary files", container.check_temporary)
    yield from guarded("Flower's home", container.check_flower_home)
    yield from guarded("memory", lambda: machine.check_memory(node))
    yield from guarded("cores", machine.check_cores)
    if node is not None:
        yield from _check_work(node, offline=offline)
    yield from guarded("certificates", lambda: container.check_keys(keys, RENEW_WITHIN))
    if superlink is not None and offline:
        yield Check("SuperLink", "skipped", "not asked (--offline)")
    elif superlink is not None:
        yield from guarded("SuperLink", lambda: machine.check_superlink(superlink))


def _check_work(node: Node, *, offline: bool) -> Iterator[Check]:
    """Rows, circuit, backends and jobs; where the rows cannot be read, the others are tried with few."""
    from llm_qfl.cli.doctor import quantum

    rows = Rows()

    def data() -> Check:
        nonlocal rows
        check, rows = check_data(node)
        return check

    yield from guarded("data volume", lambda: container.check_volume(node))
    yield from guarded("data", data)
    yield from guarded("circuit", lambda: quantum.check_circuit(node, rows.classes))
    yield from guarded("backend", lambda: quantum.check_backends(node, rows.classes))
    yield from guarded("language model", lambda: container.check_models(node))
    yield from guarded("run folders", lambda: container.check_runs(node))
    yield from guarded("IBM Quantum", lambda: ibm.check_ibm(node, rows, offline=offline))
    yield from guarded("ledger", lambda: ibm.check_ledger(node))
    yield from guarded("QPU budget", lambda: ibm.check_budget(node))


def as_json(checks: Sequence[Check]) -> str:
    """`status` is the worst of the checks."""
    worst = next((status for status in ("fail", "warn") if any(c.status == status for c in checks)), "ok")
    return json.dumps({"status": worst, "checks": [vars(check) for check in checks]}, indent=1)


def show(checks: Sequence[Check], console: Console) -> None:
    """A table with what to do below each line that asks for it, and a last line that sums up."""
    table = Table(box=None, padding=(0, 1), show_header=False)
    table.add_column(no_wrap=True, width=4)
    table.add_column(max_width=24, overflow="fold")
    table.add_column(ratio=1, overflow="fold")
    for check in checks:
        said = Text(check.found)
        if check.advice and check.status in ("warn", "fail"):
            said.append(f"\nto do: {check.advice}", style="bold")
        table.add_row(Text(_WORD[check.status], style=_STYLE[check.status]), Text(check.name), said)
    console.print(table)
    count = Counter(check.status for check in checks)
    console.print(Text(f"\n{count['fail']} failed, {count['warn']} to look at, {count['ok']} ok", style="bold"))

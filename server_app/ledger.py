"""The run folder: one line a round, atomic files, nothing half written.

Layout: `config.json`, `rounds.jsonl`, `summary.json`, `report.html`, `model/`, `checkpoint/`.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llm_qfl.federation.errors import RunFolderError
from llm_qfl.federation.types import ClientReport, RoundSummary, Scores
from server_app.checkpoint import CheckpointWriter, write_whole, writing
from server_app.language_json import round_json as language_round_json

Json = dict[str, Any]


class Ledger:
    """Writes one run's folder.

    Args:
        folder: an existing, empty folder of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = CheckpointWriter(folder)
        """Holds the folder for this process until `close`."""

    @classmethod
    def create(cls, output: Path) -> Ledger:
        """A new run folder below `output`, named by time and a random part.

        Raises:
            RunFolderError: the folder cannot be made.
        """
        run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        folder = output / run_id
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise RunFolderError(
                f"server.output: cannot make {folder} ({error.strerror}); name another folder"
            ) from error
        return cls(folder)

    @classmethod
    def reopen(cls, folder: Path) -> Ledger:
        """The folder of a run that goes on.

        Raises:
            RunFolderError: another process works on it, or there is no checkpoint.
        """
        ledger = cls(folder)
        ledger.checkpoint.take_over()
        return ledger

    def close(self) -> None:
        """Let go of the folder."""
        self.checkpoint.close()

    @property
    def run_id(self) -> str:
        """The folder's name."""
        return self.folder.name

    def write_json(self, name: str, value: Json) -> None:
        """Write a JSON file whole or not at all."""
        with writing(self.folder):
            write_whole(self.folder / name, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())

    def append_round(self, line: Json) -> None:
        """Append one line to `rounds.jsonl`."""
        self.append_line("rounds.jsonl", line)

    def append_line(self, name: str, line: Json) -> None:
        """Append one line to a file, whole or not at all, and see it to the disk."""
        rest = (json.dumps(line, allow_nan=False) + "\n").encode()
        with writing(self.folder), open(self.folder / name, "ab", buffering=0) as file:
            before = os.fstat(file.fileno()).st_size
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):  # a run that goes on cuts it off, too
                    os.ftruncate(file.fileno(), before)
                raise


def scores_json(scores: Scores | None) -> Json | None:
    """Loss (nats), accuracy and balanced accuracy; None without rows."""
    if scores is None or scores.count == 0:
        return None
    return {
        "loss": scores.loss,
        "accuracy": scores.accuracy,
        "balanced_accuracy": scores.balanced_accuracy,
        "rows": scores.count,
    }


def round_line(summary: RoundSummary) -> Json:
    """One round as a line of the ledger."""
    plan = summary.plan
    return {
        "round": summary.server_round,
        "plan": {
            "sites": list(plan.sites),
            "budget": plan.budget,
            "learning_rate": plan.learning_rate,
            "shots": plan.shots,
            "budgets": {site: plan.budget_of(site) for site in plan.sites},
            "distill_weight": plan.distill_weight,
        },
        "aggregated": summary.aggregated,
        "validation": scores_json(summary.validation),
        "baselines": {name: scores_json(scores) for name, scores in summary.baseline_validation.items()},
        "clients": [_client_json(report) for report in summary.reports],
        "rejected": dict(summary.rejected),
        "busy": list(summary.busy),
        "joined": list(summary.joined),
        "late": [
            {"of_round": report.server_round, "lag": summary.server_round - report.server_round, **_client_json(report)}
            for report in summary.late
        ],
        "entered": [{"site": site, "of_round": number, "factor": factor} for site, number, factor in summary.entered],
        "evaluations": sum(report.spent.evaluations for report in summary.work),
        "circuits": sum(report.spent.circuits for report in summary.work),
        "shots": sum(report.spent.shots for report in summary.work),
        "bytes_up": summary.bytes_up,
        "bytes_down": summary.bytes_down,
        "seconds": summary.seconds,
        "theta_digest": summary.theta_digest,
        "updates": {site: asdict(stats) for site, stats in summary.updates.items()},
        "language": language_round_json(summary.language),
    }


def _client_json(report: ClientReport) -> Json:
    return {
        "site": report.site,
        "backend": report.backend,
        "num_examples": report.num_examples,
        "received_loss": report.received.loss,
        "received_accuracy": report.received.accuracy,
        "trained_loss": report.trained.loss,
        "trained_accuracy": report.trained.accuracy,
        "train_loss_first": report.train_loss_first,
        "train_loss_best": report.train_loss_best,
        "epsilon": report.epsilon,
        **{name: getattr(report.spent, name) for name in report.spent.__dataclass_fields__},
        "seconds": report.seconds,
        "bytes_up": report.bytes_up,
    }


def read_lines(folder: Path) -> list[Mapping[str, Any]]:
    """The rounds of a run folder.

    Raises:
        RunFolderError: missing or damaged.
    """
    path = folder / "rounds.jsonl"
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: cannot be read ({error}); is {folder} a run folder?") from error

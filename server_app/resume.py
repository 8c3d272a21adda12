"""A run that was interrupted goes on: what its folder holds, whether it may, and who is there.

`server.resume=<run folder>` with the configuration that the run was started with. The census is taken again, for nodes
have new ids; setup, sites and state are the checkpoint's. So the rounds that follow are those of a run that was never
interrupted, bit for bit where circuits are simulated exactly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent.memory import Memory
from llm_qfl.federation.config import NOT_NUMBERS, RunConfig, Scalar
from llm_qfl.federation.errors import FederationError, FingerprintError, RunFolderError
from llm_qfl.federation.records import ModelOffer
from llm_qfl.federation.settings import project_folder
from llm_qfl.federation.setup import Setup
from llm_qfl.federation.types import Spent
from server_app.census import Roll, take_census
from server_app.checkpoint import Checkpoint, Json, LanguageMemory, cut_ledgers, read_checkpoint, read_record
from server_app.grid import BoundedGrid
from server_app.progress import Progress
from server_app.roster import same_site

RAISED = "server.rounds"  # the one key with numbers that may differ: upwards
SOURCES = ("sources",)  # parts of the fingerprint that a repaired release changes
SOURCES_DIFFER = (
    "the sources are not those that the run was begun with: weights may differ from those of a run that was never "
    "interrupted"
)


@dataclass(frozen=True, eq=False)
class Resumed:
    """An interrupted run.

    Attributes:
        folder: the run folder.
        checkpoint: its last one.
        opened: what was fixed before the first round, see `opened_document`.
        progress: after the last closed round.
        lines: of `rounds.jsonl` up to it.
        decisions: of `decisions.jsonl` up to it.
        timed_out: of the next round, where the policy has decided it: why that came too late, or an empty string.
    """

    folder: Path
    checkpoint: Checkpoint
    opened: Json
    progress: Progress
    lines: tuple[Json, ...]
    decisions: tuple[Json, ...]
    timed_out: str | None = None

    @property
    def setup(self) -> Setup:
        """Classes, encoding, feature map and text form."""
        return Setup.from_json(str(self.opened["setup"]))

    @property
    def after(self) -> tuple[int, ...]:
        """Closed rounds after which the run went on, this time included."""
        return (*self.opened["resumed_after"], self.progress.server_round)

    @property
    def decider(self) -> Memory | None:
        """What the run's decisions were made from; None in mode `qfl`."""
        data = self.checkpoint.documents.get("decider")
        return None if data is None else Memory.from_json(data)

    @property
    def language(self) -> LanguageMemory | None:
        """Of the language model; None where the run has none."""
        document = self.checkpoint.documents.get("language")
        return None if document is None else LanguageMemory(self.checkpoint.arrays["adapter"], document)

    def take_roll(
        self, grid: BoundedGrid, config: RunConfig, mark: Mapping[str, str], offer: ModelOffer | None
    ) -> Roll:
        """The run's sites, asked again who they are; those that are missing stay sites of the run.

        Args:
            grid: the nodes.
            config: the run config.
            mark: this side's fingerprint.
            offer: the language model that sites may take part with.

        Raises:
            FederationError: none of the run's sites is there, or too few nodes.
        """
        known = self.progress.censuses
        grid.wait_until(lambda: len(list(grid.get_node_ids())) >= len(known), config.server.wait)
        found = take_census(grid, config, mark, offer)
        back = {site: node for site, node in found.nodes.items() if same_site(found.answers[site], known.get(site))}
        if not back:
            raise FederationError(
                f"server.resume: none of the run's sites ({_listing(sorted(known))}) is there; came: "
                f"{_listing(sorted(found.nodes)) or 'nobody'}; a site comes back under its name and with its rows"
            )
        strangers = {
            site: "has other rows, columns or backends than when the run began" if site in known else "joined later"
            for site in found.nodes
            if site not in back
        }
        # Node ids are positive: a site that is missing has one that nobody has, until it comes back.
        nodes = {site: back.get(site, -1 - number) for number, site in enumerate(sorted(known))}
        answers = {site: replace(found.answers[site], sums=None) if site in back else known[site] for site in known}
        return Roll(
            nodes,
            dict(sorted(answers.items())),
            {**self.opened["left_out"], **found.left_out, **strangers},
            int(self.opened["bytes_up"]) + found.bytes_up,
            int(self.opened["bytes_down"]) + found.bytes_down,
        )

    def check_fingerprint(self, mark: Mapping[str, str]) -> str:
        """Hold this side against the one that began the run.

        Returns:
            What differs and may (the app's sources), in words; empty where nothing does.

        Raises:
            FingerprintError: circuit, setup, message schema or what computes is another one.
        """
        before = self.opened["fingerprint"]
        differ = [key for key in sorted({*before, *mark}) if before.get(key) != mark.get(key) and key != "config"]
        if fatal := [key for key in differ if key not in SOURCES]:
            named = ", ".join(f"{key} (then {before.get(key, 'none')}, now {mark.get(key, 'none')})" for key in fatal)
            raise FingerprintError(f"server.resume: the run was begun with another {named}; go on with that release")
        return SOURCES_DIFFER if differ else ""


def resume_folder(config: RunConfig) -> Path | None:
    """The folder that `server.resume` names; None where the run is a new one."""
    name = config.server.resume
    return None if name == "none" else project_folder() / Path(name).expanduser()


def read_run(folder: Path, config: RunConfig) -> Resumed:
    """Everything that an interrupted run left, checked; its folder is not touched.

    Args:
        folder: the run folder.
        config: the run config of now.

    Raises:
        RunFolderError: no such folder, no checkpoint, a damaged one, a run that reached its end, or another
            configuration.
    """
    if not folder.is_dir():
        raise RunFolderError(f"server.resume: {folder} is no folder; expected that of an interrupted run")
    _refuse_finished(folder)
    checkpoint = read_checkpoint(folder)
    needed = ["opened", "progress", "sites", "state", "earlier"]
    needed += ["language", "adapter"] if config.language.enabled else []
    needed += ["decider"] if config.agent.regulates else []
    if "opened" in checkpoint.documents:
        _refuse_other_config(folder, checkpoint.documents["opened"]["config"], config)
    if missing := sorted(set(needed) - {*checkpoint.documents, *checkpoint.arrays}):
        raise RunFolderError(f"{folder}: the checkpoint lacks its parts {', '.join(missing)}; start the run anew")
    opened = checkpoint.documents["opened"]
    progress = Progress.of(checkpoint.documents, checkpoint.arrays)
    lines = _lines(folder, "rounds.jsonl", checkpoint)
    last = lines[-1]["round"] if lines else 0
    if not last == progress.server_round == checkpoint.server_round:
        raise RunFolderError(
            f"{folder}: the checkpoint is of round {checkpoint.server_round}, its state of round "
            f"{progress.server_round}, the last line of rounds.jsonl of round {last}; start the run anew"
        )
    decisions, record = _lines(folder, "decisions.jsonl", checkpoint), read_record(folder, progress.server_round + 1)
    return Resumed(folder, checkpoint, opened, progress, lines, decisions, record)


def begin_again(resumed: Resumed) -> None:
    """The run goes on: lines of a round that was not closed are taken out, and the summary of a failure."""
    cut_ledgers(resumed.folder, resumed.checkpoint)
    for name in ("summary.json", "report.html"):
        (resumed.folder / name).unlink(missing_ok=True)


def past_spent(lines: Sequence[Json]) -> list[Spent]:
    """What the sites' answers of the past cost, from the ledger."""
    names = list(Spent.__dataclass_fields__)
    return [Spent(**{name: one[name] for name in names}) for line in lines for one in (*line["clients"], *line["late"])]


def past_adapter_rounds(lines: Sequence[Json]) -> int:
    """Rounds of the past in which the adapter was averaged."""
    return sum(1 for line in lines if line["language"] is not None and line["language"]["aggregated"])


def resumed_json(folder: Path, config: RunConfig, resumed: Resumed) -> Json:
    """`config.json` of a run that goes on: as it was, with the configuration of now and after which rounds it went on.

    Raises:
        RunFolderError: it cannot be read.
    """
    path = folder / "config.json"
    try:
        about: Json = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: cannot be read ({error}); start the run anew") from error
    about["config"] = {**config.flat(), "server.resume": "none"}
    return {**about, "resumed_after": list(resumed.after)}


def opened_document(
    config: RunConfig, setup: Setup, fingerprint: Mapping[str, str], roll: Roll, resumed: Resumed | None
) -> Json:
    """What is fixed before the first round, as a part of a checkpoint."""
    return {
        "config": config.flat(),
        "setup": setup.to_json(),
        "fingerprint": dict(fingerprint),
        "left_out": dict(roll.left_out),
        "bytes_up": roll.bytes_up,
        "bytes_down": roll.bytes_down,
        "resumed_after": [] if resumed is None else list(resumed.after),
    }


def _refuse_finished(folder: Path) -> None:
    path = folder / "summary.json"
    try:
        status = json.loads(path.read_text(encoding="utf-8"))["status"]
    except FileNotFoundError:
        return  # it was killed
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error
    if status != "failed":
        raise RunFolderError(
            f"server.resume: the run in {folder} has reached its end ({status}) and its test rows were scored; "
            "start a new run"
        )


def _refuse_other_config(folder: Path, before: Mapping[str, Scalar], config: RunConfig) -> None:
    """Refuse a configuration that changes numbers, but for more rounds.

    Raises:
        RunFolderError: naming each key with both values.
    """
    now = config.flat()
    differ = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key) and key not in NOT_NUMBERS]
    rounds = (before.get(RAISED, 0), config.server.rounds)
    wrong = [key for key in differ if key != RAISED or rounds[1] < int(rounds[0])]
    if not wrong:
        return
    listing = "\n".join(f"  - {key}: the run has {before.get(key)!r}, asked for is {now.get(key)!r}" for key in wrong)
    raise RunFolderError(
        f"server.resume: the run in {folder} was begun with another configuration:\n{listing}\ngive the keys of its "
        f"config.json (its `command` names them) and server.resume; {RAISED} may be raised"
    )


def _lines(folder: Path, name: str, checkpoint: Checkpoint) -> tuple[Json, ...]:
    """The lines of one of the ledger's files that the checkpoint counts."""
    size = checkpoint.positions.get(name, 0)
    if not size:
        return ()
    path = folder / name
    try:
        with open(path, "rb") as file:
            return tuple(json.loads(line) for line in file.read(size).splitlines())
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: cannot be read ({error}); start the run anew") from error


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more

"""The disturbances of `disturb.py`: each plays one run of a federation of real processes and returns its row."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import kill_server
from judge import Moment, Row, judge, moment
from relay import Relay
from slower import Slower
from stage import SPREAD, Stage, kill_tree, stage_of

from llm_qfl.federation.config import Scalar

PAIR = ("alpha", "beta")
HEARTBEAT = 30.0  # seconds between a node's signs of life
TARDY = 5.0  # seconds after the deadline, before which no reply of a slow client comes
PATIENCE = 2 * HEARTBEAT  # after which Flower takes a silent node for gone


def draw_moment(stage: Stage, draw: random.Random, last: int = 2) -> None:
    """Wait for the drawn moment: after some round, within about as long as the next one takes."""
    number = draw.randrange(0, last)
    stage.wait_for_round(number)
    now, before = stage.times.get(number, 0.0), stage.times.get(number - 1, 0.0)
    stage.pause(draw.random() * min(SPREAD, now - before if number and before else SPREAD))


def node(scratch: Path, draw: random.Random) -> Row:
    """A SuperNode dies with all that it runs, before, in or after training as it comes, and is started again.

    Without a key of its own it has another id then; the server takes it for the site that it says it is.
    """
    return killed("SuperNode killed", stage_of(scratch, PAIR, {}), draw, "beta", Stage.start_node)


def killed(name: str, stage: Stage, draw: random.Random, child: str, start: Callable[[Stage, str], object]) -> Row:
    """A process of site beta dies with all that it runs, and is started again some seconds later."""
    with stage.processes:
        begin(stage)
        draw_moment(stage, draw)
        kill_tree(stage.children[child])
        before = moment(stage)
        stage.pause(draw.uniform(1, 5))
        start(stage, "beta")
        over = time.monotonic()
        folder = stage.wait_for_end()
        return judge(name, stage, folder, Moment(before, over), must=False, note=lost(stage))


def server(scratch: Path, draw: random.Random) -> Row:
    """The ServerApp is killed, then the SuperLink with it: see `kill_server.py`."""
    stage = stage_of(scratch, PAIR, {"server.rounds": kill_server.ROUNDS})
    folder, kills = kill_server.drill(stage, draw)
    equal = kill_server.verdict(stage, folder, kills)
    waits, closed = " and ".join(f"{one.again:.0f} s" for one in kills), [one.closed for one in kills]
    note = f"went on after rounds {closed[0]} and {closed[1]}: {waits}"
    return Row("ServerApp killed, then SuperLink", closed[-1], 0, kills[-1].again, equal, equal, True, note)


def site_executor(scratch: Path, draw: random.Random) -> Row:
    """The executor of a site dies with what it runs, and is started again, as a container engine would.

    A task that it had begun is lost with it; one that it had not waits for the new one.
    """
    stage = stage_of(scratch, PAIR, {}, isolated=True)
    return killed("SuperExec of a site killed", stage, draw, "superexec-beta", Stage.start_executor)


def server_executor(scratch: Path, draw: random.Random) -> Row:
    """The executor of the server dies with the ServerApp and is started again; `server.resume` goes on."""
    stage = stage_of(scratch, PAIR, {}, isolated=True)
    with stage.processes:
        begin(stage)
        draw_moment(stage, draw)
        kill_tree(stage.children["superexec-server"])
        stage.give_up_run()
        before = moment(stage)
        stage.start_executor("server")
        over = time.monotonic()
        stage.submit(resume=stage.folder)
        folder = stage.wait_for_end()
        return judge("SuperExec of the server killed", stage, folder, Moment(before, over), must=True)


def short_cut(scratch: Path, draw: random.Random) -> Row:
    """A node is cut from the network for some seconds, less than it takes to be missed: its round waits for it."""
    return cut(scratch, draw, draw.uniform(5, 20), {}, must=True)


def long_cut(scratch: Path, draw: random.Random) -> Row:
    """A node is cut from the network until Flower takes it for gone; the run goes on without it, and with it again."""
    seconds, start = PATIENCE + draw.uniform(5, 15), start_seconds()
    rounds = 3 + math.ceil((seconds + HEARTBEAT) / (4 + 1.5 * start))
    return cut(scratch, draw, seconds, {"server.rounds": rounds, "server.deadline": deadline(start)}, must=False)


def cut(scratch: Path, draw: random.Random, seconds: float, config: Mapping[str, Scalar], *, must: bool) -> Row:
    """The cable between a SuperNode and the SuperLink is pulled and put back."""
    stage = stage_of(scratch, PAIR, config)
    with stage.processes, Relay(stage.port) as relay:
        begin(stage, port=relay.port)
        draw_moment(stage, draw)
        before = moment(stage)
        relay.cut()
        stage.pause(seconds)
        relay.mend()
        over = time.monotonic()
        folder = stage.wait_for_end()
        what, note = f"node cut off for {seconds:.0f} s", f"{relay.held} packets held; {lost(stage)}"
        return judge(what, stage, folder, Moment(before, over), must=must, note=note)


def start_seconds() -> float:
    """How long a ClientApp takes to start on this machine, as busy as it is now."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import client_app.round, client_app.work, qiskit"], check=True, timeout=120)
    return time.monotonic() - began


def deadline(start: float) -> float:
    """Seconds within which a site has answered, though the machine is busier by then; a slow one is held for longer."""
    return 30 + 6 * start


def slow(scratch: Path, draw: random.Random) -> Row:
    """A client is ten times slower than it was, from some moment on; its late replies are counted."""
    return slowed(scratch, draw, "weighted")


def slow_dropped(scratch: Path, draw: random.Random) -> Row:
    """The same, and its late replies are dropped."""
    return slowed(scratch, draw, "dropped")


def slowed(scratch: Path, draw: random.Random, late: str) -> Row:
    """Rounds keep to their deadline and have their quorum without the slow one."""
    start = start_seconds()
    limit = deadline(start)
    tardy = max(TARDY + 3 + 1.5 * start, 10 * 3 * start - limit)  # a client takes about three times its start
    rounds = 3 + math.ceil(tardy / (3 + 2.5 * start))
    stage = stage_of(scratch, PAIR, {"server.rounds": rounds, "server.deadline": limit, "server.late": late})
    with stage.processes, Slower(lambda: stage.children.get("beta"), limit + TARDY) as slower:
        begin(stage)
        draw_moment(stage, draw, last=1)
        slower.begin()
        before, folder = moment(stage), stage.wait_for_end()
        lines = [line for line in stage.lines if line["plan"]["sites"]]
        missed = [line["round"] for line in lines if not line["aggregated"]]
        assert not missed, f"rounds without a quorum: {missed}"
        longest = max(line["seconds"] for line in stage.lines)
        assert longest < limit + 15, longest
        came, entered = (sum(len(line[key]) for line in stage.lines) for key in ("late", "entered"))
        assert came, "no reply was late"
        assert entered == (came if late == "weighted" else 0), (came, entered)
        what = f"client ten times slower or more, late={late}"
        note = f"deadline {limit:.0f} s, longest round {longest:.0f} s; {came} late replies, {entered} counted"
        return judge(what, stage, folder, Moment(before, None), must=False, note=note)


def clock(scratch: Path, draw: random.Random) -> Row:
    """The clock of a site jumps by hours, and is set right after a while."""
    return skewed(scratch, draw, "a site")


def server_clock(scratch: Path, draw: random.Random) -> Row:
    """The clock of the server jumps by hours, and is set right after a while."""
    return skewed(scratch, draw, "the server")


def skewed(scratch: Path, draw: random.Random, who: str) -> Row:
    """Flower signs what nodes ask with the time: with clocks apart a node is refused and ends.

    It is started again, as by a container engine, until it is let in; a run that fails goes on by `server.resume`.
    """
    hours, seconds = draw.choice((1, -1)) * draw.uniform(1, 12), draw.uniform(10, 30)
    stage, file = stage_of(scratch, PAIR, {"server.wait": 240.0}), scratch / "clock"
    wrong = {"PYTHONPATH": str(Path(__file__).with_name("clock")), "DRILL_CLOCK": str(file)}
    with stage.processes:
        begin(stage, server=wrong if who == "the server" else {}, second=wrong if who == "a site" else {})
        draw_moment(stage, draw)
        before, stage.tended = moment(stage), True
        set_clock(file, 3600 * hours)
        stage.pause(seconds)
        set_clock(file, 0.0)
        over = time.monotonic()
        folder, resumed = stage.carry_on()
        what = f"clock of {who} {abs(hours):.0f} h {'ahead' if hours > 0 else 'behind'} for {seconds:.0f} s"
        note = f"resumed {resumed} times; {lost(stage)}"
        return judge(what, stage, folder, Moment(before, over), must=False, note=note)


def set_clock(file: Path, off: float) -> None:
    """By so many seconds, for those who read the file."""
    new = file.with_suffix(".new")
    new.write_text(str(off))
    new.rename(file)


def full_disk(scratch: Path, draw: random.Random) -> Row:
    """The disk of the run folder is full: the run ends and says why; room is made, and `server.resume` goes on."""
    runs, ballast = scratch / "runs", scratch / "runs" / "ballast"
    runs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "drill", runs], check=True, timeout=10)
    stage = stage_of(scratch, PAIR, {})
    try:
        with stage.processes:
            begin(stage)
            draw_moment(stage, draw)
            fill(ballast)
            stage.wait_for_failure()
            said, before = stage.said, moment(stage)
            assert "No space left on device" in said, said
            assert "server.resume" in said, said
            ballast.unlink()
            over = time.monotonic()
            stage.submit(resume=stage.folder)
            folder = stage.wait_for_end()
            return judge("disk full on the server", stage, folder, Moment(before, over), must=True)
    finally:
        subprocess.run(["umount", runs], check=True, timeout=10)


def fill(path: Path) -> None:
    """Write until there is no more room."""
    with open(path, "wb", buffering=0) as file:
        size = 1 << 16
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2


def begin(
    stage: Stage,
    port: int | None = None,
    server: Mapping[str, str] | None = None,
    second: Mapping[str, str] | None = None,
) -> None:
    """All is started, and the run has its first checkpoint.

    Args:
        stage: what to start.
        port: under which the second site finds the SuperLink.
        server: of the server's environment.
        second: of the second site's.
    """
    stage.open(server)
    for number, site in enumerate(stage.sites):
        stage.start_node(site, port=port if number == 1 else None, more=second if number == 1 else None)
    stage.submit()
    stage.wait_for_round(0)


def lost(stage: Stage) -> str:
    """Which replies the rounds went without, in words."""
    gone = [f"{line['round']}: {site}" for line in stage.lines for site in line["rejected"]]
    return f"replies missing in round {', '.join(gone)}" if gone else "no reply missing"


KINDS: dict[str, Callable[[Path, random.Random], Row]] = {
    "node": node,
    "server": server,
    "superexec": site_executor,
    "superexec-server": server_executor,
    "cut": short_cut,
    "cut-long": long_cut,
    "disk": full_disk,
    "clock": clock,
    "server-clock": server_clock,
    "slow": slow,
    "slow-dropped": slow_dropped,
}

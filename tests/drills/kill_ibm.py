"""Kill drill: a client of IBM Quantum dies at a random moment and comes back; nothing is paid twice, nothing is lost.

    python tests/drills/kill_ibm.py --kills 97 --seed 0

Each run: a child process takes a small batch through IbmRunner to the loopback service, is ended by SIGKILL (by itself
at a named point, or from outside after a random time), and is started again with the same arguments until it finishes.
The service is a process of its own and counts every submission that arrives. A run in which nothing was killed shows
nothing: at a named point it is a failure of the drill, and at a random time it is done again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ibm_service.samples import STEP, small_work

from llm_qfl.quantum.ibm.budget import Limits
from llm_qfl.quantum.ibm.options import IbmOptions
from llm_qfl.quantum.ibm.submission import Patience

LISTING_BOUND = 0.4
HELD = 0.1  # seconds that the service holds a submission before and after it makes the job
PATIENCE = Patience(listing_bound=LISTING_BOUND + 2 * HELD + 0.05, attempts=4, backoff=0.02, longest=0.05, poll=0.02)
POINTS = (
    "before the intent",
    "after the intent",
    "after `submitting` is written",
    "during the call, before the job is made",
    "during the call, after the job is made",
    "after the call, before the id is written",
    "after the id is written",
    "while queued",
    "while running",
    "when the result is ready",
    "result written, state not",
    "at a random time",
)
RANDOM_TIME, ATTEMPTS = POINTS[-1], 20
WIDE, ONE = Limits(), Limits(executions=2 * 64)


def serve(pipe):
    """The service's process: answers `reset` and `report`."""
    from ibm_service.loopback import LoopbackService

    service = LoopbackService(listing_bound=LISTING_BOUND, queue=0.35, runtime=0.35)
    service.hold = HELD
    with service.running():
        pipe.send(service.environment())
        while (asked := pipe.recv()) != "stop":
            if asked == "reset":
                service.jobs.clear()
                service.requests.clear()
                pipe.send(None)
            else:
                jobs = [(job.id, job.tags, service.result(job)) for job in service.jobs.values()]
                pipe.send((jobs, [repr(error) for error in service.errors]))


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def dying(function, *, before=False, when=lambda *args: True):
    """`function`, after (or before) which the process is killed."""

    def wrapped(*args, **kwargs):
        fatal = when(*args)
        if fatal and before:
            die()
        out = function(*args, **kwargs)
        if fatal:
            die()
        return out

    return wrapped


def state_is(name):
    return lambda _, entry: entry.state == name


WRITES = {  # points at which the ledger is written
    "before the intent": {"before": True},
    "after the intent": {"when": state_is("intent")},
    "after `submitting` is written": {"when": state_is("submitting")},
    "after the id is written": {"when": state_is("submitted")},
    "result written, state not": {"before": True, "when": state_is("done")},
}
CALLS = {"during the call, before the job is made": HELD / 2, "during the call, after the job is made": HELD * 1.5}
WAITS = {"while queued": 0.05, "while running": 0.42}


def arm(point):
    """In the child only: die at this point."""
    from llm_qfl.quantum.ibm import runner, submission
    from llm_qfl.quantum.ibm.ledger import Ledger

    signal.signal(signal.SIGALRM, die)
    if point in WRITES:
        Ledger.put = dying(Ledger.put, **WRITES[point])
    elif point in CALLS:
        runner.submit_once = die_in_the_call(runner.submit_once, CALLS[point])
    elif point == "after the call, before the id is written":
        runner.submit_once = dying(runner.submit_once)
    elif point in WAITS:
        collect = submission.Submission.collect

        def collecting(self, entry):
            signal.setitimer(signal.ITIMER_REAL, WAITS[point])
            return collect(self, entry)

        submission.Submission.collect = collecting
    elif point == "when the result is ready":
        Ledger.put_result = dying(Ledger.put_result, before=True)
    else:
        raise ValueError(point)


def die_in_the_call(run, after):
    """The clock starts when the submission goes out."""
    from llm_qfl.quantum.ibm import service

    def submit(device, call):
        post = service.send_once(device)._once
        send = post.send

        def timed(*args, **kwargs):
            signal.setitimer(signal.ITIMER_REAL, after)
            return send(*args, **kwargs)

        post.send = timed
        return run(device, call)

    return submit


def child(folder, point, limits, seed, out):
    """One life of the client."""
    from llm_qfl.quantum.ibm.runner import IbmRunner

    if point is not None:
        arm(point)
    options = IbmOptions(shots=64, resilience_level=0, optimization_level=1)
    runner = IbmRunner("ibm:loop_ideal", folder, options=options, patience=PATIENCE, limits=limits)
    outcome = runner.expectations(STEP, small_work(3, seed))
    out.write_text(json.dumps({"values": outcome.values.tolist(), "jobs": outcome.jobs}))


def live(folder, point, limits, seed, out, after=None):
    """Run the child; its exit status (negative: the signal)."""
    process = multiprocessing.get_context("fork").Process(target=child, args=(folder, point, limits, seed, out))
    process.start()
    process.join(after)
    if process.is_alive():
        if after is None:
            raise AssertionError("the child hangs")
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    return process.exitcode


def one_kill(pipe, folder, point, rng):
    """Kill, come back, compare; (submitted twice, lost, kills)."""
    limits, seed = rng.choice([WIDE, WIDE, ONE]), rng.randrange(2**31)
    pipe.send("reset")
    pipe.recv()
    out, kills = folder / "out.json", 0
    random_time = point == RANDOM_TIME
    for life in range(6):
        armed = None if random_time or life else point
        after = rng.uniform(0.0, 2.0) if random_time and life < rng.randint(1, 3) else None
        status = live(folder, armed, limits, seed, out, after)
        kills += status == -signal.SIGKILL
        if status == 0:
            break
        if status != -signal.SIGKILL:
            raise AssertionError(f"{point}: the child ended with {status}")
    pipe.send("report")
    jobs, errors = pipe.recv()
    if errors:
        raise AssertionError(f"{point}: the service stumbled: {errors}")
    tags = Counter(tag for _, tags, _ in jobs for tag in tags)
    wanted = 1 if limits is WIDE else 2
    twice = sum(count - 1 for count in tags.values()) + max(len(tags) - wanted, 0)
    return twice, int(not same(out, jobs)), kills


def same(out, jobs):
    """What the client holds is what the service computed, job by job."""
    if not out.exists():
        return False
    import numpy as np
    from qiskit_ibm_runtime.decoders.executor.decoder import ExecutorResultDecoder
    from qiskit_ibm_runtime.decoders.executor_estimator.decoder import ClientSideEstimatorDecoder

    held = json.loads(out.read_text())
    by_id = {job_id: result for job_id, _, result in jobs}
    if sorted(by_id) != sorted(held["jobs"]):
        return False
    programs = [ExecutorResultDecoder.decode(by_id[job_id]) for job_id in held["jobs"]]
    parts = [ClientSideEstimatorDecoder.decode(program)[0].data.evs for program in programs]
    return np.array_equal(np.concatenate([part.reshape(len(part), -1).T for part in parts]), np.array(held["values"]))


def warm():
    """Load in the parent, before any thread, what every child needs."""
    import qiskit.transpiler
    import qiskit_ibm_runtime
    import qiskit_ibm_runtime.executor_estimator

    import llm_qfl.quantum.ibm.runner

    return qiskit, qiskit_ibm_runtime, llm_qfl


def drill(kills, seed):
    """So many runs with a kill; rows (point, runs, runs with a kill, kills, submitted twice, lost)."""
    rng = random.Random(seed)
    points = [POINTS[number % len(POINTS)] for number in range(kills)]
    rng.shuffle(points)
    table = {point: [0, 0, 0, 0, 0] for point in POINTS}
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    warm()
    before, os_environ = dict(os.environ), ours.recv()
    os.environ.update(os_environ)
    root = Path(tempfile.mkdtemp(prefix="drill-"))
    try:
        for point in points:
            for _ in range(ATTEMPTS):  # on a busy machine a kill from outside may come too late
                twice, lost, kills = one_kill(ours, Path(tempfile.mkdtemp(dir=root)), point, rng)
                for column, value in enumerate((1, int(kills > 0), kills, twice, lost)):
                    table[point][column] += value
                if kills:
                    break
    finally:
        ours.send("stop")
        server.join(10)
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(root)
    return [(point, *numbers) for point, numbers in table.items() if numbers[0]]


def main():
    parser = argparse.ArgumentParser(description="Kill a client of IBM Quantum at random moments")
    parser.add_argument("--kills", type=int, default=97)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    started = time.monotonic()
    rows = drill(asked.kills, asked.seed)
    print(f"{'point':44}  runs  killed  kills  twice  lost")
    total = ["all", *(sum(row[column] for row in rows) for column in range(1, 6))]
    for point, *numbers in [*rows, total]:
        print(f"{point:44}  {numbers[0]:4}  {numbers[1]:6}  {numbers[2]:5}  {numbers[3]:5}  {numbers[4]:4}")
    print(f"{time.monotonic() - started:.0f} s")
    wanted = Counter(POINTS[number % len(POINTS)] for number in range(asked.kills))
    unkilled = [row[0] for row in rows if row[2] < wanted[row[0]]]
    for point in unkilled:
        print(f"failed: too few runs were killed {point}")
    if total[2] < asked.kills:
        print(f"failed: {total[2]} runs with a kill, expected {asked.kills}")
    return int(bool(unkilled) or total[2] < asked.kills or total[4] > 0 or total[5] > 0)


if __name__ == "__main__":
    sys.exit(main())

"""`make run`'s launcher: the run folder, bad configurations, and nothing left behind."""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from living import alive, name

from simulation.run import run_federation

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
TWO_ROUNDS = 'server.rounds=2 language.model="none"'


@pytest.fixture
def launch(checkout, clean_environment):
    """Starts the launcher; what still runs when the test is over, a failed one too, is killed and reaped."""
    runs = []

    def start(*arguments, **more):
        runs.append(
            subprocess.Popen(
                [checkout / ".venv/bin/python", "-m", "llm_qfl.cli.launch", *arguments],
                cwd=checkout,
                env={**clean_environment, **more},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
        )
        return runs[-1]

    yield start
    for run in runs:
        with run:  # closes the pipes and waits
            family = psutil.Process(run.pid).children(recursive=True) if run.poll() is None else []
            for process in (run, *family):
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def test_a_run_prints_its_folder_last_and_the_user_s_flower_is_untouched(launch, checkout, check_run, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    run = launch("--sites", "3", "--config", TWO_ROUNDS, HOME=str(home))
    out, err = run.communicate(timeout=280)
    assert run.returncode == 0, out + err
    folder = Path(out.strip().splitlines()[-1])
    assert folder.parent == checkout / "runs"
    check_run(folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["clients"], summary["rounds"]) == ("finished", 3, 2)
    assert not (home / ".flwr").exists()
    assert "INFO" not in out
    in_memory = run_federation({"server.rounds": 2, "language.model": "none"}, sites=3)
    with np.load(folder / "model" / "weights.npz") as arrays:
        np.testing.assert_array_equal(arrays["theta"], in_memory.theta)  # Flower's simulation, bit for bit


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("data.sorce='x'", "did you mean data.source"),
        ("data.source=digits", "strings need quotes"),
        ("server.rounds=0 quantum.qubits=99", "2 problems"),
    ],
)
def test_a_wrong_configuration_is_refused_before_anything_starts(launch, checkout, config, expected):
    run = launch("--config", config)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 1
    assert out == ""
    assert expected in err
    assert not (checkout / ".flwr").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_process_of_the_run(launch, number):
    run = launch("--config", 'server.rounds=2000 language.model="none"')
    me = psutil.Process(run.pid)
    end = time.monotonic() + 150
    while not any("raylet" in name(p) for p in me.children(recursive=True)):
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < end
        time.sleep(0.5)
    time.sleep(2)  # workers are being started
    family = me.children(recursive=True)
    os.kill(run.pid, number)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 128 + number, out + err
    assert len(family) > 5
    assert [p for p in family if alive(p)] == []

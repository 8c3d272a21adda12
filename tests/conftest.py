"""Set-up of every test: nothing calls out, messages can be made, hypothesis is repeatable."""

import os
from collections.abc import Iterator

# Before anything imports flwr: it reads these once.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # a worker a processor: threads of each would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import settings

# A Message can be made only by a process that knows its run, node and task (internal path: flwr is held to a range).
TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def _no_language_model_unless_asked() -> Iterator[None]:
    """Runs in memory have the QNN alone unless a test names a language model: it is what most tests are about."""
    import simulation.run
    from llm_qfl.federation.config import default_run_config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation.run, "default_run_config", lambda: {**default_run_config(), "language.model": "none"})
        yield

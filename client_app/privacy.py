"""What a site needs to hide its rows: a secret of its own, and a ledger of all that it has released.

Both lie in the node's folder (`privacy/<site>/`), readable by its owner alone. A release is written down before it is
computed: a site that dies in between has spent more on paper than in truth, never less. The same question (same task,
state and rows) has the same noise and so the same answer, and is written down once.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.errors import PrivacyError
from llm_qfl.federation.privacy.accountant import Release, epsilon_of
from llm_qfl.federation.privacy.noise import SECRET_BYTES, SecretNoise, digest_arrays, noise_key
from llm_qfl.federation.privacy.releases import feature_release, training_release
from llm_qfl.federation.records import LanguageTask
from llm_qfl.federation.settings import NodeSettings
from llm_qfl.federation.types import GlobalState, RoundPlan, Rows

SLACK = 1e-6  # of epsilon, for rounding


@dataclass(frozen=True, eq=False)
class Guard:
    """What hides the rows in one answer.

    Attributes:
        noise: the stream for this answer.
        release: what the answer costs.
        epsilon: of the run up to this answer, at `privacy.delta`; None where the server adds the noise.
    """

    noise: SecretNoise
    release: Release
    epsilon: float | None


def require_privacy(config: RunConfig, settings: NodeSettings) -> None:
    """A site with a limit of its own (node config `epsilon`) answers no run that does not hide its rows at the site.

    Raises:
        PrivacyError: the run asks for more.
    """
    if settings.epsilon is not None and config.privacy.unit not in ("record", "client-local"):
        raise PrivacyError(
            f"this site answers only with noise of its own: privacy.unit expected record or client-local, got "
            f"{config.privacy.unit!r}"
        )


class SiteSecrets:
    """A site's secret and its ledger.

    Args:
        settings: of the site; its folder, and the most epsilon that it spends over all runs.
        site: its name.
    """

    def __init__(self, settings: NodeSettings, site: str) -> None:
        name = hashlib.sha256(site.encode()).hexdigest()[:16]  # a name may hold what a path may not
        self._folder, self._limit = settings.folder / "privacy" / name, settings.epsilon

    def census(self, config: RunConfig, rows: Rows) -> Guard:
        """For the sums behind the feature map.

        Raises:
            PrivacyError: the budget is spent.
        """
        run = f"census of {config.digest()}"
        return self._guard(config, run, feature_release(config), rows, purpose="census")

    def round(self, config: RunConfig, run: str, state: GlobalState, plan: RoundPlan, rows: Rows, steps: int) -> Guard:
        """For one round's training.

        Raises:
            PrivacyError: the budget is spent.
        """
        about = {"purpose": "round", "round": str(plan.server_round), "state": digest_arrays(state.theta)}
        about |= {"budget": str(plan.budget), "rate": plan.learning_rate.hex()}
        return self._guard(config, run, training_release(config, len(rows), steps), rows, **about)

    def adapter(self, config: RunConfig, run: str, task: LanguageTask, server_round: int, rows: Rows) -> Guard:
        """For one round's adapter: a release of its own.

        Raises:
            PrivacyError: the budget is spent.
        """
        about = {"purpose": "adapter", "round": str(server_round), "adapter": task.adapter_digest}
        about |= {"emulator": task.emulator_digest, "model": task.sha256, "offset": str(task.offset)}
        return self._guard(config, run, training_release(config, len(rows), 1), rows, **about)

    def _guard(self, config: RunConfig, run: str, release: Release, rows: Rows, **about: str) -> Guard:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._locked():
            about |= {"run": run, "config": config.digest(), "rows": digest_arrays(rows.x, rows.y)}
            key = noise_key(self._secret(), **about)
            epsilon = self._charge(config, run, release, hashlib.sha256(key).hexdigest())
        return Guard(SecretNoise(key), release, epsilon)

    def _charge(self, config: RunConfig, run: str, release: Release, answer: str) -> float:
        """Write a release down, once for each answer; epsilon of the run with it."""
        privacy = config.privacy
        ledger = list(self._ledger())
        known = any(entry["answer"] == answer for entry in ledger)
        entry = {"answer": answer, "run": run, "noise": release.noise, "rate": release.rate, "times": release.times}
        done = ledger if known else [*ledger, entry]
        census = f"census of {config.digest()}"
        epsilon = epsilon_of(_releases([one for one in done if one["run"] in (run, census)]), privacy.delta)
        if known:
            return epsilon
        if epsilon > privacy.epsilon * (1 + SLACK):
            raise PrivacyError(
                f"privacy.epsilon: this answer would take the run to {epsilon:.4g}, {privacy.epsilon:g} are allowed"
            )
        if self._limit is not None and (ever := epsilon_of(_releases(done), privacy.delta)) > self._limit:
            raise PrivacyError(
                f"the site's own limit over all runs would be passed: epsilon {ever:.4g} of {self._limit:g}"
            )
        with open(self._folder / "ledger.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return epsilon

    def _ledger(self) -> Iterator[dict[str, object]]:
        path = self._folder / "ledger.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                yield json.loads(line)
            except ValueError as error:
                raise PrivacyError(
                    "the ledger of releases is damaged; repair it by hand, or what was spent is unknown"
                ) from error

    def _secret(self) -> bytes:
        path = self._folder / "secret"
        if not path.exists():
            partial = path.with_suffix(".partial")
            handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(os.urandom(SECRET_BYTES))
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        return path.read_bytes()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time: two that charge at once would each see the other's release missing."""
        with open(self._folder / "lock", "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _releases(entries: list[dict[str, object]]) -> list[Release]:
    """Equal releases together: a Gaussian's cost is looked up once."""
    count: dict[tuple[float, float], int] = {}
    for entry in entries:
        kind = (float(str(entry["noise"])), float(str(entry["rate"])))
        count[kind] = count.get(kind, 0) + int(str(entry["times"]))
    return [Release(noise, rate, times) for (noise, rate), times in count.items()]

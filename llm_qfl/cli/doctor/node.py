"""Node config and run config, in the syntax that `flower-supernode --node-config` and `flwr run -c` take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from llm_qfl.cli.doctor.check import Check, failure
from llm_qfl.federation.config import QuantumConfig, RunConfig, Scalar, default_run_config
from llm_qfl.federation.errors import ConfigError
from llm_qfl.federation.settings import NodeSettings

_PAIR = re.compile(r"""\S+?=('[^']*'|"[^"]*"|\S+)""")  # as flwr.common.config reads them


@dataclass(frozen=True)
class Node:
    """A site's machine, as configured.

    Attributes:
        config: the run's.
        settings: the site's own.
    """

    config: RunConfig
    settings: NodeSettings

    @property
    def quantum(self) -> QuantumConfig:
        """Where this site trains."""
        return self.config.quantum.at_site(self.settings.backend, self.settings.evaluation_backend)

    @property
    def places(self) -> dict[str, QuantumConfig]:
        """Backend -> configuration with it: where this site trains, and where it scores if that is elsewhere."""
        return {config.backend: config for config in (self.quantum, self.quantum.scoring)}

    @property
    def takes_language(self) -> bool:
        """Does the run have a language model, and has the site not switched it off?"""
        return self.config.language.enabled and self.settings.language != "no"


def read_node(node_config: str, overrides: Sequence[str]) -> tuple[Node | None, list[Check]]:
    """The node, or None where either configuration is wrong, and a line for each.

    Args:
        node_config: as `flower-supernode --node-config` takes it.
        overrides: as `flwr run -c` takes them.
    """
    checks: list[Check] = []
    config: RunConfig | None = None
    settings: NodeSettings | None = None
    try:
        given = pairs(" ".join(overrides), "--config", 'data.source="digits" server.rounds=10')
        config = RunConfig.from_run_config({**default_run_config(), **given})
        said = f"{len(given)} keys given, the others at their defaults" if given else "defaults"
        checks.append(Check("run config", "ok", said))
    except ConfigError as error:
        checks.append(failure("run config", error))
    try:
        settings, line = _settings(pairs(node_config, "--node-config", 'site="clinic-a" data-path="/data/rows.csv"'))
        checks.append(line)
    except ConfigError as error:
        checks.append(failure("node config", error))
    return (None if config is None or settings is None else Node(config, settings)), checks


def pairs(text: str, option: str, example: str) -> dict[str, Scalar]:
    """`key=value` pairs, or a path that ends in `.toml`.

    Raises:
        ConfigError: Flower cannot read it, or would drop a part without a word.
    """
    from click import ClickException
    from flwr.common.config import parse_config_args

    text = text.strip()
    if not text:
        return {}
    left = "" if text.endswith(".toml") else _PAIR.sub("", text).strip()
    if left:
        raise ConfigError(f"{option}: expected key=value pairs, got {left!r}; e.g. {example}")
    try:
        found: dict[str, Scalar] = parse_config_args([text])
    except (ClickException, OSError, ValueError) as error:
        raise ConfigError(f"{option}: cannot be read; strings need quotes, e.g. {example}") from error
    return found


def _settings(given: dict[str, Scalar]) -> tuple[NodeSettings, Check]:
    """Without a `data-path` the rest of the machine can still be checked: with the rows of a simulated site."""
    if "data-path" in given or "partition-id" in given:
        settings = NodeSettings.from_node_config(given)
        return settings, Check("node config", "ok", f"site {settings.site}, folder {settings.folder}")
    settings = NodeSettings.from_node_config({**given, "partition-id": 0, "num-partitions": 1})
    return settings, Check(
        "node config", "warn", f"site {settings.site}, folder {settings.folder}; no data-path: a simulated site",
        'a real site needs --node-config \'site="clinic-a" data-path="/data/rows.csv"\'',
    )  # fmt: skip

"""What must be equal on both sides: a map from component to digest.

Components: the configuration that changes numbers, the record schema, the app's sources, the circuit (by structure),
the setup (classes and feature map), and the versions of what computes. Not the output folder, not node settings.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.errors import FingerprintError
from llm_qfl.federation.records import SCHEMA

PACKAGES = ("llm_qfl", "client_app", "server_app", "agent")
LIBRARIES = ("qiskit",)


def fingerprint(config: RunConfig, **components: str) -> dict[str, str]:
    """The fingerprint of this side.

    Args:
        config: the run config.
        components: digests that are known later in the run (`circuit`, `setup`).
    """
    return {
        "config": config.digest()[:16],
        "schema": str(SCHEMA),
        "sources": sources_digest()[:16],
        **{library: version(library).split("+")[0] for library in LIBRARIES},
        **{name: digest[:16] for name, digest in components.items()},
    }


def check_fingerprint(server: Mapping[str, str], site: Mapping[str, str]) -> None:
    """Refuse to work with a side that differs.

    Raises:
        FingerprintError: naming each component that differs, with both values.
    """
    names = sorted(set(server) | set(site))
    differ = [
        f"{n} (server {server.get(n, 'none')}, site {site.get(n, 'none')})"
        for n in names
        if server.get(n) != site.get(n)
    ]
    if differ:
        raise FingerprintError(
            "the two sides differ in " + ", ".join(differ) + "; give both the same release and config"
        )


def digest_of(text: str) -> str:
    """SHA-256 of a text, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def sources_digest() -> str:
    """Digest of the app's Python sources as they lie beside this file, whatever folder they were unpacked to."""
    root = Path(__file__).resolve().parents[2]
    total = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            total.update(path.relative_to(root).as_posix().encode())
            total.update(path.read_bytes())
    return total.hexdigest()

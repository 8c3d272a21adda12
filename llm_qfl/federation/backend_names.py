"""Names of backends, as `quantum.backend` and a site's `backend` give them; whether a device exists is known later."""

from __future__ import annotations

import re

EXPECTED = (
    "exact, aer, aer-<fake device> (aer-FakeManilaV2), ibm:<device>, ibm:least-busy, "
    "ibm-local:<fake device> (ibm-local:FakeManilaV2)"
)
_NAME = re.compile(r"exact|aer|aer-Fake\w+|ibm:[\w-]+|ibm-local:Fake\w+")


def backend_problem(name: str) -> str | None:
    """Why this is no backend's name, or None."""
    return None if _NAME.fullmatch(name) else f"expected {EXPECTED}, got {name!r}"


def samples(name: str) -> bool:
    """Does this backend draw shots?"""
    return name != "exact"


def fake_device(name: str) -> str | None:
    """The fake device that a name holds, or None."""
    kind, _, device = name.replace("aer-", "aer:", 1).partition(":")
    return device if kind in ("aer", "ibm-local") and device else None

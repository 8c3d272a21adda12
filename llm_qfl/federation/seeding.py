"""Streams of random numbers: from (server.seed, site name, round, purpose) and nothing else.

There is no global generator anywhere, and Flower's run and node ids, which are random, never enter.
"""

from __future__ import annotations

import hashlib

import numpy as np

SERVER = "server"  # the server's own streams; no site may have this name


def seed_of(seed: int, site: str, server_round: int, purpose: str) -> int:
    """A 63-bit seed, equal on every machine for equal arguments."""
    text = f"{seed}\x1f{site}\x1f{server_round}\x1f{purpose}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, site: str, server_round: int, purpose: str) -> np.random.Generator:
    """A generator of its own for one purpose of one site in one round (PCG64)."""
    return np.random.Generator(np.random.PCG64(seed_of(seed, site, server_round, purpose)))

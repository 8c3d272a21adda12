"""What a site keeps on its disk: setups by digest. Written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from llm_qfl.federation.errors import RecordError, SetupMissingError
from llm_qfl.federation.fingerprint import digest_of
from llm_qfl.federation.setup import Setup

_KEPT: dict[str, Setup] = {}  # this process's copies; content-addressed, so every site may share them
_LIMIT = 8


def take_setup(folder: Path, text: str | None, digest: str) -> Setup:
    """The setup with this digest: from the message (then it is kept), this process, or the site's disk.

    Raises:
        RecordError: the text does not have the digest.
        SetupMissingError: neither sent nor kept.
    """
    if digest in _KEPT:
        return _KEPT[digest]
    path = folder / "setups" / f"{digest_of(digest)}.json"
    if text is not None:
        if digest_of(text) != digest:
            raise RecordError("setup: the text does not have the digest that the task names")
        _write(path, text)
    else:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise SetupMissingError(f"setup {digest[:16]} was neither sent nor kept") from None
        if digest_of(text) != digest:
            path.unlink()
            raise SetupMissingError(f"setup {digest[:16]} on this site's disk is damaged")
    setup = Setup.from_json(text)
    while len(_KEPT) >= _LIMIT:
        _KEPT.pop(next(iter(_KEPT)))
    _KEPT[digest] = setup
    return setup


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(partial, path)

"""Whose account pays: found on the site, never in run config.

First that is there: a file with nothing but the token (`LLM_QFL_IBM_TOKEN_FILE`), `QISKIT_IBM_TOKEN`, an account saved
by `QiskitRuntimeService.save_account` (by the name in `LLM_QFL_IBM_ACCOUNT`, else the default one).
`QISKIT_IBM_INSTANCE` and `QISKIT_IBM_CHANNEL` go with the first two.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_qfl.quantum.ibm.errors import CredentialsError

RUNTIME_URL = "LLM_QFL_IBM_RUNTIME_URL"
TOKEN_FILE = "LLM_QFL_IBM_TOKEN_FILE"
SAVED_NAME = "LLM_QFL_IBM_ACCOUNT"


@dataclass(frozen=True)
class Account:
    """Where to log in.

    Attributes:
        source: in words, for messages: never the token.
        token: None for a saved account.
        instance: CRN or name of the service instance, or None for the account's own choice.
        channel: as qiskit-ibm-runtime calls it.
        name: of a saved account.
        runtime_url: base address of the runtime's interface where it is not IBM's own (a private endpoint).
    """

    source: str
    token: str | None = field(default=None, repr=False)
    instance: str | None = None
    channel: str | None = None
    name: str | None = None
    runtime_url: str | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Account:
        """Look where the module says.

        Raises:
            CredentialsError: the token file cannot be read or is empty.
        """
        environ = os.environ if environ is None else environ
        common = {
            "instance": environ.get("QISKIT_IBM_INSTANCE") or None,
            "channel": environ.get("QISKIT_IBM_CHANNEL") or None,
            "runtime_url": environ.get(RUNTIME_URL) or None,
        }
        if path := environ.get(TOKEN_FILE):
            return cls(f"the token file of {TOKEN_FILE}", _read_token(Path(path)), **common)
        if token := environ.get("QISKIT_IBM_TOKEN"):
            return cls("QISKIT_IBM_TOKEN", token, **common)
        name = environ.get(SAVED_NAME) or None
        source = f"the saved account {name!r}" if name else "the default saved account"
        return cls(source, None, **common, name=name)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of QiskitRuntimeService."""
        found = {"token": self.token, "instance": self.instance, "name": self.name}
        if self.name is None:
            found["channel"] = self.channel
        arguments: dict[str, Any] = {key: value for key, value in found.items() if value is not None}
        if self.runtime_url is not None:
            url = self.runtime_url
            arguments["url_resolver"] = lambda *_: url
        return arguments


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CredentialsError(f"{TOKEN_FILE}: cannot read the file ({type(error).__name__}); nothing was spent") from (
            error
        )
    if not token or len(token.split()) != 1:
        raise CredentialsError(f"{TOKEN_FILE}: expected one token and nothing else in the file; nothing was spent")
    return token

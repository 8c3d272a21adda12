"""One decorator on every handler: nothing leaks to the server, nothing wedges the node.

A handler that returns None wedges its SuperNode for good, and Flower sends an exception's text, which can hold data,
to the server. So every exception becomes a reply with the exception's class alone; the text of errors that hold
nothing of the site's (`shareable`) goes along. The full text stays in the site's own log; where log lines are JSON and
may be collected, what could quote a row is left out of them, too (`llm_qfl.federation.logs`).
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from logging import ERROR

from flwr.app import Context, Error, Message
from flwr.common import log

from llm_qfl.federation import logs
from llm_qfl.federation.errors import LlmQflError, SetupMissingError

_LOG = logging.getLogger(__name__)

HANDLER_FAILED, SETUP_MISSING, UNFINISHED = 1001, 1002, 1003

Handler = Callable[[Message, Context], Message]


def guarded(handler: Handler) -> Handler:
    """The handler, answering an Error in place of any exception."""

    @functools.wraps(handler)
    def inner(message: Message, context: Context) -> Message:
        started, json_lines = time.monotonic(), False
        with logs.about(kind=message.metadata.message_type):
            try:
                json_lines = logs.configure()
                reply = handler(message, context)
                _LOG.info("answered", extra={logs.FIELDS: {"seconds": round(time.monotonic() - started, 3)}})
                return reply
            except SetupMissingError:
                return Message(Error(SETUP_MISSING, "the site does not have this setup"), reply_to=message)
            except Exception as error:  # noqa: BLE001  every exception must become a reply, or the node is wedged
                log(ERROR, "handler failed: %s", error, exc_info=json_lines or not isinstance(error, LlmQflError))
                reason = type(error).__name__
                if isinstance(error, LlmQflError) and error.shareable:
                    reason = f"{reason}: {error}"
                unfinished = isinstance(error, LlmQflError) and error.unfinished
                return Message(Error(UNFINISHED if unfinished else HANDLER_FAILED, reason), reply_to=message)

    return inner

"""`LLM_QFL_LOG=json`: every line an object, what it was about, and nothing that quotes a row."""

import errno
import json
import logging
import os
import re
import threading
import traceback
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_qfl.federation import logs
from llm_qfl.federation.errors import ConfigError, DataError, LanguageError, RecordError

SECRET = "patient-Meier"


def test_a_line_has_time_level_logger_and_what_it_is_about(json_logs):
    log = logging.getLogger("client_app.somewhere")
    log.info("outside")
    with logs.about(kind="train"):
        logs.add(run="r-1", site="clinic-a", round=3)
        log.warning("half of %d rows", 8, extra={logs.FIELDS: {"rows": 4, "loss": float("nan")}})
    log.info("after")
    first, second, third = json_logs()
    assert list(first) == ["time", "level", "logger", "run", "round", "site", "message"]
    assert datetime.fromisoformat(first["time"]).utcoffset().total_seconds() == 0
    assert (first["run"], first["round"], first["site"]) == (None, None, None)
    assert second | {"time": ""} == {
        "time": "", "level": "warning", "logger": "client_app.somewhere", "run": "r-1", "round": 3, "site": "clinic-a",
        "kind": "train", "message": "half of 8 rows", "rows": 4, "loss": None,
    }  # fmt: skip
    assert third | {"time": ""} == first | {"time": "", "message": "after"}


def test_a_thread_of_another_site_has_its_own_fields(json_logs):
    def work(site):
        with logs.about(site=site):
            barrier.wait()
            logging.getLogger("client_app").info("here")
            barrier.wait()

    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=work, args=(site,)) for site in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(line["site"] for line in json_logs()) == ["a", "b"]


def test_flower_s_lines_are_objects_too_and_come_once(json_logs):
    from flwr.common import log

    logs.configure()  # a second time adds nothing
    log(logging.ERROR, "handler failed: %s", RecordError("meta: expected a site"))
    log(logging.DEBUG, "not asked for")
    log(logging.INFO, "")  # an empty line for the eye
    (line,) = json_logs()
    assert (line["logger"], line["level"]) == ("flwr", "error")
    assert line["message"] == "handler failed: RecordError: meta: expected a site"


def test_other_libraries_speak_from_warning_on(json_logs):
    logging.getLogger("httpx").info("GET https://somewhere")
    logging.getLogger("qiskit").warning("slow")
    assert [line["message"] for line in json_logs()] == ["slow"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (DataError(f"row 3: expected a number, got {SECRET!r}"), None),
        (ValueError(f"could not convert {SECRET}"), None),
        (KeyError(SECRET), None),
        (UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET), None),
        (LanguageError("no room: 4 MB"), "LanguageError: no room: 4 MB"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/state/x"), "OSError: No space left on device: /state/x"),
    ],
)
def test_an_exception_whose_text_may_quote_a_row_is_told_by_class_and_place(json_logs, error, told):
    log = logging.getLogger("client_app")
    try:
        raise error
    except Exception as caught:
        log.exception("failed: %s", caught)
        log.error(caught)
        log.error("%(what)s", {"what": caught})
    lines = json_logs()
    assert SECRET not in json.dumps(lines)
    assert all(type(error).__name__ in line["message"] for line in lines)
    assert lines[0]["error"]["at"] == [lines[0]["error"]["at"][0]]
    assert lines[0]["error"]["at"][0].startswith("federation/test_logs.py:")
    if told is not None:
        assert lines[0]["error"]["is"] == told
        assert lines[0]["message"] == f"failed: {told}"


@pytest.mark.parametrize(("message", "arguments"), [("%d rows", (SECRET,)), ("%s and %s", (SECRET,)), ("%(a)s", ({},))])
def test_arguments_that_do_not_fit_are_not_shown(message, arguments):
    record = logging.LogRecord("x", logging.INFO, "", 0, message, arguments, None)
    line = json.loads(logs.JsonFormatter().format(record))
    assert line["message"] == f"{message} (its arguments do not fit)"


def test_a_traceback_in_a_message_loses_its_texts(json_logs):
    """Flower logs `traceback.format_exc()` as a message."""
    try:
        raise ValueError(f"cannot convert {SECRET}\nin two lines of {SECRET}")
    except ValueError:
        logging.getLogger("flwr").error(f"it broke\n{traceback.format_exc()}")
        logging.getLogger("flwr").error("%s", traceback.format_exc())
    first, second = json_logs()
    assert SECRET not in json.dumps([first, second])
    where = r"federation/test_logs\.py:\d+ test_a_traceback_in_a_message_loses_its_texts"
    assert re.fullmatch(rf"it broke\ntraceback: {where}", first["message"])
    assert re.fullmatch(rf"traceback: {where}", second["message"])


@given(st.text(st.characters(codec="utf-8")))
def test_whatever_a_message_holds_it_stays_on_its_line(text):
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s", (text,), None)
    line = logs.JsonFormatter().format(record)
    assert json.loads(line)["message"] == text
    assert line.isprintable()
    assert logs.is_line(line)


def test_text_is_the_default_and_changes_nothing(monkeypatch):
    for word in (None, "", "text"):
        monkeypatch.delenv(logs.VARIABLE, raising=False)
        if word is not None:
            monkeypatch.setenv(logs.VARIABLE, word)
        before = list(logging.getLogger().handlers)
        assert logs.configure() is False
        assert logging.getLogger().handlers == before


def test_another_word_is_refused(monkeypatch):
    monkeypatch.setenv(logs.VARIABLE, "jsn")
    with pytest.raises(ConfigError, match="LLM_QFL_LOG: expected one of text, json, got 'jsn'"):
        logs.configure()

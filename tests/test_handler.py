"""The handler is a handler as the standard library's are, and each of its arguments does what it says."""

from __future__ import annotations

import io
import json
import logging
import logging.config
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from pythonjsonlogger.json import JsonFormatter

import remote_logging.store
from remote_logging import ConfigurationError, RemoteHandler, SpoolError
from remote_logging.engine import Engine
from remote_logging.errors import Unreachable
from remote_logging.handler import parse_size
from remote_logging.location import Location
from remote_logging.recovery import drain
from remote_logging.spool import Spool
from remote_logging.store import FileStore, Store
from remote_logging.worker import Worker

from .support import Bucket, record_logger, run_script, wait_for

Make = Callable[..., RemoteHandler]
KIB = 1024


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes handlers, and closes them."""
    made: list[RemoteHandler] = []

    def one(url: str | os.PathLike[str], *arguments: Any, **named: Any) -> RemoteHandler:
        made.append(RemoteHandler(url, *arguments, **named))
        return made[-1]

    yield one
    for handler in made:
        handler.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A local destination, the fastest there is."""
    return tmp_path / "logs" / "training.log"


@pytest.fixture
def fresh_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """A root logger and a list of handlers for this test alone: configuring logging closes all that is there."""
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    monkeypatch.setattr(logging.root, "disabled", False)
    monkeypatch.setattr(logging, "_handlerList", [])
    monkeypatch.setattr(logging, "_handlers", weakref.WeakValueDictionary())


def spools() -> list[str]:
    root = os.environ["REMOTE_LOGGING_SPOOL_DIR"]
    return os.listdir(root) if os.path.isdir(root) else []


def refusal(file: Path, **named: Any) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        RemoteHandler(file, **named)
    assert not spools()
    return caught.value


class Outage:
    """A store that does not answer until ``over``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.over, self._open = False, remote_logging.store.open_store
        monkeypatch.setattr(remote_logging.store, "open_store", self.open_store)

    def open_store(self, location: Location) -> Store:
        if not self.over:
            raise Unreachable("connection refused", url=location.url, operation="connect", hint="Is the network up?")
        return self._open(location)


# -- configured as any handler ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh_logging")
def test_dict_config_makes_a_handler_with_formatter_filter_and_level(file: Path) -> None:
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"format": "%(levelname)s %(name)s: %(message)s"}},
            "filters": {"ours": {"name": "ours"}},
            "handlers": {
                "remote": {
                    "class": "remote_logging.RemoteHandler",
                    "url": str(file),
                    "flush_interval": 15,
                    "level": "INFO",
                    "formatter": "line",
                    "filters": ["ours"],
                }
            },
            "root": {"level": "DEBUG", "handlers": ["remote"]},
        }
    )
    logging.getLogger("ours.part").info("one")
    logging.getLogger("ours.part").debug("below the level")
    logging.getLogger("theirs").info("filtered")
    (handler,) = logging.root.handlers
    assert handler.flush() is True  # type: ignore[func-returns-value]
    assert file.read_text() == "INFO ours.part: one\n"
    handler.close()


@pytest.mark.usefixtures("fresh_logging")
def test_dict_config_again_leaves_no_record_of_the_replaced_handler_behind(file: Path) -> None:
    config: dict[str, Any] = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"remote": {"class": "remote_logging.RemoteHandler", "url": str(file), "flush_interval": None}},
        "root": {"level": "INFO", "handlers": ["remote"]},
    }
    logging.config.dictConfig(config)
    logging.info("one")
    logging.config.dictConfig(config)
    logging.info("two")
    (handler,) = logging.root.handlers
    assert handler.flush() is True  # type: ignore[func-returns-value]
    assert file.read_text() == "one\ntwo\n"
    handler.close()


@pytest.mark.usefixtures("fresh_logging")
def test_a_mistake_in_a_dict_config_is_the_cause_of_its_error(file: Path) -> None:
    handlers = {"remote": {"class": "remote_logging.RemoteHandler", "url": str(file), "mode": "x"}}
    with pytest.raises(ValueError, match="remote") as caught:
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "handlers": handlers})
    assert isinstance(caught.value.__cause__, ConfigurationError)


@pytest.mark.usefixtures("fresh_logging")
def test_file_config_makes_a_handler(file: Path, tmp_path: Path) -> None:
    (tmp_path / "logging.ini").write_text(
        f"""
[loggers]
keys = root
[handlers]
keys = remote
[formatters]
keys = line
[logger_root]
level = INFO
handlers = remote
[handler_remote]
class = remote_logging.RemoteHandler
args = ({str(file)!r}, "w")
kwargs = {{"flush_interval": None}}
formatter = line
[formatter_line]
format = %(levelname)s: %(message)s
"""
    )
    file.parent.mkdir()
    file.write_text("before\n")
    logging.config.fileConfig(tmp_path / "logging.ini", disable_existing_loggers=False)
    logging.info("one")
    (handler,) = logging.root.handlers
    assert handler.flush() is True  # type: ignore[func-returns-value]
    assert file.read_text() == "INFO: one\n"
    handler.close()


@pytest.mark.usefixtures("fresh_logging")
def test_basic_config_takes_the_handler_and_gives_it_its_format(file: Path, make: Make) -> None:
    handler = make(file)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s|%(message)s", handlers=[handler], force=True)
    logging.info("one")
    assert handler.flush()
    assert file.read_text() == "INFO|one\n"


@pytest.mark.parametrize("level", ["ERROR", "error", logging.ERROR, "40"], ids=repr)
def test_the_level_is_a_name_or_a_number(level: int | str, file: Path, make: Make) -> None:
    handler = make(file, level=level)
    assert handler.level == logging.ERROR
    logger = record_logger(handler)
    logger.warning("below")
    logger.error("above")
    assert handler.flush()
    assert file.read_text() == "above\n"


def test_a_level_of_the_users_own_is_known_by_its_name(file: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "_levelToName", dict(logging._levelToName))
    monkeypatch.setattr(logging, "_nameToLevel", dict(logging._nameToLevel))
    logging.addLevelName(25, "NOTICE")
    assert make(file, level="notice", flush_level="NOTICE").level == 25


def test_a_filter_decides_and_may_change_the_record(file: Path, make: Make) -> None:
    def mark(record: logging.LogRecord) -> bool:
        record.msg = f"[{record.msg}]"
        return "drop" not in record.msg

    handler = make(file)
    handler.addFilter(mark)
    record_logger(handler).warning("keep")
    record_logger(handler).warning("drop")
    assert handler.flush()
    assert file.read_text() == "[keep]\n"
    assert handler.stats().accepted_records == 1


@pytest.mark.skipif(sys.version_info < (3, 12), reason="a filter that returns a record is new in 3.12")
def test_a_filter_may_give_another_record(file: Path, make: Make) -> None:
    def other(record: logging.LogRecord) -> logging.LogRecord:
        return logging.makeLogRecord({"msg": f"not {record.getMessage()}", "levelno": record.levelno})

    handler = make(file)
    handler.addFilter(cast(Any, other))
    record = logging.makeLogRecord({"msg": "secret", "levelno": logging.INFO})
    handler.handle(record)
    assert handler.flush()
    assert file.read_text() == "not secret\n"
    assert record.getMessage() == "secret"  # the next handler's


def test_handle_says_whether_the_filters_passed_the_record(file: Path, make: Make) -> None:
    handler = make(file)
    handler.addFilter(logging.Filter("ours"))
    assert handler.handle(logging.makeLogRecord({"name": "ours", "levelno": logging.INFO}))
    assert not handler.handle(logging.makeLogRecord({"name": "theirs"}))


def test_a_json_formatter_of_others_gives_the_same_bytes_as_in_a_stream(file: Path, make: Make) -> None:
    handler, stream = make(file), io.StringIO()
    beside = logging.StreamHandler(stream)
    for each in (handler, beside):
        each.setFormatter(JsonFormatter("%(levelname)s %(message)s %(epoch)s"))
    record_logger(handler, beside).info("größer", extra={"epoch": 3})
    assert handler.flush()
    assert file.read_text("utf-8") == stream.getvalue()
    assert json.loads(file.read_bytes())["epoch"] == 3


# -- text and bytes -----------------------------------------------------------------------------------------------------


def test_text_is_utf_8(file: Path, make: Make) -> None:
    handler = make(file)
    record_logger(handler).info("größer als 日本 🚀")
    assert handler.flush()
    assert file.read_bytes() == "größer als 日本 🚀\n".encode()


def test_a_lone_surrogate_is_not_lost(file: Path, make: Make) -> None:
    handler = make(file)
    record_logger(handler).info("name-\udce9.txt")  # what os.listdir makes of a name that is no UTF-8
    assert handler.flush()
    assert file.read_bytes() == b"name-\\udce9.txt\n"


@pytest.mark.parametrize(
    ("encoding", "errors", "expected"),
    [
        ("latin-1", None, b"\xe9 \\u20ac\n"),
        ("latin-1", "replace", b"\xe9 ?\n"),
        ("ascii", "xmlcharrefreplace", b"&#233; &#8364;\n"),
        ("ascii", "ignore", b" \n"),
        ("cp1252", "strict", b"\xe9 \x80\n"),
    ],
)
def test_encoding_and_errors_are_as_in_open(encoding: str, errors: str | None, expected: bytes, file: Path, make: Make) -> None:
    handler = make(file, encoding=encoding, errors=errors)
    record_logger(handler).info("é €")
    assert handler.flush()
    assert file.read_bytes() == expected


def test_text_that_strict_errors_refuse_costs_that_record_only(
    file: Path, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = make(file, "a", "ascii", "strict")
    record_logger(handler).info("é")
    record_logger(handler).info("e")
    assert handler.flush()
    assert file.read_bytes() == b"e\n"
    assert "UnicodeEncodeError" in capsys.readouterr().err


def test_a_record_of_200_kb_is_intact(bucket: Bucket, make: Make) -> None:
    handler = make(bucket.url(), storage_options=bucket.options)
    text = "".join(f"{number:07}." for number in range(25_000))
    record_logger(handler).info(text)
    record_logger(handler).info("after")
    assert handler.flush()
    assert bucket.read() == f"{text}\nafter\n".encode()


def test_a_record_of_several_lines_stays_one(file: Path, make: Make) -> None:
    handler = make(file)
    record_logger(handler).info("a\nb\r\n\nc")
    record_logger(handler).info("")
    assert handler.flush()
    assert file.read_bytes() == b"a\nb\r\n\nc\n\n"
    assert handler.stats().accepted_records == 2


def test_an_exception_brings_its_traceback(file: Path, make: Make) -> None:
    handler = make(file)
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        record_logger(handler).exception("training failed")
    assert handler.flush()
    lines = file.read_text().splitlines()
    assert lines[:2] == ["training failed", "Traceback (most recent call last):"]
    assert lines[-1] == "ZeroDivisionError: division by zero"


class NullTerminated(RemoteHandler):
    terminator = "\0"


def test_a_subclass_may_end_records_in_its_own_way(file: Path) -> None:
    handler = NullTerminated(file)
    for text in ("one", "two"):
        record_logger(handler).info(text)
    assert handler.flush()
    assert file.read_bytes() == b"one\0two\0"
    handler.close()


@pytest.mark.parametrize("terminator", ["", "|", "\r\n", " -- \n"])
def test_a_terminator_set_on_the_handler_ends_each_record(terminator: str, file: Path, make: Make) -> None:
    handler = make(file)
    handler.terminator = terminator
    for text in ("one", "two"):
        record_logger(handler).info(text)
    assert handler.flush()
    assert file.read_bytes().decode() == f"one{terminator}two{terminator}"


@pytest.mark.usefixtures("fresh_logging")
def test_dict_config_can_set_the_terminator(file: Path) -> None:
    handlers = {"remote": {"class": "remote_logging.RemoteHandler", "url": str(file), ".": {"terminator": "|"}}}
    root = {"level": "INFO", "handlers": ["remote"]}
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "handlers": handlers, "root": root})
    logging.info("one")
    (handler,) = logging.root.handlers
    assert handler.flush() is True  # type: ignore[func-returns-value]
    assert file.read_bytes() == b"one|"
    handler.close()


def test_a_terminator_set_on_the_handler_is_left_alone_by_the_next_process(file: Path) -> None:
    # The next process looks at the byte before its first record, to end what a killed one may have left unfinished.
    script = (
        "import logging, os, sys, remote_logging\n"
        "handler = remote_logging.RemoteHandler(sys.argv[1], flush_interval=None)\n"
        "handler.terminator = '|'\n"
        "handler.emit(logging.makeLogRecord({'msg': sys.argv[2], 'levelno': 20}))\n"
        "sys.argv[2] == 'one' and os._exit(0)\n"
        "handler.close()\n"
    )
    for text in ("one", "two"):
        run_script(script, file, text)
    assert file.read_bytes() == b"one|two|"


# -- errors while logging -----------------------------------------------------------------------------------------------


class Broken(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        if record.msg == "bad":
            raise LookupError("no such field")
        return super().format(record)


def test_a_failing_formatter_is_reported_by_handle_error_and_the_program_goes_on(
    file: Path, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = make(file)
    handler.setFormatter(Broken())
    for text in ("good", "bad", "good again"):
        record_logger(handler).info(text)
    assert "--- Logging error ---" in (shown := capsys.readouterr().err) and "no such field" in shown
    assert handler.flush()
    assert file.read_text() == "good\ngood again\n"


def test_raise_exceptions_off_silences_a_failing_formatter(
    file: Path, make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    handler = make(file)
    handler.setFormatter(Broken())
    for text in ("bad", "good"):
        record_logger(handler).info(text)
    assert handler.flush()
    assert file.read_text() == "good\n"
    assert capsys.readouterr().err == ""


def test_handle_error_of_a_subclass_gets_the_record(file: Path) -> None:
    class Watched(RemoteHandler):
        def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
            failed.append((record.msg, sys.exc_info()[0]))

    failed: list[tuple[object, object]] = []
    handler = Watched(file)
    record_logger(handler).info("%d epochs", "no number")
    handler.close()
    assert failed == [("%d epochs", TypeError)]


def test_a_store_that_fails_harms_nobody_and_nothing_is_lost(
    bucket: Bucket, make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outage = Outage(monkeypatch)
    handler = make(bucket.url(), storage_options=bucket.options)
    record_logger(handler).info("one")
    handler.trigger()
    wait_for(lambda: handler.stats().failures)
    stats = handler.stats()
    assert stats.last_error and "connection refused" in stats.last_error
    assert stats.flushes == 0 and stats.last_success is None and stats.pending_records == 1
    outage.over = True
    assert handler.flush()
    assert bucket.read() == b"one\n"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "connection refused" in said[0]
    assert "Is the network up?" in said[0] and "Nothing is lost" in said[0]
    assert "works again" in said[1]


def test_a_flush_whose_time_is_up_says_so(bucket: Bucket, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    outage = Outage(monkeypatch)
    handler = make(bucket.url(), storage_options=bucket.options)
    record_logger(handler).info("one")
    assert handler.flush(timeout=0.01) is False
    outage.over = True
    assert handler.flush(timeout=30.0) is True
    assert bucket.read() == b"one\n"


def test_a_flush_waits_also_after_one_whose_time_was_up(bucket: Bucket, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    outage = Outage(monkeypatch)
    handler = make(bucket.url(), storage_options=bucket.options)
    record_logger(handler).info("one")
    assert not handler.flush(timeout=0.01)
    outage.over = True
    assert handler.flush()


def test_close_waits_also_after_a_flush_whose_time_was_up(bucket: Bucket, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    outage = Outage(monkeypatch)
    handler = make(bucket.url(), storage_options=bucket.options)
    record_logger(handler).info("one")
    assert not handler.flush(timeout=0.01)
    outage.over = True
    handler.close()
    assert bucket.read() == b"one\n"


@pytest.mark.parametrize("group", ["client_kwargs", "config_kwargs", "s3_additional_kwargs"])
def test_an_empty_group_of_storage_options_is_as_good_as_none(group: str, bucket: Bucket, make: Make) -> None:
    options = {**bucket.options, group: None}  # s3fs's own default
    handler = make(bucket.url(), storage_options=options, close_timeout=1.0)
    record_logger(handler).info("one")
    handler.trigger()
    wait_for(lambda: handler.stats().failures or handler.stats().flushes)
    assert handler.stats().last_error is None
    assert bucket.read() == b"one\n"


# -- mode ---------------------------------------------------------------------------------------------------------------


def test_mode_a_continues_a_file(file: Path, make: Make) -> None:
    file.parent.mkdir()
    file.write_text("before\n")
    handler = make(file)
    record_logger(handler).info("after")
    assert handler.flush()
    assert file.read_text() == "before\nafter\n"


def test_mode_w_replaces_a_file_with_the_first_flush(file: Path, make: Make) -> None:
    file.parent.mkdir()
    file.write_text("before\n")
    handler = make(file, "w", flush_interval=None)
    record_logger(handler).info("one")
    assert file.read_text() == "before\n"  # never deleted first
    assert handler.flush()
    assert file.read_text() == "one\n"
    record_logger(handler).info("two")
    assert handler.flush()
    assert file.read_text() == "one\ntwo\n"


def test_mode_w_without_a_record_replaces_nothing(file: Path, make: Make) -> None:
    file.parent.mkdir()
    file.write_text("before\n")
    make(file, "w").close()
    assert file.read_text() == "before\n"


def test_mode_w_makes_a_file_that_is_not_there(file: Path, make: Make) -> None:
    handler = make(file.as_uri(), "w")
    record_logger(handler).info("one")
    handler.close()
    assert file.read_text() == "one\n"


def test_a_record_after_close_does_not_replace_again(file: Path, make: Make) -> None:
    handler = make(file, "w")
    record_logger(handler).info("one")
    handler.close()
    record_logger(handler).info("two")
    handler.close()
    assert file.read_text() == "one\ntwo\n"


def test_mode_a_continues_an_object_on_s3(bucket: Bucket, make: Make) -> None:
    bucket.write(b"before\n")
    handler = make(bucket.url(), storage_options=bucket.options)
    record_logger(handler).info("after")
    assert handler.flush()
    assert bucket.read() == b"before\nafter\n"


def test_mode_w_replaces_an_object_on_s3(bucket: Bucket, make: Make) -> None:
    bucket.write(b"before\n")
    handler = make(bucket.url(), mode="w", storage_options=bucket.options)
    for text in ("one", "two"):
        record_logger(handler).info(text)
        assert handler.flush()
    assert bucket.read() == b"one\ntwo\n"


# -- arguments and their environment twins ------------------------------------------------------------------------------

# name: (a wrong value, a good one)
TWINS: dict[str, tuple[str, Any]] = {
    "mode": ("x", "w"),
    "encoding": ("klingon", "latin-1"),
    "errors": ("guess", "ignore"),
    "storage_options": ("{", {}),
    "flush_interval": ("-1", 2.5),
    "flush_level": ("LOUD", 10),
    "spool_max_bytes": ("many", 10**6),
    "fsync": ("perhaps", True),
    "close_timeout": ("-1", 2.5),
    "level": ("LOUD", 10),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_wrong_value_in_the_environment_is_refused(name: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"REMOTE_LOGGING_{name.upper()}", TWINS[name][0])
    assert refusal(file).hint


@pytest.mark.parametrize("name", TWINS)
def test_an_argument_wins_over_the_environment(name: str, file: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"REMOTE_LOGGING_{name.upper()}", TWINS[name][0])
    make(file, **{name: TWINS[name][1]})


def test_the_mode_may_come_from_the_environment(file: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTE_LOGGING_MODE", "w")
    file.parent.mkdir()
    file.write_text("before\n")
    handler = make(file)
    record_logger(handler).info("one")
    assert handler.flush()
    assert file.read_text() == "one\n"


def test_encoding_and_errors_may_come_from_the_environment(file: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTE_LOGGING_ENCODING", "latin-1")
    monkeypatch.setenv("REMOTE_LOGGING_ERRORS", "replace")
    handler = make(file)
    record_logger(handler).info("é €")
    assert handler.flush()
    assert file.read_bytes() == b"\xe9 ?\n"


@pytest.mark.parametrize("text", ["none", "None", "off", "null"])
def test_none_in_the_environment_is_no_value(text: str, file: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ERRORS", "STORAGE_OPTIONS", "FLUSH_INTERVAL", "FLUSH_LEVEL", "FSYNC"):
        monkeypatch.setenv(f"REMOTE_LOGGING_{name}", text)
    handler = make(file)
    assert (handler.errors, handler.flush_level) == ("backslashreplace", None)


def test_storage_options_may_come_as_json_from_the_environment(
    bucket: Bucket, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMOTE_LOGGING_STORAGE_OPTIONS", json.dumps(bucket.options))
    handler = make(bucket.url())
    record_logger(handler).info("one")
    assert handler.flush()
    assert bucket.read() == b"one\n"


def test_storage_options_may_be_a_json_text(bucket: Bucket, make: Make) -> None:
    handler = make(bucket.url(), storage_options=json.dumps(bucket.options))  # what an ini file can give
    record_logger(handler).info("one")
    assert handler.flush()
    assert bucket.read() == b"one\n"


@pytest.mark.parametrize("value", [0.01, "0.01"], ids=repr)
def test_the_timer_ships_without_being_asked(value: object, file: Path, make: Make) -> None:
    handler = make(file, flush_interval=value, flush_level=None)
    record_logger(handler).info("one")
    wait_for(file.exists)


def test_the_interval_may_come_from_the_environment(file: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTE_LOGGING_FLUSH_INTERVAL", "0.01")
    record_logger(make(file)).info("one")
    wait_for(file.exists)


def test_without_an_interval_nothing_ships_until_asked(file: Path, make: Make, tmp_path: Path) -> None:
    quiet, timed = make(file, flush_interval=None), make(tmp_path / "timed.log", flush_interval=0.01)
    record_logger(quiet, timed).info("one")
    wait_for(lambda: timed.stats().flushes)
    assert not file.exists() and quiet.stats().pending_records == 1
    assert quiet.flush()
    assert file.read_text() == "one\n"


def test_only_a_record_of_flush_level_or_above_ships_at_once(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMOTE_LOGGING_FLUSH_LEVEL", "critical")
    levels: dict[str, Any] = {"never": None, "above": logging.ERROR, "at": "WARNING", "twin": "from the environment"}
    handlers = {
        name: make(tmp_path / name, flush_interval=None, **({} if name == "twin" else {"flush_level": level}))
        for name, level in levels.items()
    }
    record_logger(*handlers.values()).warning("one")
    wait_for(lambda: handlers["at"].stats().flushes)
    assert [name for name in levels if (tmp_path / name).exists()] == ["at"]
    record_logger(*handlers.values()).critical("two")
    wait_for(lambda: handlers["above"].stats().flushes and handlers["twin"].stats().flushes)
    assert not (tmp_path / "never").exists()


def test_the_default_flush_level_is_error(file: Path, make: Make) -> None:
    record_logger(make(file, flush_interval=None)).error("one")
    wait_for(file.exists)


@pytest.mark.parametrize("given", [True, "true", "1", "Yes"])
def test_fsync_syncs_each_record_before_emit_returns(
    given: object, file: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMOTE_LOGGING_FSYNC", str(given))
    synced: list[int] = []
    for named in ({"fsync": given}, {}):
        handler = make(file, flush_interval=None, **named)
        synced.clear()
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", synced.append)
            record_logger(handler).info("one")
            record_logger(handler).info("two")
        assert len(synced) == 2
        handler.close()


@pytest.mark.parametrize("given", [False, "false", "0", "no"])
def test_no_record_is_synced_without_fsync(given: object, file: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = make(file, flush_interval=None, fsync=given)
    synced: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", synced.append)
        record_logger(handler).info("one")
    assert not synced


@pytest.mark.parametrize("word", ["on", "off"])
def test_fsync_takes_the_words_for_a_boolean_that_a_url_takes(word: str, file: Path, make: Make) -> None:
    make(file, fsync=word)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (100_000, 100_000),
        (1e6, 1_000_000),
        ("100000", 100_000),
        ("64KiB", 65_536),
        ("64 kib", 65_536),
        ("70kB", 70_000),
        ("1.5MB", 1_500_000),
        ("1M", 1_000_000),
        ("2 MiB", 2 * 2**20),
        ("1GiB", 2**30),
        ("1TiB", 2**40),
        ("  100000 B ", 100_000),
    ],
    ids=repr,
)
def test_a_size_is_a_number_or_a_text(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "wrong",
    ["", "many", "-1", "64 KiB or so", "1,000,000", "1e6", "KiB", "1PiB", None, True, float("nan"), 65_535, "63KiB", 0, "0.1"],
    ids=repr,
)
def test_a_size_that_is_none_or_too_small_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_size(wrong)
    assert str(wrong) in str(caught.value) and "Give" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "value", "reason", "remedy"),
    [
        ("mode", "x", "mode is 'x'", "Give 'a' (continue the object) or 'w' (replace it)"),
        ("mode", None, "mode is None", "Give 'a'"),
        ("encoding", "klingon", "encoding 'klingon' is unknown", "such as 'utf-8'"),
        ("encoding", "rot13", "encoding 'rot13' is unknown", "such as 'utf-8'"),
        ("encoding", 8, "encoding 8 is unknown", "such as 'utf-8'"),
        ("errors", "guess", "errors", "such as 'backslashreplace'"),
        ("flush_interval", -1, "flush_interval is -1", "Give a positive number of seconds"),
        ("flush_interval", 0, "flush_interval is 0", "Give a positive number of seconds"),
        ("flush_interval", True, "flush_interval is True", "Give a positive number of seconds"),
        ("flush_interval", "soon", "flush_interval is 'soon'", "Give a positive number of seconds"),
        ("flush_interval", float("inf"), "flush_interval is inf", "Give a positive number of seconds"),
        ("flush_interval", float("nan"), "flush_interval is nan", "Give a positive number of seconds"),
        ("close_timeout", -0.5, "close_timeout is -0.5", "Give a positive number of seconds"),
        ("close_timeout", None, "close_timeout is None", "Give a positive number of seconds"),
        ("level", "LOUD", "level is 'LOUD'", "Give a level's name, such as 'ERROR', or its number"),
        ("level", 1.5, "level is 1.5", "Give a level's name"),
        ("flush_level", "LOUD", "flush_level is 'LOUD'", "Give a level's name"),
        ("flush_level", True, "flush_level is True", "Give a level's name"),
        ("spool_max_bytes", "many", "'many' is no size", "such as '64MiB'"),
        ("spool_max_bytes", 1000, "spool_max_bytes is 1000", "Give 64KiB or more"),
        ("fsync", "perhaps", "fsync is 'perhaps'", "Give true or false"),
        ("storage_options", "{", "storage_options is no JSON object", 'Write it like {"endpoint_url"'),
        ("storage_options", "[]", "storage_options is no JSON object", 'Write it like {"endpoint_url"'),
        ("storage_options", 5, "storage_options is a int", "Give a dict"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_reason_and_its_remedy(
    name: str, value: object, reason: str, remedy: str, file: Path
) -> None:
    error = refusal(file, **{name: value})
    assert reason in str(error) and remedy in str(error)


def test_broken_json_is_not_repeated_because_it_holds_secrets(file: Path) -> None:
    assert "sesame" not in str(refusal(file, storage_options='{"secret": "sesame"'))


# -- the spool directory ------------------------------------------------------------------------------------------------


def test_the_spool_lies_where_the_argument_says(file: Path, make: Make, tmp_path: Path) -> None:
    make(file, spool_dir=tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") and not spools()


def test_the_spool_lies_in_the_users_state_directory_by_default(
    file: Path, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REMOTE_LOGGING_SPOOL_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    make(file)
    assert next((tmp_path / "home").rglob("destination.json"))


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_in_the_place_of_the_spool_directory_is_a_spool_error(below: str, file: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")  # not by chmod: root may write anywhere
    with pytest.raises(SpoolError) as caught:
        RemoteHandler(file, spool_dir=tmp_path / "taken" / below)
    assert str(tmp_path / "taken") in caught.value.reason and "cannot be created" in caught.value.reason
    assert "spool_dir (or REMOTE_LOGGING_SPOOL_DIR)" in str(caught.value)
    assert isinstance(caught.value, OSError)


def test_a_clean_end_leaves_no_spool(file: Path, make: Make) -> None:
    handler = make(file)
    record_logger(handler).info("one")
    handler.close()
    assert not spools()


def test_what_a_full_spool_dropped_is_counted_and_told_in_its_place(file: Path, make: Make) -> None:
    handler = make(file, spool_max_bytes="64KiB", flush_interval=None)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger, text = record_logger(handler), "x" * (KIB - 6)
    for _ in range(70):  # 64 fill the spool to its last byte, so that not even a marker fits
        logger.info(text)
    stats = handler.stats()
    assert (stats.accepted_records, stats.accepted_bytes) == (64, 64 * KIB)
    assert (stats.dropped_records, stats.dropped_bytes) == (6, 6 * KIB)
    assert handler.flush()
    logger.info("after")
    assert handler.flush()
    *before, marker, after = file.read_text().splitlines()
    assert before == [f"INFO {text}"] * 64
    assert marker == "WARNING 6 records (6144 bytes) were dropped here: the spool was full"
    assert after == "INFO after"
    assert handler.stats().dropped_records == 6


def test_what_was_dropped_last_is_told_without_another_record(file: Path, make: Make) -> None:
    handler = make(file, spool_max_bytes="64KiB", flush_interval=None)
    for _ in range(70):
        record_logger(handler).info("x" * (KIB - 1))
    handler.close()
    assert file.read_text().splitlines()[-1] == "6 records (6144 bytes) were dropped here: the spool was full"


def test_all_that_was_dropped_is_told_where_a_marker_fits_and_a_record_does_not(file: Path, make: Make) -> None:
    handler = make(file, spool_max_bytes="64KiB", flush_interval=None)
    for _ in range(5):
        record_logger(handler).info("x" * 20_000)
        record_logger(handler).info("short")
    assert handler.flush() and handler.flush()
    told = [line.split()[0] for line in file.read_text().splitlines() if "dropped here" in line]
    assert sum(map(int, told)) == handler.stats().dropped_records == 2


def test_what_was_dropped_while_s3_was_down_is_told_in_the_object(
    bucket: Bucket, make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outage = Outage(monkeypatch)
    handler = make(bucket.url(), storage_options=bucket.options, spool_max_bytes="64KiB", flush_interval=None)
    logger = record_logger(handler)
    for _ in range(70):
        logger.info("x" * (KIB - 1))
    handler.trigger()
    wait_for(lambda: handler.stats().failures)
    assert handler.stats().dropped_records == 6
    outage.over = True
    assert handler.flush()
    logger.info("after")
    assert handler.flush()
    *before, marker, after = bucket.read().decode().splitlines()
    assert len(before) == 64 and marker.startswith("6 records (6144 bytes) were dropped") and after == "after"
    assert "spool_max_bytes" in capsys.readouterr().err


def test_a_full_spool_is_full_for_the_next_process_too(file: Path, make: Make) -> None:
    # Else a program that restarts again and again, its store down, fills the disk by a record each time.
    script = (
        "import logging, os, sys, remote_logging\n"
        "handler = remote_logging.RemoteHandler(sys.argv[1], spool_max_bytes='64KiB', flush_interval=None)\n"
        f"for _ in range(64): handler.emit(logging.makeLogRecord({{'msg': 'x' * {KIB - 1}, 'levelno': 20}}))\n"
        "os._exit(0)\n"
    )
    run_script(script, file)
    handler = make(file, spool_max_bytes="64KiB", flush_interval=None)
    record_logger(handler).info("x" * (KIB - 1))
    assert (handler.stats().accepted_records, handler.stats().dropped_records) == (0, 1)


@pytest.mark.parametrize(("length", "accepted"), [(65_535, 1), (65_536, 0)])
def test_the_first_record_fits_the_spool_to_the_byte(length: int, accepted: int, file: Path, make: Make) -> None:
    handler = make(file, spool_max_bytes=65_536, flush_interval=None)
    record_logger(handler).info("x" * length)
    assert handler.stats().accepted_records == accepted


def test_the_limit_of_the_spool_may_come_from_the_environment(file: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTE_LOGGING_SPOOL_MAX_BYTES", "64KiB")
    handler = make(file, flush_interval=None)
    record_logger(handler).info("x" * 70_000)
    assert handler.stats().dropped_records == 1


# -- what a handler tells -----------------------------------------------------------------------------------------------


def test_stats_tell_what_was_accepted_and_is_pending(file: Path, make: Make) -> None:
    handler = make(file, flush_interval=None)
    for text in ("one", "two", "größer"):
        record_logger(handler).info(text)
    stats = handler.stats()
    assert (stats.accepted_records, stats.accepted_bytes) == (3, 17)
    assert (stats.pending_records, stats.pending_bytes, stats.shipped_records) == (3, 17, 0)
    assert (stats.dropped_records, stats.dropped_bytes) == (0, 0)
    assert (stats.flushes, stats.failures, stats.uploaded_bytes) == (0, 0, 0)
    assert stats.last_success is None and stats.last_error is None
    assert stats.lag > 0


def test_stats_tell_what_was_shipped(file: Path, make: Make) -> None:
    handler, before = make(file, flush_interval=None), time.time()
    for text in ("one", "two"):
        record_logger(handler).info(text)
        assert handler.flush()
    record_logger(handler).info("three")
    stats = handler.stats()
    assert (stats.accepted_records, stats.shipped_records, stats.pending_records) == (3, 2, 1)
    assert (stats.accepted_bytes, stats.pending_bytes, stats.uploaded_bytes) == (14, 6, 8)
    assert (stats.flushes, stats.failures) == (2, 0)
    assert stats.last_success is not None and before <= stats.last_success <= time.time()
    assert handler.flush()
    stats = handler.stats()
    assert (stats.shipped_records, stats.pending_records, stats.pending_bytes, stats.lag) == (3, 0, 0, 0.0)


def test_stats_of_a_closed_handler_tell_of_its_life_and_open_nothing(file: Path, make: Make) -> None:
    handler = make(file)
    record_logger(handler).info("one")
    handler.close()
    stats = handler.stats()
    assert (stats.accepted_records, stats.shipped_records, stats.pending_bytes) == (1, 1, 0)
    assert not spools()


def test_the_repr_shows_destination_backlog_and_level(file: Path, make: Make) -> None:
    handler = make(file, flush_interval=None, level="INFO")
    record_logger(handler).info("one")
    assert repr(handler) == f"<RemoteHandler file://{file} (INFO) 4 bytes pending>"
    handler.close()
    assert repr(handler) == f"<RemoteHandler {file} (INFO) closed>"


def test_the_repr_shows_no_secret(make: Make) -> None:
    options = {"key": "sesame", "secret": "sesame", "endpoint_url": "http://user:sesame@localhost:1"}
    handler = make("s3://bucket/a.log?endpoint_url=http://user:sesame@localhost:1", storage_options=options)
    assert repr(handler).startswith("<RemoteHandler s3://bucket/a.log ") and "sesame" not in repr(handler)
    handler.close()
    assert repr(handler).startswith("<RemoteHandler s3://bucket/a.log ") and "sesame" not in repr(handler)


# -- life ---------------------------------------------------------------------------------------------------------------


def test_close_ships_and_may_come_twice(file: Path, make: Make) -> None:
    handler = make(file)
    record_logger(handler).info("one")
    handler.close()
    handler.close()
    assert file.read_text() == "one\n"
    assert handler.flush()
    assert not spools()


def test_a_record_after_close_is_accepted_and_shipped(file: Path, make: Make) -> None:
    handler = make(file)
    for text in ("one", "two", "three"):
        record_logger(handler).info(text)
        handler.close()
    assert file.read_text() == "one\ntwo\nthree\n"
    assert not spools()


def test_a_record_that_is_being_formatted_while_the_handler_is_closed_is_accepted(file: Path, make: Make) -> None:
    class Closing(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            if record.msg == "two":
                handler.close()
            return super().format(record)

    handler = make(file)
    handler.setFormatter(Closing())
    for text in ("one", "two", "three"):
        record_logger(handler).info(text)
    handler.close()
    assert file.read_text() == "one\ntwo\nthree\n"


def test_a_record_whose_handler_is_closed_by_another_thread_meanwhile_is_accepted(
    file: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Engine.append

    def closed_before(engine: Engine, data: bytes, *, urgent: bool) -> Any:
        monkeypatch.setattr(Engine, "append", append)
        handler.close()
        return append(engine, data, urgent=urgent)

    handler = make(file)
    record_logger(handler).info("one")
    monkeypatch.setattr(Engine, "append", closed_before)
    for text in ("two", "three"):
        record_logger(handler).info(text)
    handler.close()
    assert file.read_text() == "one\ntwo\nthree\n"


def test_a_handler_without_records_flushes_at_once_and_has_no_thread(file: Path, make: Make) -> None:
    threads = set(threading.enumerate())
    handler = make(file)
    assert handler.flush() is True
    assert set(threading.enumerate()) == threads
    handler.close()
    assert set(threading.enumerate()) == threads
    assert not file.exists()


def test_the_thread_ends_with_the_handler(file: Path, make: Make) -> None:
    threads = set(threading.enumerate())
    handler = make(file)
    record_logger(handler).info("one")
    assert [thread.name for thread in set(threading.enumerate()) - threads] == ["remote_logging"]
    handler.close()
    assert set(threading.enumerate()) == threads


def test_an_empty_variable_of_the_environment_is_as_good_as_none(
    file: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMOTE_LOGGING_FLUSH_LEVEL", "")
    assert make(file).flush_level == logging.ERROR


def test_close_does_not_wait_for_a_thread_that_goes_on_for_somebody_else(
    file: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = make(file, flush_interval=None)
    record_logger(handler).info("one")
    assert handler.flush()
    others: list[RemoteHandler] = []
    ask = Worker.ask

    def attached_meanwhile(worker: Worker) -> None:
        if not others:
            others.append(make(file))
        ask(worker)

    monkeypatch.setattr(Worker, "ask", attached_meanwhile)
    closing = threading.Thread(target=handler.close)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()  # close_timeout is 30 s
    assert others


def test_a_closed_handler_leaves_no_descriptor_open(file: Path) -> None:
    descriptors = []
    for number in range(3):
        handler = RemoteHandler(file, flush_interval=None)
        record_logger(handler).info("%d", number)
        handler.close()
        descriptors.append(len(list(Path("/proc/self/fd").iterdir())))
    assert descriptors[0] == descriptors[1] == descriptors[2]


def test_a_signal_handler_that_flushes_in_the_middle_of_a_flush_of_its_own_thread_ships_nothing_twice(
    file: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")  # as at the interpreter's exit: the caller ships

    handler = make(file, flush_interval=None)
    logger = record_logger(handler)
    write = FileStore._write

    def interrupted(store: FileStore, target: object, data: bytes) -> None:
        monkeypatch.setattr(FileStore, "_write", write)
        os.kill(os.getpid(), signal.SIGUSR1)
        write(store, target, data)

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    monkeypatch.setattr(FileStore, "_write", interrupted)
    answers: list[bool] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: answers.append(handler.flush()))
    try:
        logger.info("one")
        assert handler.flush()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert answers == [False]
    assert file.read_text() == "one\n"


@pytest.mark.parametrize("first", [0, 1])
def test_two_handlers_of_one_url_share_a_spool_and_close_in_any_order(first: int, file: Path, make: Make) -> None:
    handlers = [make(file, flush_interval=None), make(file.as_uri(), flush_interval=None)]
    assert len(spools()) == 1
    logger = record_logger(*handlers)
    logger.info("one")
    assert [handler.stats().accepted_records for handler in handlers] == [2, 2]
    handlers[first].close()
    assert not file.exists()  # only the last one's close waits
    logger.removeHandler(handlers[first])
    logger.info("two")
    assert handlers[1 - first].flush()
    assert file.read_text() == "one\none\ntwo\n"
    handlers[1 - first].close()
    assert not spools()


def at(year: int, text: str) -> logging.LogRecord:
    created = time.mktime((year, 7, 1, 12, 0, 0, 0, 0, -1))
    return logging.makeLogRecord({"msg": text, "levelno": logging.INFO, "created": created})


def test_a_time_field_rolls_over_to_the_next_object_when_it_changes(tmp_path: Path, make: Make) -> None:
    handler = make(tmp_path / "{time:%Y}" / "training.log", flush_interval=None)
    for year, text in ((2031, "one"), (2031, "two"), (2032, "three"), (2033, "four")):
        handler.handle(at(year, text))
    assert handler.flush()
    # What was left behind is drained by its own thread: nobody waits for it at midnight.
    expected = {"2031": "one\ntwo\n", "2032": "three\n", "2033": "four\n"}
    wait_for(lambda: {path.parent.name: path.read_text() for path in tmp_path.glob("*/training.log")} == expected)


def test_a_late_record_goes_to_the_object_of_its_time(tmp_path: Path, make: Make) -> None:
    handler = make(tmp_path / "{time:%Y}.log", flush_interval=None)
    for year, text in ((2031, "one"), (2032, "two"), (2031, "late"), (2032, "three")):
        handler.handle(at(year, text))
    assert handler.flush()
    expected = {"2031": "one\nlate\n", "2032": "two\nthree\n"}
    wait_for(lambda: {path.stem: path.read_text() for path in tmp_path.glob("*.log")} == expected)


def test_a_sweep_in_the_middle_of_a_clean_end_leaves_no_spool(file: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # Another engine of the same template, as after a time field has changed, looks for leftovers at any moment.
    erase = Spool.erase

    def swept_before(spool: Spool) -> None:
        monkeypatch.setattr(Spool, "erase", erase)
        drain(spool.directory)
        erase(spool)

    monkeypatch.setattr(Spool, "erase", swept_before)
    handler = make(file, flush_interval=None)
    record_logger(handler).info("one")
    handler.close()
    assert Spool.erase is erase
    assert not spools()


# -- imports ------------------------------------------------------------------------------------------------------------

HEAVY = ("fsspec", "s3fs", "botocore", "aiohttp", "asyncio", "lightning", "torch", "concurrent.futures", "dataclasses")
NEW = f"[name for name in {HEAVY} if name in sys.modules and name not in before]"


def test_the_package_imports_nothing_heavy() -> None:
    # (before: what measures coverage in a subprocess has its own imports)
    script = f"import sys; before = set(sys.modules); import remote_logging; print({NEW})"
    done = run_script(script)
    assert done.stdout == "[]\n"


def test_neither_a_handler_nor_its_first_record_imports_a_store(tmp_path: Path) -> None:
    script = (
        "import logging, os, sys\n"
        "before = set(sys.modules)\n"
        "import remote_logging\n"
        "handler = remote_logging.RemoteHandler('s3://bucket/a.log', flush_interval=None)\n"
        "handler.emit(logging.makeLogRecord({'msg': 'one', 'levelno': 20}))\n"
        f"print({NEW}, flush=True)\n"
        "os._exit(0)\n"
    )
    assert run_script(script).stdout == "[]\n"


def test_the_store_is_imported_on_the_thread_that_ships(file: Path) -> None:
    script = (
        "import logging, sys, threading, remote_logging\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name in {HEAVY}: print(name, threading.current_thread().name)\n"
        "sys.meta_path.insert(0, Watch())\n"
        "handler = remote_logging.RemoteHandler(sys.argv[1])\n"
        "handler.emit(logging.makeLogRecord({'msg': 'one', 'levelno': 20}))\n"
        "assert handler.flush()\n"
        "print('done')\n"
    )
    imported = [line.split() for line in run_script(script, file).stdout.splitlines()]
    *before, _ = imported
    assert ["fsspec", "remote_logging"] in before
    assert {thread for _, thread in before} == {"remote_logging"}

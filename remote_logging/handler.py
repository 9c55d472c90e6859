"""``RemoteHandler``: the ``logging.Handler`` that users configure."""

from __future__ import annotations

import codecs
import contextlib
import logging
import os
import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .appender import Left
from .engine import Engine
from .errors import ConfigurationError, RemoteLoggingError
from .location import BOOLEANS, Template
from .registry import REGISTRY, held_by_logging
from .report import shipping

if TYPE_CHECKING:
    from .stats import Stats

_UNSET: Any = object()
SMALLEST_SPOOL = 64 * 1024


class RemoteHandler(logging.Handler):
    """Writes each record to a local spool file and ships it to one object of a store.

    When ``emit`` returns, the record is in the kernel: SIGKILL or an OOM kill right after loses nothing of it. A background
    thread ships it; neither a slow nor an unreachable store stalls the program, and no failure of a store raises into it.

    Every argument is plain data, for ``dictConfig``, ``fileConfig`` or YAML. Every argument but ``url`` takes its default from
    the environment variable ``REMOTE_LOGGING_<NAME>`` where that is set (``storage_options`` as JSON, ``none`` for ``None``).

    Args:
        url: where to: ``s3://bucket/folder/name.log``, a local path, ``~/...``, ``file://`` or ``memory://``. It may hold the
            fields ``{host} {pid} {rank} {local_rank} {run} {time:%Y-%m-%d}``, and query parameters that become storage options.
        mode: ``"a"`` (default) continues the object, ``"w"`` replaces it with the first flush that has something to ship;
            objects that a time field rolls over to are continued.
        encoding: of the object; ``"utf-8"``.
        errors: how text that cannot be encoded is handled, as in ``open``; ``None`` means ``"backslashreplace"``, which loses
            none.
        storage_options: what fsspec's filesystem takes, such as ``{"key": ..., "secret": ..., "endpoint_url": ...}``.
        flush_interval: seconds between two timed flushes; 15.0. ``None`` switches the timer off. A flush that takes long
            stretches it: flushing takes a tenth of the time at most.
        flush_level: a record of this level or above asks for a flush at once; ``"ERROR"``. ``None`` switches that off.
        spool_dir: folder that holds the spools; the user's state directory. It must be on a local disk.
        spool_max_bytes: bytes that may wait, as a number or like ``"64MiB"``; ``"1GiB"``. Past it new records are dropped and
            counted, and a line in the log says how many as soon as there is room.
        fsync: sync each record to the disk before ``emit`` returns; ``False``.
        close_timeout: seconds that ``close``, ``flush`` and the interpreter's exit wait for the store at most; 30.0.
        level: as in ``logging.Handler``.

    Attributes:
        terminator: what ends each record, ``"\\n"``; the same for all handlers of one URL.

    Raises:
        ConfigurationError: an argument is wrong; the message says what to do.
        SpoolError: the spool directory cannot be used.
    """

    terminator = "\n"

    def __init__(
        self,
        url: str | os.PathLike[str],
        mode: str = _UNSET,
        encoding: str = _UNSET,
        errors: str | None = _UNSET,
        *,
        storage_options: Mapping[str, Any] | None = _UNSET,
        flush_interval: float | None = _UNSET,
        flush_level: int | str | None = _UNSET,
        spool_dir: str | os.PathLike[str] | None = _UNSET,
        spool_max_bytes: int | str = _UNSET,
        fsync: bool = _UNSET,
        close_timeout: float = _UNSET,
        level: int | str = _UNSET,
    ) -> None:
        self._engine: Engine | None = None
        super().__init__(_level("level", _default("level", level, "NOTSET")))
        self.mode = _default("mode", mode, "a")
        if self.mode not in ("a", "w"):
            raise ConfigurationError(f"mode is {self.mode!r}", hint="Give 'a' (continue the object) or 'w' (replace it)")
        self.encoding = _codec(_default("encoding", encoding, "utf-8"))
        self.errors = _error_handler(_default("errors", errors, None) or "backslashreplace")
        flush_level = _default("flush_level", flush_level, "ERROR")
        self.flush_level = None if flush_level is None else _level("flush_level", flush_level)
        self._urgent_from: float = float("inf") if self.flush_level is None else self.flush_level
        self._template = Template(url, _options(_default("storage_options", storage_options, None)))
        interval = _default("flush_interval", flush_interval, 15.0)
        root = _default("spool_dir", spool_dir, None)
        self._root = os.fspath(root) if root else None
        self._limits = {
            "interval": None if interval is None else _seconds("flush_interval", interval),
            "close_timeout": _seconds("close_timeout", _default("close_timeout", close_timeout, 30.0)),
            "max_bytes": parse_size(_default("spool_max_bytes", spool_max_bytes, "1GiB")),
            "fsync": _boolean("fsync", _default("fsync", fsync, False)),
        }
        self._second = 0
        self._attaching = threading.RLock()
        self._attach(None, replace=self.mode == "w")
        REGISTRY.handlers.add(self)

    # -- logging.Handler --------------------------------------------------------------------------------------------------

    def handle(self, record: logging.LogRecord) -> Any:
        """Filter and emit, without the handler's lock: ``logging.shutdown`` and ``dictConfig`` hold that through ``flush``.

        Records that the shipper itself causes are not ours to ship: each flush would feed the next one for ever.
        """
        if shipping.get():
            return False
        passed: Any = self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)  # a filter may give another record (3.12)
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        """Accept the record: when this returns it is in the spool (I1), or counted in ``stats().dropped_records``."""
        try:
            text = self.format(record) + self.terminator
            data, urgent = text.encode(self.encoding, self.errors), record.levelno >= self._urgent_from
            engine = self._engine
            if engine is not None and not self._template.varies_with_time and self.terminator is self._terminator:
                try:
                    engine.append(data, urgent=urgent)
                    return
                except Left:  # closed by another thread since we looked
                    engine = None
            self._append(record, data, urgent=urgent)
            if engine is None and REGISTRY.exit_started is not None:
                self.close()  # logging.shutdown has closed us, and nobody will do so once more: ship now
        except RecursionError:  # as the handlers of the standard library do, see bpo-36272
            raise
        except Exception:  # noqa: BLE001 - logging's own rule: handleError decides (I5)
            self.handleError(record)

    def flush(self, timeout: float | None = None) -> bool:  # type: ignore[override]
        """Wait until all that was accepted before is in the store.

        Args:
            timeout: seconds to wait at most; ``close_timeout`` by default.

        Returns:
            ``True`` if it is there; ``False`` if the time is up: nothing is lost, and it is shipped later.
        """
        engine = self._engine
        if engine is None:
            return True
        if timeout is None and held_by_logging():
            engine.worker.ask()
            return not engine.behind()
        return engine.flush(timeout)

    def trigger(self) -> None:
        """Ask for a flush and return at once."""
        if self._engine is not None:
            self._engine.worker.ask()

    def stats(self) -> Stats:
        """What was accepted, shipped, dropped and is pending; see ``Stats``."""
        engine = self._engine or self._last
        return engine.stats()

    def close(self) -> None:
        """Ship what is pending, waiting ``close_timeout`` at most, and let go of the spool.

        What could not be shipped stays in the spool, and one line on stderr names the command that ships it. Idempotent.
        A record that is logged later opens the handler again, as with ``FileHandler``.
        """
        with self._attaching:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.release(wait=not held_by_logging())
        super().close()

    def __repr__(self) -> str:
        url = self._engine.location.url if self._engine else self._template.given.partition("?")[0]
        state = f"{self._engine.pending_bytes():,} bytes pending" if self._engine else "closed"
        return f"<{type(self).__name__} {url} ({logging.getLevelName(self.level)}) {state}>"

    # -- the engine -------------------------------------------------------------------------------------------------------

    def _attach(self, now: float | None, *, replace: bool) -> Engine:
        engine = REGISTRY.attach(self._template.resolve(now), self._root, replace=replace, **self._limits)
        if engine.appender.marker is None:
            engine.appender.marker = self._marker
        self._engine = self._last = engine
        self._set_terminator(engine)
        return engine

    def _set_terminator(self, engine: Engine) -> None:
        self._terminator = self.terminator
        engine.appender.terminator = self._terminator.encode(self.encoding, self.errors)

    def _append(self, record: logging.LogRecord, data: bytes, *, urgent: bool) -> None:
        """The way of a record for which the engine may have to change."""
        with self._attaching:
            while True:
                engine = self._current(record)
                if self.terminator is not self._terminator:
                    self._set_terminator(engine)
                try:
                    return engine.append(data, urgent=urgent)
                except Left:  # another handler of this URL was the last one of it, a moment ago
                    self._engine = None

    def _current(self, record: logging.LogRecord) -> Engine:
        """The engine for this record: opened again after ``close``, and another one when a time field has changed."""
        engine = self._engine
        if engine is None:
            return self._attach(record.created, replace=False)
        if self._template.varies_with_time and int(record.created) != self._second:
            if self._template.resolve(record.created).path != engine.location.path:
                try:
                    self._attach(record.created, replace=False)
                except (OSError, RemoteLoggingError) as error:
                    engine.report.say("rollover", f"the next object has no spool yet ({error}); records still go to this one")
                    return engine
                engine.release(wait=False)  # it drains in its own thread
            self._second = int(record.created)
        return self._engine or engine

    def after_fork_in_child(self) -> None:
        """A lock of this process's own; where the url holds ``{pid}``, an object of its own, too, from its first record on."""
        self._attaching = threading.RLock()
        engine = self._engine
        if engine is not None and self._template.varies_with_process:
            REGISTRY.leave_in_child(engine)
            self._engine = None

    def _marker(self, records: int, size: int) -> bytes:
        record = logging.LogRecord(
            "remote_logging", logging.WARNING, __file__, 0, "%d records (%d bytes) were dropped here: the spool was full",
            (records, size), None,
        )  # fmt: skip
        return (self.format(record) + self.terminator).encode(self.encoding, self.errors)


def parse_size(size: int | str) -> int:
    """Bytes, from a number or a text such as ``"64MiB"`` or ``"1 GB"``.

    Raises:
        ConfigurationError: it is no size, or smaller than 64 KiB.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B?|B)?\s*", str(size), re.IGNORECASE)
    if isinstance(size, bool) or not match:
        raise ConfigurationError(f"{size!r} is no size", hint="Give a number of bytes, or a text such as '64MiB' or '1GiB'")
    unit = (1024 if match[3] else 1000) ** ("KMGT".index(match[2].upper()) + 1) if match[2] else 1
    value = int(float(match[1]) * unit)
    if value < SMALLEST_SPOOL:
        raise ConfigurationError(f"spool_max_bytes is {size!r}", hint="Give 64KiB or more")
    return value


def _default(name: str, given: Any, default: Any) -> Any:
    if given is not _UNSET:
        return given
    value = os.environ.get(f"REMOTE_LOGGING_{name.upper()}")
    if not value:
        return default
    return None if value.strip().lower() in ("none", "null", "off") else value


def _seconds(name: str, value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds < float("inf") or isinstance(value, bool) or (name == "flush_interval" and not seconds):
        raise ConfigurationError(f"{name} is {value!r}", hint="Give a positive number of seconds, such as 15.0")
    return seconds


def _level(name: str, value: Any) -> int:
    if isinstance(value, str) and value.strip().isdigit():
        return int(value)
    level = logging.getLevelNamesMapping().get(value.strip().upper()) if isinstance(value, str) else value
    if not isinstance(level, int) or isinstance(level, bool):
        raise ConfigurationError(f"{name} is {value!r}", hint="Give a level's name, such as 'ERROR', or its number")
    return level


def _boolean(name: str, value: Any) -> bool:
    result = False if value is None else BOOLEANS.get(str(value).strip().lower())
    if result is None:
        raise ConfigurationError(f"{name} is {value!r}", hint="Give true or false")
    return result


def _codec(name: str) -> str:
    try:
        "".encode(name)
    except (LookupError, TypeError):
        raise ConfigurationError(f"encoding {name!r} is unknown", hint="Give a codec's name, such as 'utf-8'") from None
    return name


def _error_handler(name: str) -> str:
    try:
        codecs.lookup_error(name)
    except (LookupError, TypeError):
        raise ConfigurationError(f"errors {name!r} is unknown", hint="Give a name such as 'backslashreplace'") from None
    return name


def _options(given: Any) -> Mapping[str, Any] | None:
    if not isinstance(given, str):
        return given  # type: ignore[no-any-return]  # Template checks it
    import json

    parsed: Any = None
    with contextlib.suppress(ValueError):
        parsed = json.loads(given)
    if not isinstance(parsed, dict):
        raise ConfigurationError(
            "storage_options is no JSON object", hint='Write it like {"endpoint_url": "http://localhost:9000"}'
        )
    return parsed

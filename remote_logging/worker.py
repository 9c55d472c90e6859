"""The thread that ships one destination: when it starts, what it waits for, and how it ends.

It starts with the first record, so that neither an import nor a constructor starts a thread, and imports what is heavy
there. It is a daemon: the interpreter's exit waits for flushes (registry.py), not for threads. At exit no thread can be
started (3.12 and later); where none runs by then, the caller's thread ships.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from .appender import Appender
from .errors import RemoteLoggingError
from .location import Location
from .report import Reporter, shipping
from .spool import Spool, network_file_system

if TYPE_CHECKING:
    from .shipper import Shipper

SIZE_CAUSE = 8 * 2**20  # bytes since the last flush that are worth one before its time
SHARE = 10  # a timed flush may take one part in ten of the time
URGENT_GAP = 1.0  # seconds between two flushes that records of flush_level cause
POLL = 0.05  # seconds between two looks at what is not signalled


def due(
    *, asked: bool, ending: bool, urgent: bool, ended: float, duration: float, interval: float | None, next_try: float
) -> float:
    """When the next flush starts, on the clock of ``ended``. Pure.

    On demand at once, also in a backoff; while the store fails, when the backoff is over; for a record of ``flush_level`` or
    a large backlog a second after the last flush; else by the timer, stretched so that flushing takes a tenth of the time.
    """
    if asked:
        return ended
    if next_try:
        return next_try
    if ending:
        return ended + POLL
    times = [ended + max(URGENT_GAP, duration)] if urgent else []
    if interval is not None:
        times.append(ended + max(interval, SHARE * duration))
    return min(times, default=float("inf"))


class Owner(Protocol):
    """What the worker asks of the engine that it works for."""

    location: Location
    root: str
    spool: Spool
    appender: Appender
    report: Reporter
    interval: float | None

    def has_users(self) -> bool: ...
    def behind(self) -> bool: ...
    def may_end(self) -> bool: ...
    def before_flush(self) -> None: ...
    def after_flush(self) -> None: ...
    def started(self) -> None: ...


class Worker:
    """Runs the shipper of one engine. A forked child makes a new one; nothing of this is shared with it."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.shipper: Shipper | None = None
        self.thread: threading.Thread | None = None
        self.changed = threading.Condition()
        self.waiting = 0  # threads that wait for a flush: back off less
        self.importing = threading.Lock()  # held while a library is imported; a fork takes it first
        self._lock = threading.RLock()
        self._serving, self._server = threading.Lock(), 0  # held while a flush is under way, and the thread that does it
        self._starting = self._cannot_start = self._swept = self._urgent = False
        self._pipe: tuple[int, int] | None = None
        self._asked = self._served = 0
        self._ended = time.monotonic()
        self.size_mark = SIZE_CAUSE

    def start(self) -> None:
        with self._lock:
            if self.thread is not None or self._cannot_start or self._starting:
                return  # (starting: a signal handler that logs in the middle of this)
            if sys.is_finalizing():  # a thread that is started now never gets to run, and 3.11 waits for it
                self._cannot_start = True
                return
            self._starting = True
            # Known before it runs: a signal handler that flushes in between must not ship beside it.
            self.thread = thread = threading.Thread(target=self._run, name="remote_logging", daemon=True)
            try:
                self._pipe = os.pipe()
                for fd in self._pipe:
                    os.set_blocking(fd, False)
                thread.start()
            except (RuntimeError, OSError):  # the interpreter is going down, or the system has no more threads
                self._cannot_start, self.thread = True, None
                return
            finally:
                self._starting = False
        self.owner.started()

    def accepted(self, *, urgent: bool) -> None:
        """A record was accepted: start with the first one, and ship at once what is urgent or much."""
        if self.thread is None:
            self.start()
        if (urgent or self.owner.appender.end > self.size_mark) and not self._urgent:
            self._urgent = True
            self._wake()

    def ask(self) -> None:
        """Ask for a flush and return at once."""
        if self.thread is None:
            self.start()
        with self.changed:
            self._asked += 1
        self._wake()

    def serve(self, until: float | None = None) -> None:
        """One flush, on this thread, until a moment on the monotonic clock; nothing where one is under way."""
        if not self._serving.acquire(blocking=False):
            return
        self._server = threading.get_ident()
        try:
            self._serve(until)
        finally:
            self._server = 0
            self._serving.release()

    def _serve(self, until: float | None) -> None:
        asked, self._urgent, shipped = self._asked, False, False
        ending = self.thread is None or not self.owner.has_users()
        with self._no_defect_ends_us():
            self.owner.before_flush()
            if self.shipper is None:
                self.shipper = self._make_shipper()
            shipped = self.shipper.ship(final=ending, waited_for=ending or self.waiting > 0, until=until)
            self.owner.after_flush()
        self.size_mark = self.owner.appender.end + SIZE_CAUSE
        self._ended = time.monotonic()
        with self.changed:
            self._served = asked
            self.changed.notify_all()
        if shipped and self.thread is not None and not self._swept:
            with self._no_defect_ends_us():
                self._sweep()

    def serve_until(self, deadline: float) -> None:
        """Flush on this thread, again and again, until nothing is behind or the time is up."""
        if self._server == threading.get_ident():
            return  # a signal handler in the middle of a flush of this very thread: it goes on when the handler returns
        token = shipping.set(True)
        try:
            while True:
                self.serve(deadline)
                next_try = self.shipper.next_try if self.shipper else 0.0
                pause = max(POLL, next_try - time.monotonic())
                if not (next_try or self.owner.behind()) or time.monotonic() + pause >= deadline:
                    return
                time.sleep(pause)
        finally:
            shipping.reset(token)

    def forget_in_child(self) -> None:
        """After a fork: close our copies of the parent's descriptors, and keep its connections from ever being closed here."""
        if self.shipper is not None:
            self.shipper.forget_in_child()
        self._close_pipe()

    def _run(self) -> None:
        shipping.set(True)
        while True:
            self._wait()
            ending = not self.owner.has_users()
            self.serve()
            # Only after a flush that began when nobody logged any more, and has shipped what other processes wrote, too.
            if ending and self._idle() and self.owner.may_end():
                break
        with self._lock:
            self._close_pipe()
        with self.changed:
            self.changed.notify_all()

    def _close_pipe(self) -> None:
        pipe, self._pipe = self._pipe, None
        for fd in pipe or ():
            with contextlib.suppress(OSError):
                os.close(fd)

    def _wait(self) -> None:
        while (delay := self._due() - time.monotonic()) > 0:
            poll = select.poll()
            fifo = self.owner.spool.leadership.fifo
            for fd in (self._pipe[0] if self._pipe else -1, fifo):
                if fd >= 0:
                    poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll(min(delay, 3600.0) * 1000):
                with contextlib.suppress(OSError):
                    os.read(fd, 4096)
                if fd == fifo:  # another process asks
                    with self.changed:
                        self._asked += 1

    def _due(self) -> float:
        return due(
            asked=self._asked > self._served,
            ending=not self.owner.has_users(),
            urgent=self._urgent,
            ended=self._ended,
            duration=self.shipper.last_duration if self.shipper else 0.0,
            interval=self.owner.interval,
            next_try=self.shipper.next_try if self.shipper else 0.0,
        )

    def _wake(self) -> None:
        with self._lock:  # the descriptor is not closed, and then somebody else's, meanwhile
            if self._pipe:
                with contextlib.suppress(OSError):  # full: it is awake
                    os.write(self._pipe[1], b"\n")
        if not self.owner.spool.leadership.held:
            self.owner.spool.leadership.wake()

    def _make_shipper(self) -> Shipper:
        owner = self.owner
        with self._import():
            _import_executor()
            from . import recovery  # noqa: F401 - for _sweep: every import is made here
            from .shipper import Shipper
            from .store import open_store

        def connect(label: str | None) -> Any:
            with self._import():  # the store's own library is imported here, at its first use
                return open_store(owner.location.sibling(label) if label else owner.location)

        kind = network_file_system(owner.root)
        if kind:
            owner.report.say(
                "network",
                f"the spool {owner.root} is on {kind}, where locks and appends between machines do not hold; "
                "give spool_dir (or REMOTE_LOGGING_SPOOL_DIR) a directory on a local disk",
            )
        return Shipper(owner.spool, owner.appender, connect, owner.report)

    @contextlib.contextmanager
    def _import(self) -> Iterator[None]:
        """A child forked in the middle of this would inherit half a module and hang: a fork waits for the end of it."""
        with self.importing:
            yield

    @contextlib.contextmanager
    def _no_defect_ends_us(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the thread that ships must go on (I5)
            self.owner.report.say("defect", f"shipping failed ({type(error).__name__}: {error}); it is tried again")

    def _sweep(self) -> None:
        """Ship what processes of the same template left in directories that nobody will name again."""
        from .recovery import drain, leftovers

        for directory in leftovers(self.owner.root, self.owner.location.template):
            if directory != self.owner.spool.directory:
                with contextlib.suppress(OSError, RemoteLoggingError):
                    drain(directory, self.owner.location.options, go_on=self._idle)
            if not self._idle():
                return  # our own records first; the rest of this with the next flush
        self._swept = True

    def _idle(self) -> bool:
        return self._asked <= self._served and not self._urgent


def _import_executor() -> None:
    """Import ``concurrent.futures.thread``, which fsspec and asyncio need, also while the interpreter goes down.

    It registers a callback that joins its worker threads, which is refused by then; we never make such a worker.
    """
    try:
        import concurrent.futures.thread
    except RuntimeError:
        register = threading._register_atexit  # type: ignore[attr-defined]
        threading._register_atexit = lambda *_, **__: None  # type: ignore[attr-defined]
        try:
            import concurrent.futures.thread  # noqa: F401
        finally:
            threading._register_atexit = register  # type: ignore[attr-defined]

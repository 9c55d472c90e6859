"""One destination of this process: its appender and the worker that ships; what handlers share and call.

All handlers of one destination share one engine. The last one's ``release`` drains it, within ``close_timeout``; where that
was not enough and the process lives on, the worker goes on by itself and ends when everything is shipped.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Protocol

from .appender import Appender
from .location import Location
from .report import Reporter, shipping
from .spool import Spool, default_root
from .worker import POLL, Worker

if TYPE_CHECKING:
    from .stats import Stats

ASK_AGAIN = 1.0  # seconds after which a follower's flush wakes the leader once more; it may be another one by now
LEAST_JOIN = 0.5  # seconds that closing waits for the thread to end at least, when everything of ours is shipped


class Engines(Protocol):
    """What an engine asks of the registry that holds it."""

    lock: threading.RLock
    engines: dict[str, Engine]
    exit_started: float | None

    def started(self) -> None: ...


class Engine:
    """Everything of one destination in this process."""

    def __init__(
        self,
        registry: Engines,
        location: Location,
        root: str | None,
        *,
        interval: float | None,
        close_timeout: float,
        max_bytes: int,
        fsync: bool,
    ) -> None:
        self.registry, self.location = registry, location
        self.interval, self.close_timeout = interval, close_timeout
        self.root_given = root is not None
        self.root = os.path.abspath(os.path.expanduser(root)) if root else default_root()
        self.report = Reporter(location.url)
        self.spool = Spool.of(self.root, location, self.report)
        self.appender = Appender(self.spool, max_bytes=max_bytes, fsync=fsync, report=self.report)
        self.users = 0
        self._fresh_state()

    def _fresh_state(self) -> None:
        self.worker = Worker(self)
        self._final: tuple[int, int] | None = None  # what was reached when this engine ended
        # (position, records accepted, time) of a moment: once the position is acknowledged, so are the records.
        self._checkpoint: tuple[tuple[int, int], int, float] | None = None
        self._shipped_records = 0
        self._caught_up = time.time()

    # -- what handlers call ---------------------------------------------------------------------------------------------

    def append(self, data: bytes, *, urgent: bool) -> None:
        """Accept one record; never waits for the network (I5)."""
        worker = self.worker
        if self.appender.append(data) and (urgent or worker.thread is None or self.appender.end > worker.size_mark):
            worker.accepted(urgent=urgent)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was accepted before is in the store; False when the time is up (I6)."""
        deadline = self.deadline(timeout)
        target = self.appender.position()
        if target[1] <= 0 or self._reached() >= target:
            return True
        worker = self.worker
        worker.ask()
        if worker.thread is None:
            worker.serve_until(deadline)
            return self._reached() >= target
        if worker.thread is threading.current_thread():
            return False  # a finalizer that the garbage collector runs there: it cannot wait for itself
        again = time.monotonic() + ASK_AGAIN
        with worker.changed:
            worker.waiting += 1
            try:
                while self._reached() < target:
                    now = time.monotonic()
                    if now >= deadline:
                        return False
                    follower = not self.spool.leadership.held
                    if follower and now >= again:
                        again = now + ASK_AGAIN
                        worker.ask()
                    worker.changed.wait(min(deadline - now, POLL if follower else ASK_AGAIN))
                return True
            finally:
                worker.waiting -= 1

    def behind(self) -> bool:
        """Whether anything that was accepted is not known to be in the store."""
        target = self.appender.position()
        return target[1] > 0 and self._reached() < target

    def stats(self) -> Stats:
        from .stats import Stats

        self.after_flush()
        appender, shipper, pending = self.appender, self.worker.shipper, self.pending_bytes()
        return Stats(
            accepted_records=appender.records,
            accepted_bytes=appender.bytes,
            shipped_records=self._shipped_records,
            pending_records=appender.records - self._shipped_records,
            pending_bytes=pending,
            dropped_records=appender.dropped_records,
            dropped_bytes=appender.dropped_bytes,
            uploaded_bytes=shipper.sent if shipper else 0,
            flushes=shipper.flushes if shipper else 0,
            failures=shipper.failures if shipper else 0,
            last_success=shipper.last_success if shipper else None,
            last_error=shipper.last_error if shipper else None,
            lag=max(0.0, time.time() - self._caught_up) if pending else 0.0,
        )

    def pending_bytes(self) -> int:
        """Bytes in the spool that the store is not known to hold, whichever process wrote them."""
        return self.spool.pending(self._reached())

    # -- the end --------------------------------------------------------------------------------------------------------

    def release(self, *, wait: bool = True) -> None:
        """One user less; the last one ends the engine, waiting at most ``close_timeout`` for what is pending (I6)."""
        with self.registry.lock:
            self.users -= 1
            if self.users > 0:
                return
        if not wait:
            self.worker.ask()  # the thread drains, and ends by itself
            return
        deadline = self.deadline(None)
        shipped, thread = self.flush(), self.worker.thread
        if thread is None:
            token = shipping.set(True)
            try:
                if shipped and self.worker.shipper is None and self.spool.held():
                    self.worker.serve(until=deadline)  # one try for what other processes left; this one wrote nothing
                self.may_end()
            finally:
                shipping.reset(token)
        else:
            self.worker.ask()
            if shipped and thread is not threading.current_thread():
                deadline = max(deadline, time.monotonic() + LEAST_JOIN)
                while thread.is_alive() and self.users <= 0 and time.monotonic() < deadline:
                    thread.join(POLL)  # it goes on where somebody has attached meanwhile
        if not shipped:
            self.say_left()

    def may_end(self) -> bool:
        """Leave the spool, if this process has nothing left to ship and nobody has attached meanwhile."""
        with self.registry.lock:
            # On the worker's thread there is time; on a caller's, which has waited, what is left stays in the spool.
            if self.users > 0 or (self.worker.thread is not None and self.behind()):
                return False
            self._final = self._reached()
            self.appender.leave()
            self.registry.engines.pop(self.spool.directory, None)
        # Outside the lock: whoever holds logging's lock may wait for ours, and a library that closes may wait for logging's.
        if self.worker.shipper is not None:
            self.worker.shipper.settle()
            self.worker.shipper.close()
        else:
            self.spool.settle_empty()
        return True

    def say_left(self) -> None:
        root = f" --spool-dir {self.root}" if self.root_given else ""
        self.report.say(
            "left",
            f"{self.pending_bytes():,} bytes were not shipped; they are kept in {self.spool.directory}. "
            f"Ship them with: remote-logging recover{root}",
        )

    def after_fork_in_child(self) -> None:
        """A membership and a worker of this process's own; then the inherited descriptors are closed, not unlocked."""
        self.spool.leadership.forget_in_child()
        self.appender.rejoin_in_child()
        self.worker.forget_in_child()
        self._fresh_state()

    # -- what the worker asks -------------------------------------------------------------------------------------------

    def has_users(self) -> bool:
        return self.users > 0

    def started(self) -> None:
        self.registry.started()

    def before_flush(self) -> None:
        if self._checkpoint is None:
            now, records = time.time(), self.appender.records
            self._checkpoint = (self.appender.position(), records, now)

    def after_flush(self) -> None:
        reached = self._reached()
        if self._checkpoint is not None and reached >= self._checkpoint[0]:
            _, self._shipped_records, self._caught_up = self._checkpoint
            self._checkpoint = None
        if self._checkpoint is None:
            self.before_flush()

    # -- small things ---------------------------------------------------------------------------------------------------

    def _reached(self) -> tuple[int, int]:
        """The position below which the store is known to have everything."""
        if self._final is not None:
            return self._final
        if self.worker.shipper is not None and self.spool.leadership.held:
            return self.worker.shipper.acknowledged
        return self.spool.leadership.acknowledged()

    def deadline(self, timeout: float | None) -> float:
        deadline = time.monotonic() + (self.close_timeout if timeout is None else timeout)
        began = self.registry.exit_started
        return deadline if began is None else min(deadline, began + self.close_timeout)

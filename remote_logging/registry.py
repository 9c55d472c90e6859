"""The engines of this process: sharing, fork and interpreter exit. The registry is the only global of the package."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
import weakref
from typing import Any, Protocol

from .engine import Engine
from .location import Location

FORK_WAIT = 10.0  # seconds that a fork waits for an import or a rename of ours


class ForkAware(Protocol):
    """What a forked child tells after its engines are its own."""

    def after_fork_in_child(self) -> None: ...


class Registry:
    """The engines of this process by spool directory."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.engines: dict[str, Engine] = {}
        self.exit_started: float | None = None  # when the interpreter's exit began, on the monotonic clock
        self.handlers: weakref.WeakSet[ForkAware] = weakref.WeakSet()
        self._forks_registered = False
        self._exit_registered_in = 0  # the process that has done so
        self._held_for_fork = threading.local()  # two threads may fork at once

    def attach(self, location: Location, root: str | None, *, replace: bool, **options: Any) -> Engine:
        """The engine of ``location``, shared by all its users in this process.

        Raises:
            SpoolError: the spool directory cannot be used.
        """
        engine = Engine(self, location, root, **options)
        with self.lock:
            if not self._forks_registered:
                os.register_at_fork(before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._in_child)
                self._forks_registered = True
            known = self.engines.get(engine.spool.directory)
            if known is None:
                engine.appender.join(replace=replace)
                known = self.engines[engine.spool.directory] = engine
            known.users += 1
            return known

    def leave_in_child(self, engine: Engine) -> None:
        """A forked child's handler goes to another object than its parent's: leave the parent's without a word."""
        engine.users -= 1
        if engine.users <= 0:
            engine.appender.leave()
            self.engines.pop(engine.spool.directory, None)

    def started(self) -> None:
        """An engine of this process has something to ship: see to it that the interpreter's exit waits for it."""
        if self._exit_registered_in == os.getpid():
            return
        if not self._exit_registered_in:
            atexit.register(self.at_exit)  # a forked child inherits it
        self._exit_registered_in = os.getpid()
        # A child of multiprocessing ends by os._exit, without atexit; its own finalizers run in all start methods.
        process = sys.modules.get("multiprocessing.process")
        if process is not None and process.parent_process() is not None:
            from multiprocessing.util import Finalize

            Finalize(None, self.at_exit, exitpriority=10)

    def at_exit(self) -> None:
        """Ship what is pending, all destinations at once, within ``close_timeout``; later waits share that time (I6)."""
        self.exit_started = self.exit_started or time.monotonic()
        engines = list(self.engines.values())
        for engine in engines:
            if engine.behind():
                engine.worker.ask()
        for engine in engines:
            if not engine.flush():
                engine.say_left()

    def _before_fork(self) -> None:
        self._held_for_fork.locks = []
        # Bounded: a child of a parent that imports for longer is no worse off than without us (I6).
        for engine in list(self.engines.values()):
            locks = [engine.spool.leadership.mutex]
            if threading.current_thread() is not engine.worker.thread:
                locks.append(engine.worker.importing)
            for lock in locks:
                if lock.acquire(timeout=FORK_WAIT):
                    self._held_for_fork.locks.append(lock)

    def _after_fork(self) -> None:
        for lock in self._held_for_fork.locks:
            lock.release()

    def _in_child(self) -> None:
        self.lock = threading.RLock()
        for engine in list(self.engines.values()):
            engine.after_fork_in_child()
            if engine.users <= 0:  # its parent closed it, and drains it still: nobody here would ever leave it
                self.leave_in_child(engine)
        for handler in list(self.handlers):
            handler.after_fork_in_child()


REGISTRY = Registry()


def held_by_logging() -> bool:
    """Whether this thread is inside ``dictConfig`` or the like, which holds logging's lock while it closes handlers.

    Whoever imports a library in another thread then waits for that lock: waiting for that thread would stall both.
    """
    owned = getattr(getattr(logging, "_lock", None), "_is_owned", None)
    return bool(owned and owned())

"""Ships one spool to its store: ``plan`` decides, ``step`` does one thing, ``ship`` is one flush.

Exactly once (I3): the object is the only record of progress. An append states the head (length and token) it expects. That
head is known from the reply to our own last append; after anything else it is asked, and what the object holds is compared
with the spool from the last acknowledged byte on: the longest common prefix is what had landed. Bytes that are not ours
are never overwritten (I4): we go on in a sibling object, and the spool's name says so before the first byte goes there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import re
import time
from collections.abc import Callable

from .appender import Appender
from .cursor import Cursor
from .errors import Conflict, RemoteLoggingError, Unreachable
from .report import Reporter
from .spool import KEPT, Spool
from .state import State
from .store import Head, Store

MiB = 2**20
WINDOW = 16 * MiB  # bytes of one append at most
SMALLEST_WINDOW = 256 * 1024  # what a link too slow for the window falls back to
RECLAIM = 4 * MiB  # acknowledged bytes that are worth a rename and a hole
RENEW = 64 * MiB  # size at which an emptied spool file is replaced by a new one
BACKOFF, BACKOFF_CAP, WAITED_FOR_CAP = 1.0, 60.0, 2.0  # seconds
CONFLICTS = 5  # times in a row that the object is asked again at once, before that counts as a failure
YIELD_AFTER = 5  # failures in a row after which another process may try its luck (its credentials may be better)


def plan(state: State, acked: int, end: int, head: Head | None) -> str:
    """What to do next, given the spool file's state, the offsets shipped and to ship, and what is known of the object.

    ``rest``: nothing. ``place``: ask the store where we start. ``ask``: find out what has landed. ``put``: replace the
    object by the first bytes. ``append``: make it longer.
    """
    if acked >= end:
        return "rest"
    if state.kind.startswith("unplaced"):
        return "place"
    if head is None:
        return "ask"
    return "put" if state.kind == "replace" else "append"


class Shipper:
    """Ships what ``appender``'s spool holds. Not thread-safe: one thread calls it at a time."""

    def __init__(self, spool: Spool, appender: Appender, connect: Callable[[str | None], Store], report: Reporter) -> None:
        self.spool, self.appender, self.report = spool, appender, report
        self._connect = connect  # the label of a sibling, or None -> its store
        self._stores: dict[str | None, Store] = {}
        self._cursor: Cursor | None = None
        self._tidied = False
        self._conflicts = 0
        self._connecting = 0.0
        self._sent = 0
        self._until: float | None = None
        self._window = WINDOW
        self._unended = -1  # size of the file when it was last seen to end in an unfinished record
        self.acknowledged = (0, 0)
        self.flushes = self.failures = self.failures_in_row = 0
        self.last_success: float | None = None
        self.last_error: str | None = None
        self.last_duration = 0.0
        self.next_try = 0.0

    @property
    def sent(self) -> int:
        return self._sent + sum(store.sent for store in self._stores.values())

    # -- one flush ------------------------------------------------------------------------------------------------------

    def ship(self, *, final: bool = False, waited_for: bool = False, until: float | None = None) -> bool:
        """Ship what is there now. True when all of it is acknowledged; False if the store failed or another process leads.

        ``final``: an unfinished record at the end is shipped too. ``waited_for``: somebody waits, so back off less.
        ``until``: the moment, on the monotonic clock, at which to stop and to give up requests under way (I6).
        """
        self._until = until
        started, self._connecting = time.monotonic(), 0.0
        try:
            if not self.spool.leadership.take():
                self._forget()
                return False
            files = self.spool.files()
            goal = (files[-1].generation, os.stat(files[-1].path).st_size) if files else (0, 0)
            shipped = False
            while (until is None or time.monotonic() < until) and self.step(final=final):
                shipped = True
                if self.acknowledged >= goal:
                    break
            if shipped:
                self._succeeded(time.monotonic() - started - self._connecting)
            return True
        except Exception as error:  # noqa: BLE001 - neither a store nor a defect of ours may end the thread that ships (I5)
            self._failed(error, waited_for=waited_for)
        return False

    def step(self, *, final: bool = False) -> bool:
        """Do the next single thing. False when there is nothing to do, or another process leads.

        Raises:
            RemoteLoggingError, OSError: the store or the spool failed; the next step asks again.
        """
        if not self.spool.leadership.take():
            self._forget()
            return False
        cursor = self._current()
        if cursor is None:
            return False
        end = self._end(cursor, final)
        action = plan(cursor.file.state, cursor.acked, end, cursor.head)
        try:
            if action == "rest":
                return self._rest(cursor)
            if action == "place":
                self._place(cursor)
            elif action == "ask":
                self._ask(cursor)
            else:
                self._send(cursor, end)
        except Conflict:
            cursor.head = None
            self._conflicts += 1
            if self._conflicts > CONFLICTS:
                raise
        except BaseException:
            cursor.head = None  # whatever it was: nobody knows what has landed (I3)
            raise
        return True

    def settle(self) -> None:
        """The appender has left: remove what is acknowledged whole and held by nobody (I7)."""
        with contextlib.suppress(OSError, RemoteLoggingError):
            # What is known from an earlier lead may be of files that are gone: generations begin again in a new directory.
            known = self.acknowledged if self.spool.leadership.held else (0, 0)
            if not self.spool.leadership.take():
                return
            for file in self.spool.files():
                size = os.stat(file.path).st_size
                # A sibling's file stays, or the next run would flip back to the object that is not ours (I4).
                if (known >= (file.generation, size) or size == 0) and not file.state.label:
                    self.spool.remove(file, size)
            self._forget()
            self.spool.erase()

    def close(self) -> None:
        """Close connections and descriptors and let another process lead."""
        self._forget()
        self._disconnect()
        self.spool.leadership.give_up()

    def forget_in_child(self) -> None:
        """After a fork: never close the parent's connections here, not even by the garbage collector.

        Their sockets and their epoll instance are shared: closing them here would unregister them there.
        """
        self._forget()
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._stores))

    # -- the actions ----------------------------------------------------------------------------------------------------

    def _place(self, cursor: Cursor) -> None:
        self.spool.sync()
        state, head = cursor.file.state, self._store(cursor).head()
        replace = state.kind == "unplaced-w"
        state = State.replacing(head.token) if replace else State.anchor(head.size, 0, state.label)
        cursor.file = self.spool.move(cursor.file, state)
        cursor.head = head
        cursor.base = (b"", 0) if head.size == 0 or replace else None

    def _ask(self, cursor: Cursor) -> None:
        store = self._store(cursor)
        if not self._tidied:
            self._tidied = True
            store.tidy()
        head, state = store.head(), cursor.file.state
        cursor.base = None
        if state.kind == "replace" and head.token == state.token:
            cursor.head, cursor.base = head, (b"", 0)
            return
        if state.kind == "replace":
            state = State.anchor(0, 0)  # gone, or the put that we did not hear of has landed, or somebody else's
        if head.size < state.remote:
            self._was_cut(head, cursor.offset_in_object())
            state = State.anchor(head.size, state.file, state.label)
            self._found(cursor, state, state.remote, head)
            return
        mark = self.appender.terminator[-1:] or b"\n"
        expected = cursor.offset_in_object()
        known = min(expected, head.size)
        common = cursor.common(store, head, max(state.remote, known - KEPT), mark)
        if common < known:  # what we had sent was changed: look from the anchor on
            common = cursor.common(store, head, state.remote, mark)
        ours = state.remote + cursor.size() - state.file
        if common < head.size and not (common == ours and self._older(cursor)):
            label = re.sub(r"[^\w-]", "-", os.uname().nodename.split(".")[0]) + "." + os.urandom(3).hex()
            sibling = self.spool.location.sibling(label)
            self.report.say(
                f"foreign {label}",
                f"somebody else wrote to {self._store(cursor).location.url}; nothing of theirs is touched, "
                f"and this log goes on in {sibling.url}",
            )
            state = State.anchor(0, state.file + common - state.remote, label)
            self._found(cursor, state, 0, Head(0, None))
            cursor.base = (b"", state.file)
            return
        if head.size < expected:
            self._was_cut(head, expected)
        self._found(cursor, state, common, head)

    def _found(self, cursor: Cursor, state: State, landed: int, head: Head) -> None:
        cursor.file = self.spool.move(cursor.file, state)
        cursor.acked = state.file + landed - state.remote
        cursor.head = head
        if head.size == 0:
            cursor.base = (b"", cursor.acked)
        self._publish(cursor)

    def _was_cut(self, head: Head, expected: int) -> None:
        self.report.say(
            "cut",
            f"the object was {'deleted' if head.token is None else 'cut'} by somebody: it has {head.size:,} bytes of the "
            f"{expected:,} that were there; what the spool still holds is sent again",
        )

    def _send(self, cursor: Cursor, end: int) -> None:
        head, store = cursor.head, self._store(cursor)
        if head is None:
            return  # plan() never comes here: it asks first
        # What is shipped must be durable here first: after a power cut the object would be longer than the spool, and
        # new records would count as shipped (I1).
        cursor.sync()
        data = cursor.read(cursor.acked, end)
        if cursor.file.state.kind == "replace":
            cursor.head = store.put(head, data)
            cursor.file = self.spool.move(cursor.file, State.anchor(0, 0))
        else:
            cursor.head = store.append(head, data, lambda: cursor.present(store, head))
        cursor.acked += len(data)  # not the end that was planned: somebody may have cut the file meanwhile
        self._window, self._conflicts = min(WINDOW, self._window * 2), 0
        self._publish(cursor)
        self._reclaim(cursor, store, cursor.head)

    def _rest(self, cursor: Cursor) -> bool:
        size = cursor.size()
        if cursor.acked < size:
            return False  # an unfinished record, which may still grow
        self._publish(cursor)
        if self._older(cursor):
            self.spool.hand_on(cursor.file.state.label)
            removed = self.spool.remove(cursor.file, size)
            if removed:
                self._forget()
            return removed
        self.appender.mark_drops()
        if cursor.file.state.kind == "anchor" and size >= RENEW and self.appender.renew(size):
            self._forget()
            return True
        return False

    def _reclaim(self, cursor: Cursor, store: Store, head: Head) -> None:
        """Give back the disk below what is acknowledged, but for the last bytes, which are compared after a failure."""
        state = cursor.file.state
        free = (cursor.acked - KEPT) // 4096 * 4096 - state.file
        crowded = cursor.size() - state.file > self.appender.max_bytes // 2
        if free >= min(RECLAIM, self.appender.max_bytes // 8) and (head.size >= store.rewrites_below or crowded):
            cursor.base = None
            moved = State.anchor(state.remote + free, state.file + free, state.label)
            cursor.file = self.spool.move(cursor.file, moved)
            cursor.punch()
            self.appender.mark_drops()
        if head.size >= store.rewrites_below:
            cursor.base = None

    # -- small things ---------------------------------------------------------------------------------------------------

    def _end(self, cursor: Cursor, final: bool) -> int:
        """The offset at which the next append would end: whole records, where they fit the window. Reads little."""
        size = cursor.size()
        if cursor.acked >= size:
            return cursor.acked
        mark = self.appender.terminator[-1:] or b"\n"
        if self._older(cursor) and cursor.read(size - 1, size) != mark:
            os.pwrite(cursor.fd, mark, size)  # nobody appends to it any more, and the next generation follows it
            size += 1
        end = min(size, cursor.acked + self._window)
        whole = cursor.behind_last(mark, cursor.acked, end)
        generation, accepted = self.appender.position()
        if generation == cursor.file.generation and accepted <= end:
            whole = max(whole, accepted)  # a record without any terminator is whole too
        if whole > cursor.acked:
            return whole
        if end - cursor.acked == self._window:
            return end
        if not final and self._unended != size:
            self._unended = size
        elif self.appender.end_fragment():  # else the disk is full: later
            return self._end(cursor, final)  # anew: whoever was first to end it changed its last byte
        return cursor.acked

    def _current(self) -> Cursor | None:
        if self._cursor is None:
            file = next(iter(self.spool.files()), None)
            if file is None:
                return None
            cursor = Cursor(file)
            if cursor.size() < file.state.file:
                cursor.close()
                self.spool.set_aside(file.path, "it is shorter than what its name says was shipped from it")
                return self._current()
            self._cursor = cursor
        return self._cursor

    def _older(self, cursor: Cursor) -> bool:
        return cursor.file.generation < self.appender.generation

    def _forget(self) -> None:
        cursor, self._cursor = self._cursor, None
        if cursor is not None:
            cursor.close()

    def _store(self, cursor: Cursor) -> Store:
        label = cursor.file.state.label
        if label not in self._stores:
            started = time.monotonic()
            self._stores[label] = self._connect(label)
            self._connecting += time.monotonic() - started  # once, so no measure of what the next flush will take
        self._stores[label].until = self._until
        return self._stores[label]

    def _disconnect(self) -> None:
        self._sent += sum(store.sent for store in self._stores.values())
        for store in self._stores.values():
            store.close()
        self._stores = {}

    def _publish(self, cursor: Cursor) -> None:
        reached = (cursor.file.generation, cursor.acked)
        if reached != self.acknowledged:
            self.acknowledged = reached
            self.spool.leadership.acknowledge(*reached)

    def _succeeded(self, duration: float) -> None:
        self.flushes += 1
        self.failures_in_row = 0
        self.next_try = 0.0
        self.last_success, self.last_duration = time.time(), duration
        self.report.ended("failing", "shipping works again")

    def _failed(self, error: Exception, *, waited_for: bool) -> None:
        self.failures += 1
        self.failures_in_row += 1
        self.last_error = str(error) if isinstance(error, RemoteLoggingError) else f"{type(error).__name__}: {error}"
        cap = WAITED_FOR_CAP if waited_for else BACKOFF_CAP
        # Full jitter: many machines that lost one store together must not come back together.
        self.next_try = time.monotonic() + random.uniform(0, min(cap, BACKOFF * 2 ** (self.failures_in_row - 1)))  # noqa: S311
        if isinstance(error, Unreachable):
            self._window = max(SMALLEST_WINDOW, self._window // 4)
        said = self.last_error if self.last_error.endswith("?") else f"{self.last_error}."
        self.report.say("failing", f"{said} Nothing is lost: it waits in {self.spool.directory} and is tried again")
        self._disconnect()  # the next try starts from a fresh connection, and from fresh credentials
        if self.failures_in_row >= YIELD_AFTER:
            self._forget()
            self.spool.leadership.give_up()

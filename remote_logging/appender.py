"""One process's end of the spool: the descriptor through which its records are accepted (I1).

A record is appended by one ``write`` to an ``O_APPEND`` descriptor: atomic between processes and in the kernel when it
returns. A killed writer can leave a fragment (write(2) looks at fatal signals between pages), a full disk a short write.
Such a record was never accepted, but the next one must not be glued behind it. The kernel serializes the writes to one
file, so after a write the byte before it is either the end of a whole record or the end of a fragment; the fragment's
last byte then becomes a terminator, written through a second descriptor, because Linux appends a pwrite to an
``O_APPEND`` one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable

from .errors import SpoolError
from .report import Reporter
from .spool import Spool, boot_id
from .state import SpoolFile, State

MAX_WRITE = 0x7FFF_F000  # what Linux transfers in one write(2); see its NOTES
LOOK_AGAIN = 0.2  # seconds between two looks whether a full spool has room


class Left(Exception):
    """The appender has left the spool: the caller attaches again, and gives it the record."""


class Appender:
    """Accepts records into the newest generation of a spool.

    ``append`` takes a lock of its own that is held for one local write and nothing else; it is re-entrant, because a
    signal handler or a finalizer may log in the middle of it.
    """

    def __init__(self, spool: Spool, *, max_bytes: int, fsync: bool, report: Reporter) -> None:
        self.spool, self.max_bytes, self.fsync, self.report = spool, max_bytes, fsync, report
        self.marker: Callable[[int, int], bytes] | None = None
        self.terminator = b"\n"
        self.generation = 0
        self._fd = -1
        self._after_fork_state()

    def _after_fork_state(self) -> None:
        self._lock = threading.RLock()
        self.end = -1  # where our last write ended; unknown at first, so that the first write looks behind itself
        self._size = 0  # of the file, as we last saw it
        self._writes = 0
        self._limit = 0
        self._looked = 0.0
        self.records = self.bytes = self.dropped_records = self.dropped_bytes = 0
        self._missed_records = self._missed_bytes = 0

    # -- membership -----------------------------------------------------------------------------------------------------

    def join(self, *, replace: bool = False) -> None:
        """Become a member of the newest generation, or of a new one where that may not be appended to.

        Raises:
            SpoolError: the directory cannot be used.
        """
        for _ in range(100):
            self.spool.prepare()
            try:
                return self._join(replace)
            except FileNotFoundError:
                continue  # the last member of before has just removed the directory
        raise SpoolError(f"the spool directory {self.spool.directory} keeps vanishing", hint="Give another spool_dir")

    def _join(self, replace: bool) -> None:
        with self.spool.structure():
            self.spool.describe()
            last = next(reversed(self.spool.files()), None)
            label = last.state.label if last else None
            if last and os.stat(last.path).st_size < last.state.file:
                self.spool.set_aside(last.path, "it is shorter than what its name says was shipped from it")
                last = None
            if last and replace and not self.spool.occupied(last):
                last, label = None, None
            if last and last.boot != boot_id():
                last = None
            file = last or self.spool.create(State.unplaced(replace=replace, label=label))
            self._fd = self._open(file)
            if self.fsync:
                self.spool.sync()  # what is accepted from here on must be found again after a power cut
        self.generation = file.generation
        self._look()

    def leave(self, *, for_children: bool = False) -> None:
        """Stop being a member. What was accepted stays in the spool.

        ``for_children``: also for those forked meanwhile, which know nothing of this appender.
        """
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            if for_children:
                fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def rejoin_in_child(self) -> None:
        """After a fork: take a membership of this process's own, then close the inherited descriptor.

        The inherited one shares its file position and its lock with the parent: closing it is right, unlocking it would
        free the parent's lock. Until then it keeps the file from being removed.
        """
        self._after_fork_state()
        inherited = self._fd
        if inherited < 0:
            return
        # The newest file, under ``structure``: the parent may just be giving up the one that we inherited (renew).
        with contextlib.suppress(OSError, SpoolError):
            self.join()
            os.close(inherited)

    def file(self) -> SpoolFile | None:
        """The generation that we append to, under the name it has now."""
        return next((file for file in self.spool.files() if file.generation == self.generation), None)

    def renew(self, size: int) -> bool:
        """Go on in a new, empty file, where the present one has ``size`` bytes, all acknowledged, and nobody else holds it.

        Never a truncation, which would race with a writer: a new file, descriptors swapped, the old one unlinked (I7).
        """
        with self.spool.structure():
            file = self.file()
            if file is None or self._fd < 0:
                return False
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            fresh = None
            try:
                if self.spool.occupied(file):
                    return False
                fresh = self.spool.create(State.unplaced(label=file.state.label))
                new, swapped = self._open(fresh), False
                with self._lock:
                    if os.fstat(self._fd).st_size == size:
                        new, self._fd, swapped = self._fd, new, True
                        self.generation, self.end = fresh.generation, -1
                os.close(new)
                os.unlink(file.path if swapped else fresh.path)
                return swapped
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_SH)
                self._look()

    @staticmethod
    def _open(file: SpoolFile) -> int:
        fd = os.open(file.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return fd

    # -- accepting ------------------------------------------------------------------------------------------------------

    def append(self, data: bytes) -> bool:
        """Accept one record (I1), or count it as dropped: the spool is full (I8), the disk is, or it exceeds 2 GiB.

        Raises:
            Left: this appender has left the spool meanwhile; nothing was counted.
        """
        with self._lock:
            if self._fd < 0:
                raise Left
            if self._missed_records:
                self._mark()
            size = len(data)
            accepted = (self._size + size <= self._limit or self._fits(size)) and self._write(data)
            if accepted:
                self.records += 1
                self.bytes += size
            else:
                self.dropped_records += 1
                self.dropped_bytes += size
                self._missed_records += 1
                self._missed_bytes += size
        if accepted and self.fsync:
            try:
                os.fsync(self._fd)  # outside the lock: other threads go on meanwhile
            except OSError as error:
                self._refused(error)
        return accepted

    def position(self) -> tuple[int, int]:
        """(generation, offset) at which the last record of this process ends; offset 0 if it wrote none."""
        with self._lock:
            # The kernel's word: a signal handler that logs in the middle of a write may leave ours behind.
            return self.generation, os.lseek(self._fd, 0, os.SEEK_CUR) if self._fd >= 0 else 0

    def mark_drops(self) -> None:
        """Write the line that says how many records were dropped, if any were and there is room again (I8)."""
        with self._lock:
            if self._missed_records and self._fd >= 0:
                self._looked = 0.0
                self._mark()

    def end_fragment(self) -> bool:
        """End a fragment at the file's end by a terminator. Behind a live writer's record this is an empty line."""
        with self._lock, contextlib.suppress(OSError):
            os.write(self._fd, self.terminator or b"\n")
            self.end = os.lseek(self._fd, 0, os.SEEK_CUR)
            return True
        return False

    def _mark(self) -> None:
        records, size = self._missed_records, self._missed_bytes
        if self.marker is not None:
            try:
                data = self.marker(records, size)
            except Exception:  # noqa: BLE001 - a formatter that wants what a filter sets: no reason to drop the next record (I5)
                data = b"%d records (%d bytes) were dropped here: the spool was full" % (records, size) + self.terminator
            if not (self._fits(len(data)) and self._write(data)):
                return
        self._missed_records -= records
        self._missed_bytes -= size

    def _write(self, data: bytes) -> bool:
        self._writes = ticket = self._writes + 1
        try:
            written = os.write(self._fd, data)
            end = os.lseek(self._fd, 0, os.SEEK_CUR)
        except OSError as error:
            self._refused(error)
            return False
        # A signal handler that logged between these lines has moved the file position: then nothing can be said.
        alone = self._writes == ticket
        if alone and end - written != self.end:
            self._look_behind(end - written)
        self.end = self._size = end
        if written == len(data):
            return True
        if alone:
            self._close_fragment(end)
        self._refused(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        return False

    def _look_behind(self, start: int) -> None:
        if start > 0 and self.terminator and os.pread(self._fd, 1, start - 1) not in (b"\n", self.terminator[-1:]):
            self._close_fragment(start)

    def _close_fragment(self, end: int) -> None:
        file = self.file()
        if file is not None and self.terminator:
            with contextlib.suppress(OSError):
                fd = os.open(file.path, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.pwrite(fd, self.terminator[-1:], end - 1)
                finally:
                    os.close(fd)

    def _fits(self, size: int) -> bool:
        now = time.monotonic()
        if now - self._looked >= LOOK_AGAIN:
            self._looked = now
            self._look()
        fits = self._size + size <= self._limit
        if not fits:
            self.report.say(
                "full",
                f"the spool {self.spool.directory} has reached spool_max_bytes ({self.max_bytes:,}); new records are "
                "dropped and counted until the store takes what is there. Repair the store, or raise spool_max_bytes",
            )
        return fits

    def _look(self) -> None:
        with contextlib.suppress(OSError):
            self._size = os.fstat(self._fd).st_size
            self._limit = self._size + min(self.max_bytes - self.spool.held(), MAX_WRITE)

    def _refused(self, error: OSError) -> None:
        self.report.say(
            "disk",
            f"records are dropped and counted: writing to {self.spool.directory} failed ({error.strerror}). "
            "Free space there, or give spool_dir another disk",
        )

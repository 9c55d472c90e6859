"""The leader's view of one spool file: how far it is shipped, and what is known of the object.

What a cursor holds in memory is lost with the process, and found again by asking the object (I2).
"""

from __future__ import annotations

import ctypes
import os
import sys

from .errors import Conflict
from .state import SpoolFile
from .store import Head, Store

CHUNK = 2**20  # bytes that are compared at a time
LOOK = 64 * 1024  # bytes in which the end of the last record is looked for


def agreeing(mine: bytes, theirs: bytes, mark: bytes) -> int:
    """How many bytes of the spool and of the object agree.

    A terminator in the spool agrees with anything: it may have ended a killed writer's fragment just after that was shipped.
    """
    start, end = 0, min(len(mine), len(theirs))
    while mine[start:end] != theirs[start:end]:
        start = next(at for at in range(start, end) if mine[at] != theirs[at])
        if mine[start : start + 1] != mark:
            return start
        start += 1
    return end


class Cursor:
    """One spool file, opened for reading.

    Attributes:
        file: the file, under its present name.
        acked: offset below which everything is acknowledged.
        head: the object as our last request left it, or ``None``: it must be asked.
        base: ``(prefix, offset)``: the object is the prefix, then the spool from the offset on. Known of an object that we
            have made or read back under its token; one that somebody may have edited is read back before it is rewritten.
    """

    def __init__(self, file: SpoolFile) -> None:
        self.file = file
        self.fd = os.open(file.path, os.O_RDWR | os.O_CLOEXEC)
        self.acked = file.state.file
        self.head: Head | None = None
        self.base: tuple[bytes, int] | None = None

    def close(self) -> None:
        os.close(self.fd)

    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def read(self, start: int, end: int) -> bytes:
        """The spool's bytes from ``start`` to ``end``, or to its end."""
        data = os.pread(self.fd, max(0, end - start), start)
        while len(data) < end - start and (piece := os.pread(self.fd, end - start - len(data), start + len(data))):
            data += piece
        return data

    def behind_last(self, mark: bytes, start: int, end: int) -> int:
        """The offset behind the last ``mark`` between ``start`` and ``end``; ``start`` if there is none."""
        while end > start:
            begin = max(start, end - LOOK)
            found = self.read(begin, end).rfind(mark)
            if found >= 0:
                return begin + found + 1
            end = begin
        return start

    def sync(self) -> None:
        getattr(os, "fdatasync", os.fsync)(self.fd)

    def offset_in_object(self) -> int:
        """The object's size if it is what our acknowledged bytes made of it."""
        return self.file.state.remote + self.acked - self.file.state.file

    def common(self, store: Store, head: Head, start: int, mark: bytes) -> int:
        """The object's offset up to which it agrees, from ``start`` on, with the spool (I3)."""
        state, size = self.file.state, self.size()
        while start < head.size:
            offset = state.file + start - state.remote
            mine = self.read(offset, min(offset + CHUNK, size))
            theirs = store.read(start, min(start + CHUNK, head.size), head)
            if not theirs:
                raise Conflict("the object became shorter while it was compared", url=store.location.url, operation="read")
            same = agreeing(mine, theirs, mark)
            start += same
            if same < len(theirs):
                break
        return start

    def present(self, store: Store, head: Head) -> bytes:
        """The object's bytes: from the spool where they are ours for certain, else read back under its token."""
        if self.base is None:
            self.base = (store.read(0, head.size, head), self.acked)
        prefix, offset = self.base
        return prefix + self.read(offset, self.acked)

    def punch(self) -> None:
        """Give the blocks below the anchor back to the file system; does nothing where that cannot be done.

        fallocate(2) with FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE: the size stays, so appending goes on as before.
        """
        if sys.platform.startswith("linux"):
            libc = ctypes.CDLL(None, use_errno=True)
            libc.fallocate(
                ctypes.c_int(self.fd), ctypes.c_int(0x01 | 0x02), ctypes.c_int64(0), ctypes.c_int64(self.file.state.file)
            )

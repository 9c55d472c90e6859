"""Which process of this host ships a spool, how the others wake it, and what it tells them.

An exclusive flock on ``leader`` that dies with its holder; a FIFO ``wake`` that the leader listens to; and the hint
``acknowledged``, which other processes' ``flush`` waits for.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading


def try_lock(fd: int, operation: int) -> bool:
    """Take a flock without waiting; whether it was free."""
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


class Leadership:
    """Of one spool directory. ``held`` is whether this process leads, ``fifo`` the descriptor that others wake it by."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._fd = self.fifo = -1
        self.mutex = threading.Lock()  # a fork waits for it, so that a child knows every descriptor that holds a lock

    @property
    def held(self) -> bool:
        return self._fd >= 0

    def take(self) -> bool:
        """Become the leader where nobody is; whether this process is it."""
        with self.mutex:
            return self.held or self._take()

    def _take(self) -> bool:
        fd = os.open(os.path.join(self.directory, "leader"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not try_lock(fd, fcntl.LOCK_EX):
            os.close(fd)
            return False
        self._fd = fd  # at once: whatever fails from here on, the lock is ours
        with contextlib.suppress(OSError):  # a full disk: the pid is there for people
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        wake = os.path.join(self.directory, "wake")
        with contextlib.suppress(OSError):  # a file system without FIFOs: other processes then wait for the timer
            with contextlib.suppress(FileExistsError):
                os.mkfifo(wake, 0o600)
            # Read and write, so that it never reports end-of-file when the last waker has gone.
            self.fifo = os.open(wake, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        return True

    def give_up(self) -> None:
        """Let another process lead."""
        with self.mutex:
            if self._fd >= 0:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            self._close()

    def forget_in_child(self) -> None:
        """Close the descriptors without unlocking: they are the parent's, which still leads."""
        self.mutex = threading.Lock()
        self._close()

    def _close(self) -> None:
        fds, self._fd, self.fifo = (self._fd, self.fifo), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def pid(self) -> int | None:
        """The process that leads, or led last."""
        with contextlib.suppress(OSError, ValueError), open(os.path.join(self.directory, "leader")) as file:
            return int(file.read())
        return None

    def wake(self) -> None:
        """Ask the leader, whichever process it is, for a flush."""
        with contextlib.suppress(OSError):
            fd = os.open(os.path.join(self.directory, "wake"), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.write(fd, b"\n")
            finally:
                os.close(fd)

    def acknowledge(self, generation: int, offset: int) -> None:
        """Tell other processes what the store has; for verified acknowledgements only."""
        with contextlib.suppress(OSError):  # a hint: a full disk must not stop the shipper
            fd = os.open(os.path.join(self.directory, "acknowledged"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                # Twice, as a read may see half of a write: an offset made of two would be a lie.
                os.pwrite(fd, b"%020d %020d\n" % (generation, offset) * 2, 0)
            finally:
                os.close(fd)

    def acknowledged(self) -> tuple[int, int]:
        """(generation, offset) below which the store has everything, as far as a leader has said. Never believed by one."""
        path = os.path.join(self.directory, "acknowledged")
        for _ in range(10):
            with contextlib.suppress(OSError, ValueError), open(path, "rb") as file:
                generation, offset, again, once_more = file.read().split()
                if (generation, offset) == (again, once_more):
                    return int(generation), int(offset)
        return 0, 0

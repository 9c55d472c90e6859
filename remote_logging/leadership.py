"""Which process of this host ships a spool, how the others wake it, and what it tells them.

An exclusive flock on ``leader`` that dies with its holder; a FIFO ``wake`` that the leader listens to; and the hint
``acknowledged``, which other processes' ``flush`` waits for.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os


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

    @property
    def held(self) -> bool:
        return self._fd >= 0

    def take(self) -> bool:
        """Become the leader where nobody is; whether this process is it."""
        if self.held:
            return True
        fd = os.open(os.path.join(self.directory, "leader"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not try_lock(fd, fcntl.LOCK_EX):
            os.close(fd)
            return False
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        self._fd = fd
        wake = os.path.join(self.directory, "wake")
        with contextlib.suppress(OSError):  # a file system without FIFOs: other processes then wait for the timer
            with contextlib.suppress(FileExistsError):
                os.mkfifo(wake, 0o600)
            # Read and write, so that it never reports end-of-file when the last waker has gone.
            self.fifo = os.open(wake, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        return True

    def give_up(self) -> None:
        """Let another process lead."""
        fd = self._fd
        if fd >= 0:
            fcntl.flock(fd, fcntl.LOCK_UN)
        self.forget()

    def forget(self) -> None:
        """Close the descriptors without unlocking: in a forked child they are the parent's, which still leads."""
        for fd in (self._fd, self.fifo):
            if fd >= 0:
                os.close(fd)
        self._fd = self.fifo = -1

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
                os.pwrite(fd, b"%020d %020d\n" % (generation, offset), 0)
            finally:
                os.close(fd)

    def acknowledged(self) -> tuple[int, int]:
        """(generation, offset) below which the store has everything, as far as a leader has said. Never believed by one."""
        with contextlib.suppress(OSError, ValueError), open(os.path.join(self.directory, "acknowledged"), "rb") as file:
            generation, offset = file.read().split()
            return int(generation), int(offset)
        return 0, 0

"""The spool: one directory per destination and host, holding what was accepted until the store has acknowledged it.

Format (version 1)::

    <spool_dir>/<readable name>-<digest>/        0700; the digest is over the destination's identity and this format
        destination.json                         URL and options without secrets, template, host, format version
        lock                                     held (flock) for moments, by whoever lists-and-joins, renames or unlinks
        leader                                   held by the process that ships; holds its pid; released by its death
        wake                                     a FIFO that the leader listens to
        acknowledged                             "<generation> <offset>": a hint for other processes
        <generation>-<boot>.<state>.spool        the records, byte for byte as the object gets them
        *.damaged                                set aside and reported, never touched again

A spool file's name is its state (I2), and is changed by rename and fsync of the directory before the act it announces:

    unplaced, unplaced-w        the store was not asked yet (-w: the object is to be replaced)
    replace-<token or none>     the first write replaces exactly that object; while it has that token, that is not done
    <remote>-<file>             the anchor: byte <file> of this file is byte <remote> of the object; below <file> all is
                                acknowledged and may have been given back
    ...-in-<label>              the same, in the sibling object of that label (I4)

Life cycle: a process joins the newest file, or creates the next generation where there is none, where the machine was
booted since (what a power cut left is not appended to), or for mode "w". Members hold a shared flock on the file they
append to. The leader ships generations in order, and removes one when all of it is acknowledged and nobody holds it (I7).
Bytes once written are never changed, but for the last byte of a fragment that a killed writer left (see appender.py).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from typing import Any

from .errors import SpoolError
from .leadership import Leadership, try_lock
from .location import Location
from .report import Reporter
from .state import SpoolFile, State

FORMAT = 1
LOCK_TIMEOUT = 10.0  # seconds; the lock is held for moments, so whoever holds it longer is stopped (Ctrl-Z) or hung
NETWORK = ("nfs", "cifs", "smb", "9p", "afs", "fuse.sshfs")  # file systems on which flock and O_APPEND do not hold
KEPT = 8192  # bytes below the last acknowledged one that are kept, so that the object's end can be compared (I3)


class Spool:
    """The directory of one destination. Several processes work in it at once; ``structure()`` serializes what changes names."""

    def __init__(self, directory: str, location: Location, report: Reporter) -> None:
        self.directory, self.location, self.report = directory, location, report
        self.leadership = Leadership(directory)

    @classmethod
    def of(cls, root: str, location: Location, report: Reporter) -> Spool:
        """The spool of ``location`` under the folder ``root``; touches nothing yet."""
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", location.url)[-60:].strip("-.")
        return cls(os.path.join(root, f"{readable}-{_digest(f'{FORMAT}:{location.identity()}')}"), location, report)

    # -- the directory ------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Create the directory and its description, or check what is there.

        Raises:
            SpoolError: it cannot be created or written, or belongs to somebody else.
        """
        try:
            os.makedirs(os.path.dirname(self.directory), mode=0o700, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.directory, 0o700)
            found = os.lstat(self.directory)
        except OSError as error:
            raise self._unusable(f"cannot be created ({error.strerror})") from error
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            # Whoever owns the directory could read the log, or point it at another file.
            raise self._unusable("is not a directory of this user")
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise self._unusable("is not writable")

    def describe(self) -> None:
        """Write ``destination.json``; a directory of another format is set aside whole (under ``structure``)."""
        path = os.path.join(self.directory, "destination.json")
        document = {"format": FORMAT, "host": socket.gethostname(), **self.location.document()}
        with contextlib.suppress(FileNotFoundError):
            found = read_document(self.directory)
            if found.get("format") == FORMAT and found.get("url") == document["url"]:
                return
            aside = f"{path}.{time.time_ns()}.damaged"
            os.rename(path, aside)
            for file in self._names(".spool"):
                os.rename(os.path.join(self.directory, file), os.path.join(self.directory, file + ".damaged"))
            self.report.say(
                "format",
                f"{self.directory} holds a spool of format {found.get('format')!r} (this version writes {FORMAT}); "
                f"its files were kept as *.damaged and are not shipped. The version that wrote them can ship them",
            )
        temporary = f"{path}.{os.getpid()}"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as output:
            json.dump(document, output, indent=1)
        os.rename(temporary, path)

    @contextlib.contextmanager
    def structure(self) -> Iterator[None]:
        """Serialize, between processes and threads, what lists and joins, renames or unlinks. Held for moments only.

        Raises:
            FileNotFoundError: the directory has been removed meanwhile.
            SpoolError: somebody has held it for ten seconds (I6).
        """
        with self.leadership.mutex:
            path = os.path.join(self.directory, "lock")
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise self._unusable(f"cannot be locked ({error.strerror})") from error
            try:
                deadline = time.monotonic() + LOCK_TIMEOUT
                while not try_lock(fd, fcntl.LOCK_EX):
                    if time.monotonic() > deadline:
                        raise self._unusable(f"is locked by a process that does not go on (see: fuser {path})")
                    time.sleep(0.002)
                if not _same_file(path, fd):
                    raise FileNotFoundError(errno.ENOENT, "the spool was removed meanwhile", path)
                yield
            finally:
                # Not by close alone: a child forked by C code may hold a copy of the descriptor.
                fcntl.flock(fd, fcntl.LOCK_UN)
                os.close(fd)

    def files(self) -> list[SpoolFile]:
        """The generations, oldest first. What bears no readable name is set aside and reported (I7)."""
        found = []
        for name in self._names(".spool"):
            file = SpoolFile.parse(self.directory, name)
            if file is not None:
                found.append(file)
            else:
                self.set_aside(os.path.join(self.directory, name), "its name is not one of ours")
        return sorted(found, key=lambda file: file.generation)

    def create(self, state: State) -> SpoolFile:
        """The next generation, empty (under ``structure``)."""
        last = max([self.leadership.acknowledged()[0], *(file.generation for file in self.files())])
        file = SpoolFile(self.directory, last + 1, boot_id(), state)
        os.close(os.open(file.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        return file

    def sync(self) -> None:
        """Make the directory durable, before the first byte is shipped from it: until then a power cut may take it all (I1)."""
        fd = os.open(os.path.join(self.directory, "destination.json"), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        self._sync_directory()

    def move(self, file: SpoolFile, state: State) -> SpoolFile:
        """Give ``file`` the name of its new state, durably, before anything is done that relies on it (I2)."""
        moved = SpoolFile(self.directory, file.generation, file.boot, state)
        if moved.path != file.path:
            with self.structure():
                os.rename(file.path, moved.path)
                self._sync_directory()
        return moved

    def hand_on(self, label: str | None) -> None:
        """The oldest file is about to go: a sibling that was chosen for it while a newer one waited is that one's, too (I4)."""
        following = self.files()[1:2]
        for file in following if label else ():
            if file.state.kind == "unplaced" and not file.state.label:
                self.move(file, State.unplaced(label=label))

    def remove(self, file: SpoolFile, size: int) -> bool:
        """Unlink ``file`` if it still has ``size`` bytes and nobody holds it (I7). The caller knows all is acknowledged."""
        with self.structure():
            if self.occupied(file) or os.stat(file.path).st_size != size:
                return False
            os.unlink(file.path)
            self._sync_directory()
            return True

    def settle_empty(self) -> None:
        """A member that never shipped has left: remove what is empty, keep anything else."""
        with contextlib.suppress(OSError):
            if not self.leadership.take():
                return
            try:
                for file in self.files():
                    if os.stat(file.path).st_size == 0 and not file.state.label:
                        self.remove(file, 0)
                self.erase()
            finally:
                self.leadership.give_up()

    def occupied(self, file: SpoolFile) -> bool:
        """Whether any process of this host is a member of ``file`` (under ``structure``, so that nobody joins meanwhile)."""
        # On a descriptor of its own: converting a lock that is held drops it when the conversion fails.
        fd = os.open(file.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return not try_lock(fd, fcntl.LOCK_EX)
        finally:
            os.close(fd)

    def erase(self) -> None:
        """Remove the directory, where it holds no spool file and nothing that was set aside (under our leadership)."""
        with self.structure():
            if self._names(".spool") or self._names(".damaged"):
                return
            # The lock goes last: who waits for it finds that its path names another file, or none, and starts again.
            for name in ("acknowledged", "wake", "destination.json", "leader", "lock"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(self.directory, name))
            with contextlib.suppress(OSError):
                os.rmdir(self.directory)

    def set_aside(self, path: str, why: str) -> None:
        """Keep a damaged file under another name, and say so (I7)."""
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, path + ".damaged")
            self.report.say(f"damaged {path}", f"{path} is damaged: {why}. It was kept as {path}.damaged and is not shipped")

    # -- small things ---------------------------------------------------------------------------------------------------

    def held(self) -> int:
        """Bytes on disk that no acknowledgement has freed yet, over all generations."""
        return self.pending((0, 0))

    def pending(self, acknowledged: tuple[int, int]) -> int:
        """Bytes above the position ``acknowledged``, over all generations."""
        total = 0
        for file in self.files():
            done = acknowledged[1] if file.generation == acknowledged[0] else 0
            with contextlib.suppress(FileNotFoundError):  # renamed while we looked: counted next time
                total += max(0, os.stat(file.path).st_size - max(done, file.state.file))
        return total

    def _names(self, suffix: str) -> list[str]:
        try:
            return [name for name in os.listdir(self.directory) if name.endswith(suffix)]
        except FileNotFoundError:
            return []

    def _sync_directory(self) -> None:
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _unusable(self, why: str) -> SpoolError:
        return SpoolError(
            f"the spool directory {self.directory} {why}",
            url=self.location.url,
            hint="Give spool_dir (or REMOTE_LOGGING_SPOOL_DIR) a directory on a local disk that this user can write",
        )


def default_root() -> str:
    """Where spools lie unless the user says otherwise: the user's state directory, which is not cleared like /tmp."""
    from platformdirs import user_state_dir  # 3 ms or more, only where spool_dir is not given

    return user_state_dir("remote_logging")


def read_document(directory: str) -> dict[str, Any]:
    """What ``destination.json`` says; an unreadable one reads as one of an unknown format.

    Raises:
        FileNotFoundError: there is none.
    """
    with open(os.path.join(directory, "destination.json"), "rb") as file:
        try:
            document = json.load(file)
        except ValueError:
            document = {}
    return document if isinstance(document, dict) else {}


def network_file_system(directory: str, mounts: str = "/proc/self/mounts") -> str | None:
    """The kind of network file system that ``directory`` is on, such as ``"nfs4"``; ``None`` on a local disk, or unknown."""
    holder, kind = "", ""
    with contextlib.suppress(OSError), open(mounts) as file:
        for line in file:
            place, its_kind = line.split()[1:3]
            place = place.replace("\\040", " ").rstrip("/")
            if f"{directory}/".startswith(f"{place}/") and len(place) >= len(holder):
                holder, kind = place, its_kind
    return kind if kind.startswith(NETWORK) else None


def boot_id() -> str:
    """Changes when the machine is booted; the same for ever where the system does not tell."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read(8)
    return "0"


def _same_file(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _digest(text: str) -> str:
    # As random.py does: hashlib loads OpenSSL, which takes longer than all the rest of setting up a handler.
    try:
        from _sha2 import sha256  # type: ignore[import-not-found]  # private, but stable enough for random.py
    except ImportError:
        try:
            from _sha256 import sha256  # type: ignore[import-not-found]  # its name until 3.11
        except ImportError:
            from hashlib import sha256
    return str(sha256(text.encode()).hexdigest()[:16])

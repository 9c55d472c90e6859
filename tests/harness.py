"""Kills processes that log, at random and at named points, and compares the object with what was accepted.

Runs as a process of its own (``python -m tests.harness``), which imports everything once and forks a child per run; so a
run takes a fraction of a second. Prints one JSON line.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from remote_logging import RemoteHandler
from remote_logging.embedded import EmbeddedS3
from remote_logging.store import FileStore
from remote_logging.store_s3 import S3Store

from .support import record_logger

PAST_THE_LAST_EVENT = 77


class Destination:
    """Where the children log to, read without the package."""

    def __init__(self, port: int | None, name: str, folder: Path) -> None:
        self.server = EmbeddedS3(port) if port else None
        self.key = f"run/{name}.log"
        self.file = folder / f"{name}.log"
        self.url = f"s3://harness/{self.key}" if self.server else str(self.file)
        self.options = self.server.storage_options if self.server else None

    def read(self) -> bytes:
        if self.server:
            return self.server.read("harness", self.key)
        return self.file.read_bytes() if self.file.exists() else b""


class Accepted:
    """What children have accepted: each adds a byte to a file after each ``emit`` that returned."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.boundaries = [0]  # record numbers at which a child ended: the next one of it may have been written in part

    def count(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0


def record(number: int, size: int) -> bytes:
    return (b"%d " % number).ljust(size - 1, b"%d" % (number % 10)) + b"\n"


def mismatch(body: bytes, numbers: int, boundaries: list[int], size: Callable[[int], int]) -> str | None:
    """Why ``body`` is not, byte for byte, the accepted records in order; ``None`` if it is.

    Where a child was killed, the record that it was writing may follow, whole or as a fragment that a newline ends: it was
    not accepted, as its ``emit`` never returned.
    """
    at = 0
    for number in range(numbers + 1):
        if number in boundaries:
            interrupted = record(number, size(number)).replace(b"\n", b"") + b"!\n"  # longer than any that was accepted
            end = body.find(b"\n", at) + 1 or len(body)
            piece = body[at:end].rstrip(b"\n")
            unfinished = record(number, size(number))[:-1].startswith(piece) and len(interrupted) > len(piece) > 0
            following = number < numbers and body.startswith(record(number, size(number)), at)
            twice = body.startswith(record(number, size(number)) * 2, at)
            if unfinished and (not following or twice):
                at = end
        if number == numbers:
            break
        expected = record(number, size(number))
        if not body.startswith(expected, at):
            return f"record {number} of {numbers} is not at byte {at}: {body[at : at + 40]!r} (object has {len(body)} bytes)"
        at += len(expected)
    return None if at == len(body) else f"{len(body) - at} bytes too many, from {body[at : at + 40]!r}"


def log(
    destination: Destination, spool: Path, accepted: Accepted, count: int, size: Callable[[int], int], flush_each: int
) -> None:
    """What a child does: log ``count`` records from the first number that is not accepted yet."""
    handler = RemoteHandler(
        destination.url, storage_options=destination.options, spool_dir=spool, flush_interval=0.02, close_timeout=30
    )
    logger = record_logger(handler)
    marks = os.open(accepted.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    start = accepted.count()
    for number in range(start, start + count):
        logger.info(record(number, size(number))[:-1].decode())
        os.write(marks, b".")
        if not flush_each:
            time.sleep(size(number) / 50e6)  # 50 MB/s: a program does something else, too
        if flush_each and number % flush_each == flush_each - 1:
            handler.flush()
    handler.close()


def fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def random_kills(kills: int, port: int | None, seed: int, threads_size: int) -> list[str]:
    """Kill children at random moments; the next one continues. Then one ends normally, and the object is compared."""
    rng = random.Random(seed)
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        destination = Destination(port, f"random-{seed}", base)
        accepted = Accepted(base / "accepted")
        size = lambda number: threads_size  # noqa: E731
        for _ in range(kills):
            pid = fork(lambda: log(destination, base / "spool", accepted, 10**9, size, 0))
            time.sleep(rng.uniform(0.01, 0.35))
            os.kill(pid, signal.SIGKILL)
            ended(pid)
            accepted.boundaries.append(accepted.count())
        status = ended(fork(lambda: log(destination, base / "spool", accepted, 3, size, 0)))
        if status:
            problems.append(f"the last process ended with {status}")
        why = mismatch(destination.read(), accepted.count(), accepted.boundaries, size)
        if why:
            problems.append(why)
        if accepted.count() < kills:
            problems.append("hardly anything was logged")
        problems += [f"left: {left}" for left in (base / "spool").glob("*/*.spool")]
    return problems


def install(event: int, mode: str, seen: list[str]) -> None:
    """Wrap each store call, rename and unlink; at number ``event`` do what ``mode`` says."""

    def wrap(owner: Any, name: str, *, fails: bool) -> None:
        real = getattr(owner, name)

        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            mine = len(seen) == event
            detail = arguments[1] if name == "_call" else arguments[0] if name in ("rename", "unlink") else ""
            seen.append(f"{name} {detail}")
            if mine and mode == "kill before":
                os.kill(os.getpid(), signal.SIGKILL)
            if mine and mode == "fail" and fails:
                raise ConnectionError("injected: not sent")
            try:
                result = real(*arguments, **keywords)
            finally:
                if mine and mode == "kill after":
                    os.kill(os.getpid(), signal.SIGKILL)
            if mine and mode == "lose the reply" and fails:
                raise ConnectionError("injected: the reply is lost")
            return result

        setattr(owner, name, wrapper)

    wrap(S3Store, "_call", fails=True)
    wrap(S3Store, "read", fails=True)
    for verb in ("head", "read", "append", "put"):
        wrap(FileStore, verb, fails=True)
    wrap(os, "rename", fails=False)
    wrap(os, "unlink", fails=False)


def named_points(port: int | None, mode: str, mode_w: bool) -> tuple[list[str], list[str]]:
    """One run per event: the fault strikes there, the next process continues, the object is compared."""
    from remote_logging import shipper

    shipper.RECLAIM = 256 * 1024  # so that the short scenario gives disk back and starts new files, too
    shipper.RENEW = 1024 * 1024
    sizes = {0: 300, 1: 2_500_000, 2: 2_500_000, 3: 700_000, 4: 700_000}
    size = lambda number: sizes.get(number, 200)  # noqa: E731
    problems: list[str] = []
    points: list[str] = []
    for event in range(500):
        with tempfile.TemporaryDirectory() as folder:
            base = Path(folder)
            destination = Destination(port, f"point-{mode.replace(' ', '-')}-{event}", base)
            accepted = Accepted(base / "accepted")

            def struck(
                event: int = event, base: Path = base, where: Destination = destination, to: Accepted = accepted
            ) -> None:
                seen: list[str] = []
                install(event, mode, seen)
                if mode_w:
                    RemoteHandler(where.url, "w", storage_options=where.options, spool_dir=base / "spool")
                log(where, base / "spool", to, 7, size, 1)
                (base / "point").write_text(seen[event] if len(seen) > event else "")
                if len(seen) <= event:
                    os._exit(PAST_THE_LAST_EVENT)

            status = ended(fork(struck))
            if status == PAST_THE_LAST_EVENT:
                break
            points.append(f"{mode} {event}")
            killed = status == -signal.SIGKILL
            if killed != mode.startswith("kill"):
                problems.append(f"{mode} {event}: ended with {status}")
            if killed:
                accepted.boundaries.append(accepted.count())
                status = ended(fork(lambda base=base, d=destination, a=accepted: log(d, base / "spool", a, 2, size, 1)))  # type: ignore[misc]
            why = mismatch(destination.read(), accepted.count(), accepted.boundaries, size)
            left = list((base / "spool").glob("*/*.spool"))
            if status or why or left:
                problems.append(f"{mode} {event}: {why}, left {left}, the next process ended with {status}")
    return points, problems


def main() -> None:
    given: dict[str, Any] = json.loads(sys.argv[1])
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    if given["kind"] == "random":
        problems = random_kills(given["kills"], given["port"], given["seed"], given["size"])
        print(json.dumps({"problems": problems}))
    else:
        points, problems = named_points(given["port"], given["mode"], given.get("mode_w", False))
        print(json.dumps({"points": len(points), "problems": problems}))


if __name__ == "__main__":
    main()

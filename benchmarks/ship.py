"""What it costs to keep one object of S3 up to date with a log that grows: bytes and requests per flush.

200 times, 100 KB of log lines are written and flushed to one object on the embedded S3 server, which counts what passes.
Each way ships the same bytes and must leave the same object:

- ``RemoteHandler``: ``handler.flush()`` after each 100 KB;
- whole file: the log is a local file, and each flush uploads all of it with ``s3fs.put_file``;
- append: each flush opens the object with ``s3fs.open(key, "ab")``. (Not safe: a request that fails can empty the object.)

How to read it: "up" and "down" are the bytes of bodies sent and received, divided by the log's bytes. 1 up and 0 down would
be ideal, but S3 cannot append: an object below 5 MiB has to be sent whole, above that the store can copy it by itself. That
alone costs 7.9 up in 200 such flushes (and 10.5 in the 20 of ``--quick``, which stay below 5 MiB). What comes down at
``RemoteHandler`` is the XML of replies. "ms" is without any network: the server is on this machine.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import s3fs
from common import BUCKET, is_quick, save, show

from remote_logging import RemoteHandler
from remote_logging.embedded import EmbeddedS3, embedded_s3

FLUSHES, QUICK_FLUSHES = 200, 20
RECORDS, LINE_SIZE = 1_000, 100  # in one flush; bytes, newline included


class Way(NamedTuple):
    """A way to keep the object ``key`` up to date: ``write`` takes the lines of one flush, ``flush`` ships them."""

    name: str
    key: str
    write: Callable[[list[str]], None]
    flush: Callable[[], None]


class Cost(NamedTuple):
    """What one way cost in all."""

    flushes: int
    log_bytes: int
    requests: int
    up: int
    down: int
    seconds: float


@contextmanager
def remote_handler(server: EmbeddedS3, folder: str) -> Iterator[Way]:
    handler = RemoteHandler(
        f"s3://{BUCKET}/handler.log",
        storage_options=server.storage_options,
        flush_interval=None,
        spool_dir=os.path.join(folder, "spool"),
    )

    def write(lines: list[str]) -> None:
        for line in lines:
            handler.handle(logging.LogRecord("train", logging.INFO, __file__, 0, line, None, None))

    def flush() -> None:
        if not handler.flush():
            raise RuntimeError(f"not shipped: {handler.stats()}")

    yield Way("RemoteHandler", "handler.log", write, flush)
    handler.close()


@contextmanager
def whole_file(server: EmbeddedS3, folder: str) -> Iterator[Way]:
    filesystem = s3fs.S3FileSystem(**server.storage_options, skip_instance_cache=True)
    path = os.path.join(folder, "whole.log")
    with open(path, "w") as file:

        def write(lines: list[str]) -> None:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()

        yield Way("whole file (s3fs put_file)", "whole.log", write, lambda: filesystem.put_file(path, f"{BUCKET}/whole.log"))


@contextmanager
def append(server: EmbeddedS3, _folder: str) -> Iterator[Way]:
    filesystem = s3fs.S3FileSystem(**server.storage_options, skip_instance_cache=True)
    waiting: list[str] = []

    def flush() -> None:
        with filesystem.open(f"{BUCKET}/append.log", "ab") as file:
            file.write("".join(f"{line}\n" for line in waiting).encode())
        waiting.clear()

    yield Way('append (s3fs open "ab")', "append.log", waiting.extend, flush)


def lines_of(flush: int) -> list[str]:
    """The lines of one flush, no two of them alike."""
    return [f"flush {flush:5} record {number:5} ".ljust(LINE_SIZE - 1, ".") for number in range(RECORDS)]


def cost(way: Way, server: EmbeddedS3, flushes: int) -> Cost:
    """Write and flush ``flushes`` times; only the flushes are timed.

    Raises:
        RuntimeError: the object is not the log.
    """
    server.reset()
    seconds, log = 0.0, b""
    for number in range(flushes):
        lines = lines_of(number)
        log += "".join(f"{line}\n" for line in lines).encode()
        way.write(lines)
        start = time.perf_counter()
        way.flush()
        seconds += time.perf_counter() - start
    counted = server.counters()
    if server.read(BUCKET, way.key) != log:
        raise RuntimeError(f"{way.name}: the object is not the log")
    return Cost(flushes, len(log), counted["requests"], counted["up"], counted["down"], seconds)


def row(name: str, found: Cost) -> list[str]:
    return [
        name,
        f"{found.up / found.log_bytes:.2f}",
        f"{found.down / found.log_bytes:.3f}",
        f"{found.requests / found.flushes:.2f}",
        f"{found.seconds / found.flushes * 1000:.1f}",
    ]


def main() -> None:
    quick = is_quick(__doc__)
    flushes = QUICK_FLUSHES if quick else FLUSHES
    costs: dict[str, Cost] = {}
    with tempfile.TemporaryDirectory() as folder, embedded_s3() as server:
        server.make_bucket(BUCKET)
        for make in (remote_handler, whole_file, append):
            with make(server, folder) as way:
                costs[way.name] = cost(way, server, flushes)
    show(
        f"{flushes} flushes of {RECORDS * LINE_SIZE:,} bytes each to one object of S3",
        ("way", "up / log bytes", "down / log bytes", "requests / flush", "ms / flush"),
        [row(name, found) for name, found in costs.items()],
    )
    save(__file__, {"quick": quick, "ways": {name: found._asdict() for name, found in costs.items()}})


if __name__ == "__main__":
    main()

"""``remote-logging demo``: real records in a real store, a process killed in mid-run, and the count of what was lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from .embedded import embedded_s3
from .errors import ConfigurationError
from .location import Template
from .store import Store, open_store

END = "the end"  # tells a whole record from a fragment
TEXT = "epoch=%03d loss=%.6f " + "a line of a training log, as long as such lines are; " * 16 + END
FLUSH_INTERVAL = 0.5


def demo(url: str | None, records: int) -> int:
    """Run the demo; 0 if nothing was lost or doubled."""
    if records < 2:
        raise ConfigurationError(f"--records is {records}", hint="Give 2 or more")
    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = json.loads(os.environ.get("REMOTE_LOGGING_STORAGE_OPTIONS") or "{}")
        server = None
        if url is None:
            server = stack.enter_context(embedded_s3())
            server.make_bucket("demo")
            url, options = "s3://demo/run/training.log", server.storage_options
            print(f"An S3 server of our own answers at {server.endpoint}")
        elif url.endswith("/"):
            url += f"remote-logging-demo-{int(time.time())}.log"
        spool = stack.enter_context(tempfile.TemporaryDirectory(prefix="remote-logging-demo-"))
        store = open_store(Template(url, options).resolve())
        stack.callback(store.close)
        print(f"Records go to {url}\n")
        watch = _Watch(store)
        first = _run(url, options, spool, range(records // 2), watch, kill=True)
        second = _run(url, options, spool, range(records // 2, records), watch, kill=False)
        body = store.read(0, head.size, head) if (head := store.head()).size else b""
        uploaded = server.counters()["up"] if server else first.uploaded + second.uploaded
        # The record that the kill interrupted may be in the kernel although its emit never returned: then it was accepted.
        whole = [line for line in body.decode().splitlines() if line.startswith(watch.run) and line.endswith(END)]
        stored = Counter(int(line.split()[1]) for line in whole)
        accepted = {*first.accepted, *second.accepted, *({first.attempted} & stored.keys())}
        counted = "" if server else ", as counted by the processes"
        lost, doubled = len(accepted - stored.keys()), stored.total() - len(stored)
        print(
            f"\naccepted     {len(accepted):>12,} records by two processes, the first killed with SIGKILL\n"
            f"stored       {len(stored):>12,} records in {url}\n"
            f"lost         {lost:>12,}\n"
            f"duplicated   {doubled:>12,}\n"
            f"log          {len(body):>12,} bytes\n"
            f"uploaded     {uploaded:>12,} bytes in {watch.growths} flushes{counted}\n"
            f"             {watch.whole:>12,} bytes if the whole file were uploaded at each of them\n"
        )
        print(f"accepted={len(accepted)} stored={stored.total()} lost={lost} duplicated={doubled} uploaded={uploaded}")
        return 1 if lost or doubled else 0


class _Watch:
    """Sees the object grow: how often, and what uploading it whole each time would have cost."""

    def __init__(self, store: Store) -> None:
        self.store, self.size, self.whole, self.growths = store, store.head().size, 0, 0
        self.run = os.urandom(4).hex()

    def look(self) -> None:
        size = self.store.head().size
        if size != self.size:
            self.growths += 1
            self.whole += size
            print(f"  {size:>12,} bytes in the store (+{size - self.size:,})")
        self.size = size


class _Result:
    def __init__(self) -> None:
        self.accepted: set[int] = set()
        self.attempted = -1
        self.uploaded = 0

    def hear(self, line: str) -> None:
        word, value = line.split()
        if word == "try":
            self.attempted = int(value)
        elif word == "accepted":
            self.accepted.add(int(value))
        else:
            self.uploaded = int(value)


def _run(url: str, options: dict[str, Any], spool: str, numbers: range, watch: _Watch, *, kill: bool) -> _Result:
    """Log ``numbers`` from a process of its own; with ``kill`` it gets SIGKILL at two thirds of them."""
    result = _Result()
    span = {"from": numbers.start, "to": numbers.stop}
    given = json.dumps({"url": url, "options": options, "spool": spool, "run": watch.run, **span})
    with subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:  # noqa: S603
        assert child.stdin is not None and child.stdout is not None  # noqa: S101 - for the type checker
        print(f"Process {child.pid} logs records {numbers.start:,} to {numbers.stop - 1:,}")
        child.stdin.write(given)
        child.stdin.close()
        looked = time.monotonic()
        for line in child.stdout:
            result.hear(line)
            if time.monotonic() - looked > FLUSH_INTERVAL / 4:
                watch.look()
                looked = time.monotonic()
            if kill and len(result.accepted) * 3 >= len(numbers) * 2 and watch.growths:
                child.send_signal(signal.SIGKILL)
                kill = False
    watch.look()
    how = "was killed with SIGKILL" if child.returncode == -signal.SIGKILL else f"has ended with status {child.returncode}"
    print(f"Process {child.pid} {how} after {len(result.accepted):,} records; {watch.size:,} bytes are in the store\n")
    return result


def _numbered(given: dict[str, Any]) -> Iterator[int]:
    for number in range(given["from"], given["to"]):
        yield number
        if number % 50 == 0:
            time.sleep(0.02)  # a program that does something else, too: the flushes are to be seen


def _child() -> None:
    import logging.config

    given = json.load(sys.stdin)
    logging.config.dictConfig(
        {
            "version": 1,
            "formatters": {"line": {"format": "%(message)s"}},
            "handlers": {
                "remote": {
                    "class": "remote_logging.RemoteHandler",
                    "url": given["url"],
                    "storage_options": given["options"],
                    "spool_dir": given["spool"],
                    "flush_interval": FLUSH_INTERVAL,
                    "formatter": "line",
                }
            },
            "root": {"level": "INFO", "handlers": ["remote"]},
        }
    )
    handler: Any = logging.getLogger().handlers[0]
    out = sys.stdout.fileno()
    for number in _numbered(given):
        os.write(out, b"try %d\n" % number)
        logging.info("%s %d " + TEXT, given["run"], number, number // 1000, 1 / (number + 1))
        os.write(out, b"accepted %d\n" % number)
        if number % 500 == 0:
            os.write(out, b"uploaded %d\n" % handler.stats().uploaded_bytes)
    handler.flush()
    os.write(out, b"uploaded %d\n" % handler.stats().uploaded_bytes)


if __name__ == "__main__":
    _child()

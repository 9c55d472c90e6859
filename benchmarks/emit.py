"""What one log record costs the thread that logs it, beside peers, and what that thread notices of uploads.

All candidates log the same lines of about 100 bytes, with the stock ``logging.Formatter`` (loguru with its own), in short
rounds that take turns, so that whatever else the machine does hits all of them. What a candidate leaves for the background
is done to its end after each round, and not timed: a queue that grows for ever would look no worse than here.
``logging.FileHandler`` is the reference in every table: "x File" is the median, over all rounds, of the ratio to its result
in the same round; of percentiles, which are taken over all rounds, it is the plain ratio. 1.00 is as good as a local file,
less is better.

1. One thread, and eight threads at once (wall time per record).
2. Single records: the slowest in a thousand (p99.9).
3. The same while S3 uploads of 100 KB and more run back to back in the background: through the very handler that is
   measured, and through another one beside a ``FileHandler``. Both wait for an interpreter lock that the uploads hold.
4. ``dictConfig`` and the first record in a fresh interpreter.
5. Memory and losses over a million records while the store cannot be reached (Linux only), from when it has failed for a
   while: what it takes to import the store's library and to connect anew is not counted.

Shipping goes to the embedded S3 server on this machine; watchtower's CloudWatch client is a stub that takes no time.
"""

from __future__ import annotations

import gc
import glob
import itertools
import json
import logging
import logging.handlers
import os
import queue
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

import loguru
import watchtower
from common import BUCKET, is_quick, save, show

from remote_logging import RemoteHandler
from remote_logging.embedded import EmbeddedS3, embedded_s3

LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LOGURU_LINE = "{time:YYYY-MM-DD HH:mm:ss,SSS} {level} {name}: {message}"
MESSAGE = "step %d of epoch %d: loss %.4f, accuracy %.4f, rate %g"
LOGURU_MESSAGE = "step {} of epoch {}: loss {:.4f}, accuracy {:.4f}, rate {:g}"
VALUES = (12, 0.1234, 0.9876, 0.0003)
THREADS = 8
REFERENCE = "FileHandler"
UPLOADED = "x" * 100_000

Result = TypeVar("Result")


class Size(NamedTuple):
    """How much is measured."""

    rounds: int
    records: int  # in a round of table 1
    single_rounds: int
    singles: int  # in a round of tables 2 and 3
    starts: int
    backlog: int


FULL = Size(rounds=31, records=2_000, single_rounds=16, singles=10_000, starts=15, backlog=1_000_000)
QUICK = Size(rounds=7, records=800, single_rounds=3, singles=2_000, starts=3, backlog=50_000)


class Candidate(NamedTuple):
    """``log(message, *values)`` logs one record; ``drain`` waits until the background work that it caused is done."""

    name: str
    log: Callable[..., object]
    message: str
    drain: Callable[[], object]


# -- the candidates -----------------------------------------------------------------------------------------------------------


def logger_of(handler: logging.Handler) -> logging.Logger:
    """A logger with just this handler, outside the hierarchy."""
    logger = logging.Logger("train", logging.INFO)
    logger.addHandler(handler)
    return logger


def with_formatter(handler: logging.Handler) -> logging.Handler:
    handler.setFormatter(logging.Formatter(LINE))
    return handler


def remote_handler(server: EmbeddedS3, folder: str, key: str) -> RemoteHandler:
    handler = RemoteHandler(
        f"s3://{BUCKET}/{key}", storage_options=server.storage_options, spool_dir=os.path.join(folder, "spool")
    )
    with_formatter(handler)
    return handler


def file_handler(folder: str, name: str) -> logging.Handler:
    return with_formatter(logging.FileHandler(os.path.join(folder, name)))


@contextmanager
def all_candidates(server: EmbeddedS3, folder: str) -> Iterator[list[Candidate]]:
    with ExitStack() as stack:
        plain = file_handler(folder, "file.log")
        stack.callback(plain.close)

        remote = remote_handler(server, folder, "emit.log")
        stack.callback(remote.close)

        records: queue.Queue[Any] = queue.Queue()
        queued = with_formatter(logging.handlers.QueueHandler(records))
        behind = logging.FileHandler(os.path.join(folder, "queue.log"))
        listener = logging.handlers.QueueListener(records, behind)
        listener.start()
        stack.callback(behind.close)
        stack.callback(listener.stop)

        loguru.logger.remove()
        loguru.logger.add(os.path.join(folder, "loguru.log"), format=LOGURU_LINE, enqueue=True)
        stack.callback(loguru.logger.remove)

        client = SimpleNamespace(put_log_events=lambda **_: {}, exceptions=SimpleNamespace())
        watching = watchtower.CloudWatchLogHandler("group", "stream", boto3_client=client, create_log_group=False)
        with_formatter(watching)
        stack.callback(watching.close)

        yield [
            Candidate(REFERENCE, logger_of(plain).info, MESSAGE, plain.flush),
            Candidate("RemoteHandler", logger_of(remote).info, MESSAGE, remote.flush),
            Candidate("QueueHandler + QueueListener", logger_of(queued).info, MESSAGE, records.join),
            Candidate("loguru, enqueue=True", loguru.logger.info, LOGURU_MESSAGE, loguru.logger.complete),
            Candidate("watchtower, stubbed client", logger_of(watching).info, MESSAGE, watching.flush),
        ]


# -- how a round is timed -----------------------------------------------------------------------------------------------------


def burst(candidate: Candidate, records: int) -> float:
    """Seconds for one record, of ``records`` in a row."""
    log, message = candidate.log, candidate.message
    start = time.perf_counter()
    for number in range(records):
        log(message, number, *VALUES)
    return (time.perf_counter() - start) / records


def burst_of_threads(candidate: Candidate, records: int) -> float:
    """Wall seconds for one record, where ``THREADS`` threads log ``records`` in all."""
    spans: list[tuple[float, float]] = []
    together = threading.Barrier(THREADS)

    def work() -> None:
        together.wait()
        start = time.perf_counter()
        burst(candidate, records // THREADS)
        spans.append((start, time.perf_counter()))

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (max(end for _, end in spans) - min(start for start, _ in spans)) / records


def singles(candidate: Candidate, records: int) -> list[float]:
    """The seconds that each of ``records`` took."""
    log, message, clock = candidate.log, candidate.message, time.perf_counter
    taken = []
    for number in range(records):
        start = clock()
        log(message, number, *VALUES)
        taken.append(clock() - start)
    return taken


def in_turns(candidates: Sequence[Candidate], rounds: int, measure: Callable[[Candidate], Result]) -> dict[str, list[Result]]:
    """What ``measure`` finds in each round, by candidate. Who begins changes with each round; the first one warms up."""
    found: dict[str, list[Result]] = {candidate.name: [] for candidate in candidates}
    for number in range(rounds):
        begin = number % len(candidates)
        for candidate in (*candidates[begin:], *candidates[:begin]):
            gc.collect()
            result = measure(candidate)
            candidate.drain()
            if number:
                found[candidate.name].append(result)
    return found


# -- tables 1 and 2 -----------------------------------------------------------------------------------------------------------


def per_record(title: str, found: dict[str, list[float]]) -> dict[str, Any]:
    """Show and return least and median microseconds, and the ratio to the reference."""
    results = {
        name: {
            "min_us": min(seconds) * 1e6,
            "median_us": statistics.median(seconds) * 1e6,
            "ratio": statistics.median(ours / file for ours, file in zip(seconds, found[REFERENCE], strict=True)),
        }
        for name, seconds in found.items()
    }
    show(
        title,
        ("per record", "min us", "median us", "x File"),
        [[name, *(f"{result[key]:.2f}" for key in ("min_us", "median_us", "ratio"))] for name, result in results.items()],
    )
    return results


def percentiles(title: str, found: dict[str, list[list[float]]]) -> dict[str, Any]:
    """Show and return median, p99 and p99.9 in microseconds over all rounds, and the ratio of p99.9 to the reference."""
    results: dict[str, dict[str, float]] = {}
    for name, rounds in found.items():
        taken = sorted(itertools.chain.from_iterable(rounds))
        results[name] = {f"p{share:g}_us": taken[int(len(taken) * share / 100)] * 1e6 for share in (50, 99, 99.9)}
    for result in results.values():
        result["p99.9_ratio"] = result["p99.9_us"] / results[REFERENCE]["p99.9_us"]
    show(
        title,
        ("single records", "p50 us", "p99 us", "p99.9 us", "p99.9 x File"),
        [
            [name, *(f"{result[key]:.1f}" for key in ("p50_us", "p99_us", "p99.9_us")), f"{result['p99.9_ratio']:.2f}"]
            for name, result in results.items()
        ],
    )
    return results


# -- table 3: during uploads --------------------------------------------------------------------------------------------------


@contextmanager
def uploading(handler: RemoteHandler) -> Iterator[None]:
    """Uploads through ``handler`` back to back, each of all that was logged meanwhile and 100 KB more."""
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            handler.handle(logging.LogRecord("train", logging.INFO, __file__, 0, UPLOADED, None, None))
            handler.flush()

    handler.handle(logging.LogRecord("train", logging.INFO, __file__, 0, UPLOADED, None, None))
    handler.flush()  # imports and connects
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if handler.stats().failures:
        raise RuntimeError(f"the uploads failed: {handler.stats().last_error}")


def during_uploads(server: EmbeddedS3, folder: str, size: Size) -> dict[str, list[list[float]]]:
    """Single records as in table 2. Each round has an object of its own, so that all see uploads of the same sizes."""
    objects = itertools.count()

    def measure(candidate: Candidate) -> list[float]:
        uploader = remote_handler(server, folder, f"during-{next(objects)}.log")
        measured = uploader if candidate.name == "RemoteHandler" else plain
        with uploading(uploader):
            taken = singles(candidate._replace(log=logger_of(measured).info), size.singles)
        uploader.close()
        return taken

    plain = file_handler(folder, "during.log")
    try:
        both = [Candidate(name, plain.handle, MESSAGE, plain.flush) for name in (REFERENCE, "RemoteHandler")]
        return in_turns(both, size.single_rounds, measure)
    finally:
        plain.close()


# -- tables 4 and 5: processes of their own -----------------------------------------------------------------------------------

FIRST_RECORD = """
import json, logging.config, os, sys, time
handler = {**json.loads(sys.argv[1]), "formatter": "line"}
config = {"version": 1, "formatters": {"line": {"format": sys.argv[2]}}, "handlers": {"it": handler},
          "root": {"level": "INFO", "handlers": ["it"]}}
start = time.perf_counter()
logging.config.dictConfig(config)
logging.getLogger("train").info("the first record")
print(time.perf_counter() - start, flush=True)
os._exit(0)  # there is no store to ship to
"""

BACKLOG = """
import json, logging, os, statistics, sys, time
from remote_logging import RemoteHandler
arguments, line, message, values, records = json.loads(sys.argv[1])
handler = RemoteHandler(**arguments)
handler.setFormatter(logging.Formatter(line))
logger = logging.Logger("train", logging.INFO)
logger.addHandler(handler)

def log(count):
    for number in range(count):
        logger.info(message, number, *values)

def fail_once_more():
    failures = handler.stats().failures
    handler.trigger()
    while handler.stats().failures == failures:
        time.sleep(0.01)

def memory(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(name))

def settled():  # each failure leaves a connection to the garbage collector: a single reading is off by 2 MB
    readings = []
    for _ in range(15):
        fail_once_more()
        readings.append(memory("VmRSS"))
    return statistics.median(readings)

log(10_000)
settled()
before = settled()
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # sets the peak back to the present
log(records)
after, peak = settled(), memory("VmHWM")
print(json.dumps([after - before, peak - before, handler.stats().accepted_records]), flush=True)
os._exit(0)  # there is no store to ship to
"""


def run(script: str, *parameters: str) -> Any:
    """What a process of its own prints, as JSON."""
    # Modules are to be found compiled, as they are where the package is installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-c", script, *parameters], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def unreachable(folder: str, name: str) -> dict[str, Any]:
    """Arguments of a handler whose store does not answer."""
    options = {"key": "none", "secret": "none", "endpoint_url": f"http://127.0.0.1:{closed_port()}"}
    return {"url": f"s3://{BUCKET}/{name}.log", "storage_options": options, "spool_dir": os.path.join(folder, name)}


def first_records(folder: str, starts: int) -> dict[str, list[float]]:
    """Seconds of dictConfig and first record; the first start compiles what is not compiled yet, and does not count."""
    found: dict[str, list[float]] = {REFERENCE: [], "RemoteHandler": []}
    for number in range(starts + 1):
        remote = {"class": "remote_logging.RemoteHandler", **unreachable(folder, f"first-{number}")}
        plain = {"class": "logging.FileHandler", "filename": os.path.join(folder, f"first-{number}.log")}
        for name, handler in ((REFERENCE, plain), ("RemoteHandler", remote)):
            seconds = run(FIRST_RECORD, json.dumps(handler), LINE)
            if number:
                found[name].append(seconds)
    return found


def backlog(folder: str, records: int) -> dict[str, float]:
    """Show and return growth of memory and losses over ``records`` records that cannot be shipped."""
    where = unreachable(folder, "backlog")
    growth, peak, accepted = run(BACKLOG, json.dumps([where, LINE, MESSAGE, VALUES, records]))
    kept = 0
    for path in glob.glob(os.path.join(where["spool_dir"], "*", "*.spool")):
        with open(path, "rb") as file:
            kept += sum(1 for _ in file)
    results = {"growth_mb": growth, "peak_mb": peak, "accepted": accepted, "lost": accepted - kept}
    show(
        f"5. {records:,} records while the store cannot be reached (and 10,000 before, to warm up)",
        ("", "RSS growth MB", "peak MB", "accepted", "not in the spool"),
        [["RemoteHandler", f"{growth:.1f}", f"{peak:.1f}", f"{accepted:,}", f"{accepted - kept:,}"]],
    )
    return results


def main() -> None:
    quick = is_quick(__doc__)
    size = QUICK if quick else FULL
    results: dict[str, Any] = {"quick": quick}
    with tempfile.TemporaryDirectory() as folder, embedded_s3() as server:
        server.make_bucket(BUCKET)
        with all_candidates(server, folder) as candidates:
            found = in_turns(candidates, size.rounds, lambda candidate: burst(candidate, size.records))
            results["one_thread"] = per_record("1. one thread", found)
            found = in_turns(candidates, size.rounds, lambda candidate: burst_of_threads(candidate, size.records))
            results["threads"] = per_record(f"1. {THREADS} threads, wall time", found)
            slowest = in_turns(candidates, size.single_rounds, lambda candidate: singles(candidate, size.singles))
            results["singles"] = percentiles("2. one thread", slowest)
        uploads = during_uploads(server, folder, size)
        results["during_uploads"] = percentiles("3. one thread, while uploads run back to back", uploads)
        results["first_record"] = per_record(
            "4. dictConfig and the first record, in a fresh interpreter", first_records(folder, size.starts)
        )
        results["backlog"] = backlog(folder, size.backlog)
    save(__file__, results)


if __name__ == "__main__":
    main()

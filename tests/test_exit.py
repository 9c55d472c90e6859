"""Everything that was accepted is in the store when the interpreter has ended, however it ends (I5, I6)."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest

from .support import Bucket, lines_of, run_script

SETUP = """
import json, logging, os, signal, sys, time
from remote_logging import RemoteHandler
handler = RemoteHandler(os.environ["URL"], storage_options=json.loads(os.environ["OPTIONS"]), flush_interval=3600)
logging.getLogger().addHandler(handler)
logging.getLogger().setLevel("INFO")
def line(number):
    logging.info("line %d", number)
"""
CONNECTION = {
    # The library of the store is not even imported when the script ends.
    "cold": "line(0)",
    "warm": "line(0); assert handler.flush(); line(1)",
    # The server's and the client's connections have timed out meanwhile, so that a fresh one is made at exit.
    "idle": "line(0); assert handler.flush(); time.sleep(20); line(1)",
}
END = {
    "normal": ("", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "exception": ("raise ValueError('a defect of the program')", 1),
    # (A shell's background jobs inherit an ignored SIGINT.)
    "ctrl-c": (
        "signal.signal(signal.SIGINT, signal.default_int_handler); os.kill(os.getpid(), signal.SIGINT); time.sleep(60)",
        1,
    ),
}


def environment(bucket: Bucket, key: str, **options: object) -> dict[str, str]:
    import json

    # A name, not an address: looking it up is what fails at exit in most programs.
    endpoint = f"http://localhost:{bucket.server.port}"
    return {"URL": bucket.url(key), "OPTIONS": json.dumps({**bucket.options, "endpoint_url": endpoint, **options})}


def test_all_is_delivered_at_each_kind_of_exit_and_of_connection(bucket: Bucket, tmp_path: Path) -> None:
    def one(case: tuple[str, str]) -> None:
        connection, end = case
        statement, status = END[end]
        script = f"{SETUP}\n{CONNECTION[connection]}\n{statement}\n"
        key = f"{connection}-{end}.log"
        done = run_script(script, check=False, **environment(bucket, key))
        assert bool(done.returncode) == bool(status), (case, done.stdout + done.stderr)
        assert "remote_logging" not in done.stderr, (case, done.stderr)
        assert bucket.read(key) == lines_of("line", 1 if connection == "cold" else 2), case

    with ThreadPoolExecutor(6) as pool:  # they wait for most of their time
        list(pool.map(one, product(CONNECTION, END)))
    assert list((tmp_path / "spool").iterdir()) == []  # I7


def test_a_callback_at_exit_that_logs_before_or_after_ours_is_heard(bucket: Bucket) -> None:
    script = "import atexit; atexit.register(lambda: line(2))\n" + SETUP + "line(0); atexit.register(lambda: line(1))\n"
    run_script(script, **environment(bucket, "run/training.log"))
    assert bucket.read() == lines_of("line", 3)


def test_a_thread_that_cannot_be_started_any_more_is_done_without(bucket: Bucket) -> None:
    # The first record of all is made by a callback at exit: no thread runs, and from 3.12 on none can be started.
    run_script("import atexit\n" + SETUP + "atexit.register(lambda: line(0))\n", **environment(bucket, "run/training.log"))
    assert bucket.read() == lines_of("line", 1)


def test_a_handler_that_was_dropped_without_close_delivers_too(bucket: Bucket) -> None:
    script = SETUP + "line(0); logging.getLogger().removeHandler(handler); del handler\n"
    run_script(script, **environment(bucket, "run/training.log"))
    assert bucket.read() == lines_of("line", 1)


def test_logging_shutdown_by_hand_delivers_and_what_is_logged_later_is_delivered_too(bucket: Bucket) -> None:
    script = SETUP + "line(0); logging.shutdown(); line(1)\n"
    run_script(script, **environment(bucket, "run/training.log"))
    assert bucket.read() == lines_of("line", 2)


def test_an_unreachable_store_bounds_the_exit_and_names_the_spool_and_the_command(tmp_path: Path) -> None:
    script = SETUP.replace("flush_interval=3600", "flush_interval=3600, close_timeout=1.5")
    script += "for number in range(1000): line(number)\n"
    nowhere = '{"endpoint_url": "http://127.0.0.1:9", "key": "k", "secret": "s"}'
    done = run_script(script, URL="s3://bucket/run/training.log", OPTIONS=nowhere)
    said = done.stderr.splitlines()
    assert [line for line in said if "remote-logging recover" in line and str(tmp_path / "spool") in line], said
    assert len([line for line in said if "failing" in line or "Could not connect" in line]) == 1, said
    spools = list((tmp_path / "spool").glob("*/*.spool"))
    assert [spool.read_bytes() for spool in spools] == [lines_of("line", 1000)]


def test_a_silent_store_bounds_the_exit(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        options = f'{{"endpoint_url": "http://127.0.0.1:{silent.getsockname()[1]}", "key": "k", "secret": "s"}}'
        script = SETUP.replace("flush_interval=3600", "flush_interval=3600, close_timeout=1.5") + "line(0)\n"
        done = run_script(script, URL="s3://bucket/run/training.log", OPTIONS=options)
    assert "remote-logging recover" in done.stderr
    assert list((tmp_path / "spool").glob("*/*.spool"))


@pytest.mark.parametrize("how", ["sigkill", "sigterm", "os._exit"])
def test_an_end_that_runs_nothing_leaves_all_in_the_spool_and_the_next_process_ships_it(
    bucket: Bucket, tmp_path: Path, how: str
) -> None:
    end = {"sigkill": "os.kill(os.getpid(), 9)", "sigterm": "os.kill(os.getpid(), 15)", "os._exit": "os._exit(0)"}[how]
    variables = environment(bucket, "run/training.log")
    run_script(SETUP + f"line(0); line(1); {end}", check=False, **variables)
    assert bucket.read() == b""
    run_script(SETUP + "line(2)", **variables)
    assert bucket.read() == lines_of("line", 3)


def test_no_thread_and_no_connection_is_made_before_the_first_record(tmp_path: Path) -> None:
    script = SETUP + "import threading; assert threading.active_count() == 1 and 'fsspec' not in sys.modules\n"
    run_script(script, URL="s3://bucket/run/training.log", OPTIONS="{}")


def test_the_shipping_thread_never_keeps_the_interpreter(bucket: Bucket) -> None:
    script = SETUP + "line(0)\nimport threading\nassert all(t.daemon for t in threading.enumerate()[1:])\n"
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, **environment(bucket, "run/training.log")},
        cwd=Path(__file__).parent.parent,
    )
    assert child.wait(60) == 0

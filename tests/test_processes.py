"""Several processes with one URL: one spool, one leader, whole lines, and true answers from ``flush``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from .support import Bucket, lines_of, run_script, wait_for

SETUP = """
import json, logging, multiprocessing, os, signal, sys, threading, time
from remote_logging import RemoteHandler

def make(**options):
    options = {"flush_interval": 0.2, **options}
    handler = RemoteHandler(os.environ["URL"], storage_options=json.loads(os.environ["OPTIONS"]), **options)
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel("INFO")
    return handler

def line(who, number):
    logging.info("%s %d", who, number)
"""


def variables(bucket: Bucket) -> dict[str, Any]:
    return {"URL": bucket.url(), "OPTIONS": json.dumps(bucket.options)}


def start(script: str, bucket: Bucket) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SETUP + script],
        env={**os.environ, **variables(bucket)},
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def by_writer(body: bytes) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for text in body.decode().splitlines():
        who, number = text.split()
        found[who].append(int(number))
    return found


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_each_start_method_write_whole_lines_to_one_object_and_lose_none(
    bucket: Bucket, tmp_path: Path, method: str
) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        f"""{SETUP}
def work(who):
    if not logging.getLogger().handlers:
        make()
    for number in range(200):
        line(who, number)

if __name__ == "__main__":
    make()
    line("parent", 0)
    context = multiprocessing.get_context("{method}")
    children = [context.Process(target=work, args=(f"child{{n}}",)) for n in range(4)]
    for child in children: child.start()
    for child in children: child.join()
    assert [child.exitcode for child in children] == [0] * 4
    line("parent", 1)
"""
    )
    root = str(Path(__file__).parent.parent)
    subprocess.run(
        [sys.executable, script], check=True, env={**os.environ, **variables(bucket), "PYTHONPATH": root}, timeout=100
    )
    found = by_writer(bucket.read())
    assert found == {"parent": [0, 1], **{f"child{n}": list(range(200)) for n in range(4)}}
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_child_whose_parent_does_not_log_delivers_before_it_ends(bucket: Bucket, tmp_path: Path) -> None:
    # Neither atexit nor logging.shutdown runs in a forked child of multiprocessing.
    script = tmp_path / "program.py"
    script.write_text(
        f"""{SETUP}
def work():
    make(flush_interval=3600)
    line("child", 0)

if __name__ == "__main__":
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
"""
    )
    root = str(Path(__file__).parent.parent)
    subprocess.run(
        [sys.executable, script], check=True, env={**os.environ, **variables(bucket), "PYTHONPATH": root}, timeout=100
    )
    assert by_writer(bucket.read()) == {"child": [0]}


def test_a_child_that_outlives_its_parent_delivers_its_records(bucket: Bucket, tmp_path: Path) -> None:
    script = """
make(); line("parent", 0)
logging.getLogger().handlers[0].flush()
if os.fork() == 0:
    parent = os.getppid()
    while os.getppid() == parent: time.sleep(0.01)
    line("child", 0)
    sys.exit(0)
"""
    run_script(SETUP + script, **variables(bucket))
    wait_for(lambda: not list((tmp_path / "spool").glob("*")))
    assert by_writer(bucket.read()) == {"parent": [0], "child": [0]}


def test_the_records_of_a_child_that_ends_by_os_exit_are_shipped_by_its_parent(bucket: Bucket) -> None:
    script = """
handler = make(); line("parent", 0)
pid = os.fork()
if pid == 0:
    line("child", 0)
    os._exit(0)
os.waitpid(pid, 0)
"""
    run_script(SETUP + script, **variables(bucket))
    assert by_writer(bucket.read()) == {"parent": [0], "child": [0]}


def test_a_fork_while_threads_log_and_the_shipper_ships_hangs_nobody(bucket: Bucket) -> None:
    script = """
handler = make(flush_interval=0.01)
stop = threading.Event()
def busy(who):
    number = 0
    while not stop.is_set():
        line(who, number); number += 1
        time.sleep(0.0005)
threads = [threading.Thread(target=busy, args=(f"thread{n}",)) for n in range(2)]
for thread in threads: thread.start()
children = []
for n in range(20):
    pid = os.fork()
    if pid == 0:
        for number in range(10): line(f"child{n}", number)
        assert handler.flush(20), "the child's flush got no answer"
        os._exit(0)
    children.append(pid)
    time.sleep(0.02)
print([os.waitpid(pid, 0)[1] for pid in children])
stop.set()
for thread in threads: thread.join()
"""
    done = run_script(SETUP + script, **variables(bucket))
    assert json.loads(done.stdout) == [0] * 20, done.stderr
    found = by_writer(bucket.read())
    assert all(found[f"child{n}"] == list(range(10)) for n in range(20))
    assert all(found[f"thread{n}"] == list(range(len(found[f"thread{n}"]))) for n in range(2))


def test_a_fork_waits_for_an_import_of_ours(bucket: Bucket) -> None:
    # A child forked in the middle of it would inherit half a module, and hang when it imports the same.
    script = """
handler = make()
importing = handler._engine.worker.importing
importing.acquire()
ended = []
threading.Timer(0.3, lambda: (ended.append(True), importing.release())).start()
pid = os.fork()
if pid == 0:
    os._exit(0 if ended else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
    run_script(SETUP + script, **variables(bucket))


def test_a_followers_flush_waits_for_the_leader_and_tells_the_truth(bucket: Bucket) -> None:
    leader = start(
        "h = make(flush_interval=3600); line('leader', 0); h.flush(); print('ready', flush=True); sys.stdin.read()", bucket
    )
    assert leader.stdout and leader.stdin
    assert leader.stdout.readline() == "ready\n"
    # It leads, and its timer is far away: the follower's flush has to wake it.
    done = run_script(
        SETUP + "handler = make(flush_interval=3600); line('follower', 0); print(handler.flush()); os._exit(0)",
        **variables(bucket),
    )
    assert done.stdout == "True\n"
    assert by_writer(bucket.read()) == {"leader": [0], "follower": [0]}
    leader.communicate("")
    assert leader.returncode == 0


def test_a_followers_flush_is_false_while_the_leader_is_stopped(bucket: Bucket) -> None:
    script = "h = make(flush_interval=3600); line('leader', 0); h.flush(); print('ready', flush=True); sys.stdin.read()"
    leader = start(script, bucket)
    assert leader.stdout and leader.stdin
    leader.stdout.readline()
    os.kill(leader.pid, signal.SIGSTOP)
    os.waitpid(leader.pid, os.WUNTRACED)  # it has stopped
    script = "handler = make(flush_interval=3600); line('follower', 0); print(handler.flush(1.0)); os._exit(0)"
    done = run_script(SETUP + script, **variables(bucket))
    assert done.stdout == "False\n"
    assert by_writer(bucket.read()) == {"leader": [0]}
    os.kill(leader.pid, signal.SIGCONT)
    leader.communicate("")
    assert by_writer(bucket.read()) == {"leader": [0], "follower": [0]}


def test_another_process_takes_over_when_the_leader_is_killed(bucket: Bucket) -> None:
    script = "h = make(); line('{0}', 0); h.flush(); print('ready', flush=True); sys.stdin.readline(); line('{0}', 1)"
    leader = start(script.format("leader") + "; os.kill(os.getpid(), 9)", bucket)
    follower = start(script.format("follower") + "; sys.stdin.read()", bucket)
    for process in (leader, follower):
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    leader.communicate("\n")
    assert leader.returncode == -signal.SIGKILL
    # The timer of the one that lives finds the lead free, and ships what the dead one left.
    assert follower.stdin
    follower.stdin.write("\n")
    follower.stdin.flush()
    expected = {"leader": [0, 1], "follower": [0, 1]}
    wait_for(lambda: by_writer(bucket.read()) == expected)
    follower.kill()
    follower.communicate()


def test_the_next_run_of_the_same_template_ships_what_a_killed_one_left_under_another_name(
    bucket: Bucket, tmp_path: Path
) -> None:
    url = bucket.url("run/{pid}.log")
    run_script(SETUP + "make(); line('first', 0); os.kill(os.getpid(), 9)", check=False, **{**variables(bucket), "URL": url})
    assert bucket.list() == []
    run_script(SETUP + "make(); line('second', 0)", **{**variables(bucket), "URL": url})
    assert sorted(bucket.read(key) for key in bucket.list()) == [b"first 0\n", b"second 0\n"]
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_forked_child_has_an_object_of_its_own_where_the_url_names_the_process(bucket: Bucket) -> None:
    script = """
handler = make(); line("parent", 0)
pid = os.fork()
if pid == 0:
    line("child", 0)
    sys.exit(0)
os.waitpid(pid, 0)
line("parent", 1)
"""
    run_script(SETUP + script, **{**variables(bucket), "URL": bucket.url("run/{pid}.log")})
    assert sorted(bucket.read(key) for key in bucket.list()) == [b"child 0\n", b"parent 0\nparent 1\n"]


def test_a_fragment_of_a_killed_writer_is_not_glued_to_the_next_record(bucket: Bucket, tmp_path: Path) -> None:
    script = f"handler = make(); line('one', 0)\nfile = __import__('glob').glob('{tmp_path}/spool/*/*.spool')[0]\n"
    # What a writer that is killed between two pages leaves.
    script += "open(file, 'ab').write(b'fragm')\nline('one', 1)\n"
    run_script(SETUP + script, **variables(bucket))
    assert bucket.read() == b"one 0\nfrag\none 1\n"


def test_records_of_many_processes_that_cross_pages_stay_whole(bucket: Bucket) -> None:
    script = """
make(flush_interval=0.05)
children = []
for n in range(4):
    pid = os.fork()
    if pid == 0:
        for number in range(60): logging.info("child%d %s %d", n, "x" * 20000, number)
        os._exit(0)
    children.append(pid)
for pid in children: os.waitpid(pid, 0)
"""
    run_script(SETUP + script, **variables(bucket))
    found: dict[str, list[int]] = defaultdict(list)
    for text in bucket.read().decode().splitlines():
        who, filler, number = text.split(" ")
        assert filler == "x" * 20000
        found[who].append(int(number))
    assert found == {f"child{n}": list(range(60)) for n in range(4)}


def test_a_program_that_never_logs_ships_what_a_dead_one_left(bucket: Bucket) -> None:
    run_script(SETUP + "make(); line('first', 0); os.kill(os.getpid(), 9)", check=False, **variables(bucket))
    run_script(SETUP + "make()", **variables(bucket))
    assert bucket.read() == lines_of("first", 1)

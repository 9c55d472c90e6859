"""The command line: what it prints, its exit status, and that no secret is in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remote_logging.cli import main

from .support import Bucket, lines_of, run_script

LOG = """
import json, logging, os, sys
from remote_logging import RemoteHandler
handler = RemoteHandler(os.environ["URL"], storage_options=json.loads(os.environ["OPTIONS"]), flush_interval=3600)
logging.getLogger().addHandler(handler)
logging.warning("line 0")
"""


@pytest.fixture
def variables(bucket: Bucket) -> dict[str, Any]:
    return {"URL": bucket.url(), "OPTIONS": json.dumps(bucket.options)}


@pytest.fixture
def left(variables: dict[str, Any]) -> None:
    """What a killed process left."""
    run_script(LOG + "os.kill(os.getpid(), 9)", check=False, **variables)


def test_status_shows_destination_backlog_and_that_the_owner_is_dead(
    left: None, bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert bucket.url() in shown
    assert "7 bytes pending" in shown
    assert "owner dead" in shown
    assert main(["status", "--json"]) == 0
    text = capsys.readouterr().out
    (row,) = json.loads(text)
    assert (row["destination"], row["pending_bytes"], row["owner_alive"]) == (bucket.url(), 7, False)
    assert "testsecret" not in text


def test_status_and_recover_leave_a_living_owner_alone_and_name_a_stopped_one(
    variables: dict[str, Any], capsys: pytest.CaptureFixture[str], bucket: Bucket
) -> None:
    script = LOG + "handler.flush(); logging.warning('line 1'); print('ready', flush=True); sys.stdin.read()"
    owner = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **variables},
        cwd=Path(__file__).parent.parent,
    )
    assert owner.stdout and owner.stdout.readline() == b"ready\n"
    assert main(["status"]) == 0
    assert f"owner {owner.pid} alive" in capsys.readouterr().out
    os.kill(owner.pid, signal.SIGSTOP)
    os.waitpid(owner.pid, os.WUNTRACED)  # it has stopped
    assert main(["status"]) == 0
    assert f"kill -CONT {owner.pid}" in capsys.readouterr().out
    assert main(["recover"]) == 0
    assert bucket.read() == lines_of("line", 1)
    os.kill(owner.pid, signal.SIGCONT)
    owner.communicate()
    assert bucket.read() == lines_of("line", 2)


def test_recover_ships_what_a_dead_process_left_and_leaves_nothing(
    left: None, bucket: Bucket, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["recover", "--storage-options", json.dumps(bucket.options)]) == 0
    assert "all is shipped (7 bytes were pending)" in capsys.readouterr().out
    assert bucket.read() == lines_of("line", 1)
    assert list((tmp_path / "spool").iterdir()) == []
    assert main(["recover"]) == 0
    assert main(["status"]) == 0
    assert capsys.readouterr().out == "nothing waits on this host\n"


def test_recover_says_why_something_is_left_and_exits_with_1(
    left: None, bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recover"]) == 1  # no spool holds credentials, and none are given
    assert "AWS_ACCESS_KEY_ID" in capsys.readouterr().out
    assert bucket.read() == b""
    assert main(["recover", "--storage-options", json.dumps(bucket.options)]) == 0
    assert bucket.read() == lines_of("line", 1)


def test_recover_counts_what_is_kept_aside_as_left(left: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (spool,) = (tmp_path / "spool").glob("*/*.spool")
    spool.rename(f"{spool}.damaged")
    assert main(["recover"]) == 1
    assert "kept aside" in capsys.readouterr().out


def test_a_spool_of_an_unknown_format_is_named_and_not_touched(
    left: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = (tmp_path / "spool").glob("*/destination.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    assert main(["status"]) == 0
    assert main(["recover"]) == 1
    assert "of format 99" in capsys.readouterr().out
    assert [file.read_bytes() for file in path.parent.glob("*.spool")] == [lines_of("line", 1)]


def test_the_line_on_stderr_names_the_command_that_ships_it(bucket: Bucket, variables: dict[str, Any], tmp_path: Path) -> None:
    nowhere = json.dumps({**bucket.options, "endpoint_url": "http://127.0.0.1:9"})
    script = LOG.replace("flush_interval=3600", f"flush_interval=3600, close_timeout=0.5, spool_dir={str(tmp_path / 's')!r}")
    said = run_script(script, **{**variables, "OPTIONS": nowhere}).stderr
    command = said.rpartition("Ship them with: ")[2].split()
    assert command == ["remote-logging", "recover", "--spool-dir", str(tmp_path / "s")]
    assert main(command[1:]) == 1


def test_no_secret_is_in_any_file_of_the_spool(left: None, bucket: Bucket, tmp_path: Path) -> None:
    for path in (tmp_path / "spool").rglob("*"):
        if path.is_file():
            assert b"testsecret" not in path.read_bytes()
            assert path.stat().st_mode & 0o777 == 0o600, path
        elif path.is_dir():
            assert path.stat().st_mode & 0o777 == 0o700, path


def test_the_demo_loses_and_doubles_nothing_and_says_so_in_its_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--records", "4000"]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    numbers = dict(pair.split("=") for pair in last.split())
    assert numbers["lost"] == numbers["duplicated"] == "0"
    assert numbers["accepted"] == numbers["stored"]
    assert int(numbers["accepted"]) > 3000
    assert int(numbers["uploaded"]) > 0


def test_the_demo_runs_against_a_store_of_the_users_own(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REMOTE_LOGGING_STORAGE_OPTIONS", json.dumps(bucket.options))
    assert main(["demo", f"s3://{bucket.name}/mine/", "--records", "1000"]) == 0
    assert "lost=0 duplicated=0" in capsys.readouterr().out
    assert [key for key in bucket.list() if key.startswith("mine/remote-logging-demo-")]


@pytest.mark.parametrize("arguments", [["demo", "--records", "1"], ["demo", "nonsense://x/y.log"]])
def test_wrong_usage_is_told_in_one_line_with_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("remote-logging: ")

"""The store refuses or is gone, the disk is full: nothing is lost, the program goes on, the user is told what to do."""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_logging import RemoteHandler
from remote_logging.cli import main
from remote_logging.embedded import EmbeddedS3, embedded_s3
from remote_logging.errors import Refused, StoreError, Unreachable
from remote_logging.location import Template
from remote_logging.store import Head, open_store

from .support import Bucket, lines_of, record_logger, run_script, wait_for


def test_a_missing_bucket_is_named_with_its_remedy_and_the_backlog_is_shipped_once_it_is_there(
    s3_server: EmbeddedS3, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = RemoteHandler("s3://not-there-yet/run.log", storage_options=s3_server.storage_options)
    record_logger(handler).info("line 0")
    assert not handler.flush(1.0)
    said = capsys.readouterr().err
    assert "aws s3 mb s3://not-there-yet" in said
    assert len(said.splitlines()) == 1
    s3_server.make_bucket("not-there-yet")
    assert handler.flush()
    assert s3_server.read("not-there-yet", "run.log") == lines_of("line", 1)
    assert "works again" in capsys.readouterr().err
    handler.close()


@pytest.fixture
def strict_server() -> Iterator[EmbeddedS3]:
    """A server of its own, which checks rights: no user has any."""
    with embedded_s3() as server:
        server.make_bucket("bucket")
        server.request("POST", "/moto-api/reset-auth", b"0")
        yield server


def test_a_403_is_told_with_the_rights_that_are_needed_and_nothing_is_lost(
    strict_server: EmbeddedS3, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    handler = RemoteHandler("s3://bucket/run.log", storage_options=strict_server.storage_options, close_timeout=1)
    record_logger(handler).info("line 0")
    assert not handler.flush(1.0)
    said = capsys.readouterr().err
    assert "403" in said or "InvalidAccessKeyId" in said
    assert "access key" in said or "s3:PutObject" in said
    stats = handler.stats()
    assert (stats.pending_records, stats.dropped_records) == (1, 0)
    assert stats.failures >= 1 and stats.last_error
    handler.close()
    assert [spool.read_bytes() for spool in (tmp_path / "spool").glob("*/*.spool")] == [lines_of("line", 1)]


@pytest.mark.parametrize(
    ("options", "kind", "hint"),
    [
        ({"endpoint_url": "http://127.0.0.1:9"}, Unreachable, "Is the network up"),
        ({"endpoint_url": "http://no-such-host.invalid"}, Unreachable, "Is the network up"),
        ({"key": None, "secret": None}, Refused, "AWS_ACCESS_KEY_ID"),
        ({"profile": "nobody"}, Refused, "~/.aws/config"),
        ({"no_such_option": 1}, Refused, "storage_options"),
    ],
)
def test_a_failure_of_the_library_becomes_one_of_ours_with_a_hint(
    bucket: Bucket, options: dict[str, Any], kind: type[StoreError], hint: str
) -> None:
    location = Template(bucket.url(), {**bucket.options, **options}).resolve()
    with pytest.raises(kind, match=hint) as caught:
        store = open_store(location)
        try:
            store.put(Head(0, None), b"x")
        finally:
            store.close()
    assert bucket.url() in str(caught.value)
    assert "testsecret" not in str(caught.value)


def test_the_program_goes_on_while_the_store_is_down_for_its_whole_run_and_recover_drains_the_backlog_in_order(
    bucket: Bucket, tmp_path: Path
) -> None:
    script = """
import json, logging, os
from remote_logging import RemoteHandler
handler = RemoteHandler(os.environ["URL"], storage_options=json.loads(os.environ["OPTIONS"]), close_timeout=0.5)
logging.getLogger().addHandler(handler)
for number in range(20_000):
    logging.warning("line %d", number)
print(handler.stats().dropped_records)
"""
    down = {**bucket.options, "endpoint_url": "http://127.0.0.1:9"}
    done = run_script(script, URL=bucket.url(), OPTIONS=json.dumps(down))
    assert done.stdout == "0\n"
    # The endpoint is part of what a destination is; here it moves to where the server is.
    (described,) = (tmp_path / "spool").glob("*/destination.json")
    document = json.loads(described.read_text())
    document["options"]["endpoint_url"] = bucket.server.endpoint
    described.write_text(json.dumps(document))
    assert main(["recover", "--storage-options", json.dumps(bucket.options)]) == 0
    assert bucket.read() == lines_of("line", 20_000)
    assert not described.exists()


def test_the_object_changed_by_somebody_in_mid_run_is_left_alone_and_told_once(
    bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = RemoteHandler(bucket.url(), storage_options=bucket.options)
    logger = record_logger(handler)
    logger.info("line 0")
    assert handler.flush()
    bucket.write(b"line 0\nsomething else\n")
    for number in (1, 2, 3):
        logger.info("line %d", number)
        assert handler.flush()
    handler.close()
    (sibling,) = [key for key in bucket.list() if key != "run/training.log"]
    assert bucket.read() == b"line 0\nsomething else\n"  # I4
    assert bucket.read(sibling) == b"line 1\nline 2\nline 3\n"
    said = capsys.readouterr().err
    assert said.count("somebody else wrote to") == 1
    assert sibling in said


def test_the_object_deleted_in_mid_run_is_written_again(bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    handler = RemoteHandler(bucket.url(), storage_options=bucket.options)
    logger = record_logger(handler)
    logger.info("line 0")
    assert handler.flush()
    bucket.delete()
    logger.info("line 1")
    assert handler.flush()
    handler.close()
    assert bucket.read() == lines_of("line", 2)
    assert "deleted" in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("only root may mount a file system")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_records_on_a_full_disk_are_counted_told_and_marked_and_the_program_goes_on(
    small_disk: Path, bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = RemoteHandler(bucket.url(), storage_options=bucket.options, spool_dir=small_disk / "spool", flush_interval=None)
    logger = record_logger(handler)
    filler = small_disk / "filler"
    logger.info("line 0")
    with open(filler, "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(b"x" * 4096)
    accepted = 1
    for number in range(100):
        logger.info("line %d %s", number, "y" * 1000)
    stats = handler.stats()
    accepted = stats.accepted_records
    assert stats.dropped_records == 101 - accepted > 0  # I8
    filler.unlink()
    logger.info("the last one")
    assert handler.flush()
    handler.close()
    said = capsys.readouterr().err
    assert said.count("records are dropped and counted") == 1
    body = bucket.read().decode().splitlines()
    assert body[-1] == "the last one"
    assert body[-2].startswith(f"{101 - accepted} records (")
    # The record for which there was room in part was not accepted; what is there of it is a line of its own.
    whole = [line for line in body[1:-2] if line.endswith("y" * 1000)]
    assert len(whole) == accepted - 1
    assert all("y" * 1000 not in line for line in body[1:-2] if line not in whole)
    assert len(body) <= accepted + 3


def test_a_spool_of_an_unknown_format_is_kept_and_told_and_the_program_goes_on(
    bucket: Bucket, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    first = RemoteHandler(bucket.url(), storage_options=bucket.options, flush_interval=None)
    record_logger(first).info("of a later version")
    directory = Path(first._engine.spool.directory)  # type: ignore[union-attr]
    first._engine.appender.leave()  # type: ignore[union-attr]  # as if it had been killed
    first._engine.registry.engines.clear()  # type: ignore[union-attr]
    document = json.loads((directory / "destination.json").read_text())
    (directory / "destination.json").write_text(json.dumps({**document, "format": 99}))
    second = RemoteHandler(bucket.url(), storage_options=bucket.options)
    record_logger(second).info("line 0")
    second.close()
    assert bucket.read() == lines_of("line", 1)
    assert "format 99" in capsys.readouterr().err
    assert [path.read_bytes() for path in directory.glob("*.spool.damaged")] == [b"of a later version\n"]  # I7


def test_an_idle_program_with_the_root_logger_at_debug_makes_no_further_upload(bucket: Bucket) -> None:
    script = """
import json, logging, os, time
from remote_logging import RemoteHandler
handler = RemoteHandler(os.environ["URL"], storage_options=json.loads(os.environ["OPTIONS"]), flush_interval=0.05)
logging.basicConfig(handlers=[handler], level="DEBUG", format="%(name)s %(message)s")
logging.info("line 0")
assert handler.flush()
before = handler.stats()
time.sleep(1.0)  # twenty timers
after = handler.stats()
assert (before.flushes, before.accepted_records) == (after.flushes, after.accepted_records) == (1, 1), (before, after)
"""
    run_script(script, URL=bucket.url(), OPTIONS=json.dumps(bucket.options))
    assert bucket.read() == b"root line 0\n"


def test_the_users_own_records_of_the_same_library_are_shipped(bucket: Bucket) -> None:
    script = """
import json, logging, os
from remote_logging import RemoteHandler
handler = RemoteHandler(os.environ["URL"], storage_options=json.loads(os.environ["OPTIONS"]))
logging.basicConfig(handlers=[handler], level="DEBUG", format="%(name)s %(message)s")
import s3fs
s3fs.S3FileSystem(**json.loads(os.environ["OPTIONS"])).exists("nowhere/nothing")
"""
    run_script(script, URL=bucket.url(), OPTIONS=json.dumps(bucket.options))
    assert b"\ns3fs " in bucket.read()


def test_dictconfig_with_a_backlog_does_not_wait_for_the_store(tmp_path: Path) -> None:
    script = """
import logging.config, os, time
nowhere = {"endpoint_url": "http://127.0.0.1:9", "key": "k", "secret": "s"}
remote = {"class": "remote_logging.RemoteHandler", "url": "s3://bucket/a.log", "storage_options": nowhere}
remote["close_timeout"] = 3600
config = {"version": 1, "handlers": {"remote": remote}, "root": {"handlers": ["remote"], "level": "INFO"}}
logging.config.dictConfig(config)
logging.info("line 0")
logging.config.dictConfig(config)
logging.info("line 1")
print(logging.getLogger().handlers[0].stats().accepted_records, flush=True)
os._exit(0)
"""
    assert run_script(script).stdout == "2\n"  # else run_script gives up


def test_every_record_of_a_log_larger_than_a_multipart_minimum_is_there_once(bucket: Bucket) -> None:
    handler = RemoteHandler(bucket.url(), storage_options=bucket.options, flush_interval=None)
    logger = record_logger(handler)
    expected = b""
    for number in range(12):
        text = f"{number} " + "z" * 999_990
        logger.info(text)
        expected += text.encode() + b"\n"
        assert handler.flush()
    handler.close()
    assert bucket.read() == expected


def test_the_object_is_served_as_text(bucket: Bucket) -> None:
    handler = RemoteHandler(bucket.url(), storage_options=bucket.options)
    logging.getLogger("x")
    record_logger(handler).info("line 0")
    handler.close()
    location = Template(bucket.url(), bucket.options).resolve()
    store: Any = open_store(location)
    assert store._call("head_object")["ContentType"] == "text/plain; charset=utf-8"
    store.close()


def test_a_parallel_upload_that_a_kill_left_is_aborted_by_the_next_process(bucket: Bucket) -> None:
    location = Template(bucket.url(), bucket.options).resolve()
    store: Any = open_store(location)
    store._call("create_multipart_upload")
    setup = "import json, os, logging\nfrom remote_logging import RemoteHandler\n"
    setup += "h = RemoteHandler(os.environ['URL'], storage_options=json.loads(os.environ['OPTIONS']))\n"
    setup += "logging.getLogger().addHandler(h)\nlogging.warning('line 0'); h.flush(); logging.warning('line 1')\n"
    variables = {"URL": bucket.url(), "OPTIONS": json.dumps(bucket.options)}
    run_script(setup + "os.kill(os.getpid(), 9)", check=False, **variables)
    run_script(setup, **variables)
    wait_for(lambda: not store._call("list_multipart_uploads", Key=None).get("Uploads"))
    store.close()

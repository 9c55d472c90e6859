"""Fixtures: a spool of its own for each test, and a real S3 server in another process."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote_logging.embedded import EmbeddedS3, embedded_s3

from .support import Bucket

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def private_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine reaches a test, and no test leaves anything in the user's spool directory."""
    for name in list(os.environ):
        if name.startswith(("REMOTE_LOGGING_", "AWS_", "FSSPEC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("REMOTE_LOGGING_SPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[EmbeddedS3]:
    with embedded_s3() as server:
        yield server


@pytest.fixture
def bucket(s3_server: EmbeddedS3) -> Bucket:
    """An empty bucket on the server."""
    name = f"bucket-{os.getpid()}-{next(_numbers)}"
    s3_server.make_bucket(name)
    return Bucket(s3_server, name)

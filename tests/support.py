"""What several test modules need."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from remote_logging.embedded import EmbeddedS3


class Bucket:
    """An S3 bucket, seen past the package: what is in it is read with plain HTTP."""

    def __init__(self, server: EmbeddedS3, name: str) -> None:
        self.server, self.name = server, name
        self.options: dict[str, Any] = server.storage_options

    def url(self, key: str = "run/training.log") -> str:
        return f"s3://{self.name}/{key}"

    def read(self, key: str = "run/training.log") -> bytes:
        return self.server.read(self.name, key)

    def write(self, data: bytes, key: str = "run/training.log") -> None:
        self.server.request("PUT", f"/{self.name}/{key}", data)

    def delete(self, key: str = "run/training.log") -> None:
        self.server.request("DELETE", f"/{self.name}/{key}")

    def list(self) -> list[str]:
        return re.findall(r"<Key>(.*?)</Key>", self.server.request("GET", f"/{self.name}?list-type=2").decode())


def wait_for(condition: Callable[[], object], timeout: float = 30.0) -> None:
    """Wait until ``condition`` holds: for what happens in another process and signals nothing to us."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def run_script(script: str, *arguments: object, check: Any = True, **environment: Any) -> subprocess.CompletedProcess[str]:
    """Run Python source in a process of its own; its output is captured."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=100,
        cwd=Path(__file__).parent.parent,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def record_logger(*handlers: logging.Handler) -> logging.Logger:
    """A logger of its own, outside the hierarchy, that hands every record to ``handlers``."""
    logger = logging.Logger("test")
    for handler in handlers:
        logger.addHandler(handler)
    return logger


def lines_of(prefix: str, count: int) -> bytes:
    """What ``count`` records ``<prefix> 0``, ``<prefix> 1``, ... look like in an object."""
    return b"".join(b"%s %d\n" % (prefix.encode(), number) for number in range(count))

"""Durability, proved by killing: the object holds, byte for byte, what was accepted (I1, I3)."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remote_logging.embedded import EmbeddedS3


def harness(**given: Any) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.harness", json.dumps(given)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(done.stderr)
    return result


@pytest.fixture
def port(request: pytest.FixtureRequest, s3_server: EmbeddedS3) -> int | None:
    if request.param == "local":
        return None
    s3_server.make_bucket("harness")
    return s3_server.port


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("port", "kills", "size"), [("local", 60, 300), ("local", 20, 20_000), ("s3", 50, 300)], indirect=["port"]
)
def test_random_kills_lose_and_double_nothing(port: int | None, kills: int, size: int) -> None:
    seed = random.randrange(10**9)
    result = harness(kind="random", port=port, kills=kills, seed=seed, size=size)
    assert result["problems"] == [], f"seed {seed}"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("port", ["local", "s3"], indirect=True)
@pytest.mark.parametrize("mode", ["kill before", "kill after", "lose the reply", "fail"])
def test_a_fault_at_each_store_call_rename_and_unlink_loses_and_doubles_nothing(port: int | None, mode: str) -> None:
    result = harness(kind="points", port=port, mode=mode)
    assert result["problems"] == []
    assert result["points"] > 20

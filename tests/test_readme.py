"""The README keeps its word: its Python runs, and every test that it names is there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .support import Bucket

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_each_python_block_runs_in_an_empty_directory(number: int, bucket: Bucket, tmp_path: Path) -> None:
    place = tmp_path / "empty"
    place.mkdir()
    script = blocks("python")[number].replace("my-bucket", bucket.name)
    subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        cwd=place,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "AWS_ACCESS_KEY_ID": "k",
            "AWS_SECRET_ACCESS_KEY": "s",
            "AWS_ENDPOINT_URL": bucket.server.endpoint,
        },
    )
    logs = [path.read_bytes() for path in place.rglob("*.log")] + [bucket.read(key) for key in bucket.list()]
    assert len(logs) == 1
    assert logs[0]


def test_every_test_that_the_readme_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", README))
    defined = set(re.findall(r"^def (test_\w+)", "\n".join(path.read_text() for path in ROOT.glob("tests/*.py")), re.MULTILINE))
    assert named
    assert named - defined == set()


def test_the_policy_is_valid_json_and_names_what_the_errors_name() -> None:
    (policy,) = blocks("json")
    actions = {action for statement in json.loads(policy)["Statement"] for action in statement["Action"]}
    from remote_logging.store import _RIGHTS

    assert set(re.findall(r"s3:\w+", _RIGHTS)) <= actions

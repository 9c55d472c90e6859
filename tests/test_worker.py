"""When the next flush starts."""

from __future__ import annotations

from typing import Any

import pytest

from remote_logging.worker import POLL, SHARE, URGENT_GAP, due

REST: dict[str, Any] = {
    "asked": False, "ending": False, "urgent": False, "ended": 100.0, "duration": 0.0, "interval": 15.0, "next_try": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 115.0),
        ({"interval": None}, float("inf")),
        ({"duration": 4.0}, 100.0 + SHARE * 4.0),
        ({"asked": True}, 100.0),
        ({"asked": True, "next_try": 160.0}, 100.0),
        ({"next_try": 101.5}, 101.5),
        ({"next_try": 160.0, "urgent": True}, 160.0),
        ({"interval": None, "next_try": 160.0}, 160.0),
        ({"urgent": True}, 100.0 + URGENT_GAP),
        ({"urgent": True, "duration": 4.0}, 104.0),
        ({"urgent": True, "interval": 0.5}, 100.5),
        ({"interval": None, "urgent": True}, 100.0 + URGENT_GAP),
        ({"ending": True, "interval": None}, 100.0 + POLL),
        ({"ending": True, "next_try": 102.0}, 102.0),
    ],
    ids=str,
)
def test_the_next_flush_is_due(changes: dict[str, Any], expected: float) -> None:
    assert due(**{**REST, **changes}) == expected

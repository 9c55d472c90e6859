"""One line on stderr for what a user must know; never through logging, which would come back to us."""

from __future__ import annotations

import sys
import time
from contextvars import ContextVar

shipping: ContextVar[bool] = ContextVar("remote_logging_shipping", default=False)
"""True on the thread that ships, and in what a store runs for it: records made there are not ours to ship."""

REPEAT_AFTER = 600.0


class Reporter:
    """Says a thing once, and again only after ten minutes or after it had ended.

    The ``topic`` is what is rate limited: ``"failing"`` may be said for one destination while it is silent for another,
    because each destination has a reporter of its own.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._said: dict[str, float] = {}

    def say(self, topic: str, message: str) -> None:
        """Print ``message`` unless the same topic was printed within the last ten minutes."""
        now = time.monotonic()
        if now - self._said.get(topic, -REPEAT_AFTER) < REPEAT_AFTER:
            return
        self._said[topic] = now
        self._print(message)

    def ended(self, topic: str, message: str) -> None:
        """Print ``message`` if the topic had been printed since it last ended."""
        if self._said.pop(topic, None) is not None:
            self._print(message)

    def _print(self, message: str) -> None:
        try:
            # One write, so that lines of several threads do not mix; stderr is None under pythonw and some daemons.
            sys.stderr.write(f"remote_logging: {self.name}: {message}\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001, S110 - a closed stderr must not reach the user's program (I5)
            pass

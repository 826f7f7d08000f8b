"""E2B's limits on the creation of sandboxes: so many per second, so many at once.

Known of the cloud (its page on rate limits, its issues): 1/s and 20 at once on the hobby plan, 5/s and 100 at
once on the pro plan; beyond a limit it answers 429 with a sentence. It does not document `Retry-After` or
`Should-Retry`, so neither is sent; the SDK then retries three times by itself. Nor does it document how a
second is counted. We assume a token bucket with one second's tokens, refilled evenly; a refused request takes
no token.
"""

from __future__ import annotations

import time


class LimitReachedError(Exception):
    """A limit refuses a creation; the message is the answer's."""


class Bucket:
    """A token bucket for one second's tokens, full at first."""

    def __init__(self) -> None:
        self._tokens = float("inf")  # `take` cuts it to the capacity
        self._filled = time.monotonic()

    def take(self, rate: float) -> bool:
        """Take a token and return True, or return False if there is none; `rate` is tokens per second."""
        now = time.monotonic()
        self._tokens = min(max(1.0, rate), self._tokens + (now - self._filled) * rate)
        self._filled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

"""E2B's limits on making sandboxes: so many a second, so many at once.

What is known of the cloud (its page on rate limits, its issues): 1/s and 20 at once on the hobby plan, 5/s
and 100 at once on the pro plan; beyond either of them 429 with a sentence. Nothing is said of `Retry-After`
and `Should-Retry`, so neither is sent, which makes the SDK try three times more by itself. How a second is
counted is not said either: assumed is a token bucket that holds one second's worth and is refilled evenly,
of which a refused request takes nothing.
"""

from __future__ import annotations

import time


class LimitReachedError(Exception):
    """No sandbox is made now; the message is the answer's."""


class Bucket:
    """One second's worth of tokens, full at first."""

    def __init__(self) -> None:
        self._tokens = float("inf")  # cut to what it holds when it is first asked
        self._filled = time.monotonic()

    def take(self, rate: float) -> bool:
        """Take a token; False when there is none. `rate` is tokens per second."""
        now = time.monotonic()
        self._tokens = min(max(1.0, rate), self._tokens + (now - self._filled) * rate)
        self._filled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

"""Waiting on conditions, never on time alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(
    ask: Callable[[], Awaitable[T]], enough: Callable[[T], bool], timeout: float = 60.0
) -> T:
    """Ask until the answer is enough and return it; fail with the last answer after `timeout` seconds.

    The longer it takes, the less often it is asked: to ask costs what is waited for its time.
    """
    deadline, pause = time.monotonic() + timeout, 0.02
    while not enough(answer := await ask()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain, last answer: {answer!r}")
        await asyncio.sleep(pause)
        pause = min(1.3 * pause, 0.3)
    return answer

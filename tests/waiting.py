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
    """Ask until the answer is enough and return it; fail with the last answer after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not enough(answer := await ask()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain, last answer: {answer!r}")
        await asyncio.sleep(0.05)
    return answer

"""Flows that no one should write, for the tests of the worker."""

from __future__ import annotations

import asyncio
from pathlib import Path

from prefect import flow


@flow(persist_result=False)
async def burn(until: str) -> None:
    """Burn the CPU, without ever letting go of the loop, until there is this file."""
    while not Path(until).exists():  # noqa: ASYNC240 - to block is what it is for
        for _ in range(100_000):
            pass


@flow(persist_result=False)
async def leave() -> None:
    """Try to take the whole process along."""
    raise SystemExit(3)


@flow(persist_result=False)
async def leave_from_task() -> None:
    """Try the same from a task of asyncio's, which lets SystemExit out of the loop."""

    async def fall() -> None:
        raise SystemExit(4)

    task = asyncio.create_task(fall())
    await asyncio.wait({task})


@flow(persist_result=False)
def blocking() -> None:
    """Return at once; as no coroutine, though."""

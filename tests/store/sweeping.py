"""A process that sweeps, to be killed or paused: `python -m tests.store.sweeping <url> <scope> <seconds>`."""

from __future__ import annotations

import asyncio
import sys

from flows.store.sweep_lock import SweepLock


async def main(url: str, scope: str, seconds: str) -> None:
    """Ask for the lock all the time, and say each time whether it is ours."""
    lock = SweepLock(url, scope, "runs", float(seconds))
    while True:
        sys.stdout.write(f"{await lock.hold()}\n")
        sys.stdout.flush()
        await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

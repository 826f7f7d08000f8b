"""Which of all processes sweeps: one at a time looks after runs, the others try to take its place.

Nothing depends on it but the number of requests: what two sweeps do at once is fenced by leases.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from flows.store.database import database_errors, make_engine

T = TypeVar("T")


class SweepLock:
    """Holds one of PostgreSQL's advisory locks, on a connection of its own that only its holder has.

    A transaction that stays open keeps it, so that it works behind a pooler, too. Its process gives a sign
    of life every third of `seconds`: one that dies frees the lock at once, one that hangs or is paused loses
    it after `seconds`. Its holder keeps it until then, or until `release`.

    `scope` tells installations apart that share a database: the work pool's name.
    """

    def __init__(self, url: str, scope: str, name: str, seconds: float) -> None:
        self._engine = make_engine(url, poolclass=NullPool)
        digest = hashlib.sha256(f"nova sweep {scope} {name}".encode()).digest()
        self._key = int.from_bytes(digest[:8], "big", signed=True)
        self._seconds = seconds
        self._connection: Connection | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nova-sweep")
        self._life: asyncio.Task[None] | None = None

    async def hold(self) -> bool:
        """Take the lock, or keep it; False while another process has it. Raises DatabaseUnavailableError."""
        held = await self._in_thread(self._hold)
        if held and self._life is None:
            self._life = asyncio.create_task(self._live())
        return held

    async def release(self) -> None:
        """Let another process have it."""
        if self._life is not None:
            self._life.cancel()
            self._life = None
        await self._in_thread(self._drop)

    async def close(self) -> None:
        """Release it for good."""
        await self.release()
        self._thread.shutdown()

    async def _live(self) -> None:
        """Give a sign of life now and then: a sweep may take longer than the lock would last."""
        while True:
            await asyncio.sleep(self._seconds / 3)
            await self._in_thread(self._keep)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Do one thing after the other with the connection; what was begun comes to its end."""
        return await asyncio.wrap_future(self._thread.submit(work))

    def _hold(self) -> bool:
        if self._keep():
            return True
        with database_errors():
            connection = self._engine.connect()
            try:
                milliseconds = int(self._seconds * 1000)
                connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = {milliseconds}"))
                taken = connection.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": self._key})
            except BaseException:
                connection.close()
                raise
        if taken:
            self._connection = connection
        else:
            connection.close()
        return bool(taken)

    def _keep(self) -> bool:
        """Give a sign of life; False where the lock is not ours, or not any more."""
        if self._connection is None:
            return False
        try:
            self._connection.execute(text("SELECT 1"))
        except DBAPIError:  # PostgreSQL has ended the connection, and with it freed the lock
            self._drop()
            return False
        return True

    def _drop(self) -> None:
        """End the connection, however it is; PostgreSQL then frees the lock."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(DBAPIError):
                connection.close()

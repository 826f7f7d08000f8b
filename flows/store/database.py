"""The way to PostgreSQL: a pool of connections, one thread for each, and one transaction per piece of work.

psycopg2 blocks, so nothing here runs on the event loop. No session outlives its piece of work; the rows
that it returns are detached and read only, with every column (and what the query named besides) loaded.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Engine, create_engine, func, make_url, text, type_coerce
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker

from flows.graphs.errors import CommitUnknownError, DatabaseUnavailableError
from flows.store.base import UtcTime
from flows.store.refusals import is_outage, is_refusal, refused, sqlstate

T = TypeVar("T")

_CONNECT: dict[str, Any] = {
    "application_name": "nova",
    "connect_timeout": 5,  # seconds
    # A peer that vanished without a word is noticed after about 30 s idle, 10 s while it owes an answer.
    "keepalives": 1,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds
}


def make_engine(url: str, **options: Any) -> Engine:
    """Engine for a PostgreSQL URL; what the URL's own query says wins over our connection settings."""
    given = make_url(url)
    connect = {key: value for key, value in _CONNECT.items() if key not in given.query}
    # Parameters are contexts and ciphertexts: never in the text of an error.
    return create_engine(given, connect_args=connect, hide_parameters=True, **options)


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn what may pass by itself (a lost connection, a deadlock, …) into DatabaseUnavailableError.

    What PostgreSQL refuses for good becomes a DatabaseRefusedError; faults of ours stay what they are.
    """
    try:
        yield
    except PoolTimeoutError as error:
        raise DatabaseUnavailableError(_sentence(error)) from error
    except DBAPIError as error:
        if is_outage(error):
            raise DatabaseUnavailableError(_sentence(error)) from error
        if is_refusal(error):
            raise refused(error) from error
        raise


def _sentence(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    lines = str(cause).strip().splitlines()
    # A code means that the server did answer: it shuts down, is full, or chose this one in a deadlock.
    what = "cannot go on" if sqlstate(error) else "does not answer"
    return f"PostgreSQL {what}: {lines[0] if lines else type(cause).__name__}"


def constraint(error: IntegrityError) -> str:
    """Name of the constraint that a statement ran against."""
    diagnosis = getattr(error.orig, "diag", None)
    return getattr(diagnosis, "constraint_name", None) or ""


def now(after: float = 0) -> ColumnElement[datetime]:
    """The database's clock, or `after` seconds later: two processes may disagree about the time."""
    return type_coerce(func.clock_timestamp() + timedelta(seconds=after), UtcTime)


class _ConnectionLostError(Exception):
    """A connection died before its work was committed."""

    def __init__(self, error: DBAPIError) -> None:
        super().__init__(str(error))
        self.error = error


LOOKS = 2
"""Connections for questions that need no transaction; each takes a millisecond."""


class Database:
    """Owns the connections of one process: at most `pool_size` and `LOOKS`, made when first needed.

    Opening it does not connect. Callers do not notice that a server was restarted.
    """

    def __init__(self, url: str, pool_size: int = 10) -> None:
        self._engine = make_engine(url, pool_size=pool_size, max_overflow=0)
        self._sessions = sessionmaker(self._engine, expire_on_commit=False)
        # An engine of its own: to switch the mode of a connection fails where that has died meanwhile, and
        # SQLAlchemy's pool then counts it as taken for ever.
        self._look_engine = make_engine(url, pool_size=LOOKS, max_overflow=0, isolation_level="AUTOCOMMIT")
        self._looks = sessionmaker(self._look_engine, expire_on_commit=False)
        self._threads = ThreadPoolExecutor(max_workers=pool_size, thread_name_prefix="nova-database")

    def run_sync(self, work: Callable[[Session], T]) -> T:
        """Do the work in one transaction: committed when it returns, rolled back when it raises.

        The work is done twice where the connection turns out to be dead before the commit: PostgreSQL was
        restarted, say. Raises DatabaseUnavailableError when PostgreSQL is gone (CommitUnknownError in the
        middle of the commit), else what the work raises.
        """
        with database_errors():
            return self._again_if_lost(self._sessions, work)

    def look_sync(self, question: Callable[[Session], T]) -> T:
        """Ask one question, a single statement that changes nothing: it needs no transaction around it.

        A third of the round trips of `run_sync`. Raises DatabaseUnavailableError.
        """
        with database_errors():
            return self._again_if_lost(self._looks, question)

    async def look(self, question: Callable[[Session], T]) -> T:
        """As `look_sync`, in a thread."""
        return await self._in_thread(self.look_sync, question)

    async def run(self, work: Callable[[Session], T]) -> T:
        """As `run_sync`, in a thread. Waits for a free one when `pool_size` pieces of work are going on.

        A caller that is cancelled leaves only when its transaction has ended, or if it never began: nothing
        is written later.
        """
        return await self._in_thread(self.run_sync, work)

    async def _in_thread(self, do: Callable[[Callable[[Session], T]], T], work: Callable[[Session], T]) -> T:
        context = contextvars.copy_context()
        job = self._threads.submit(context.run, do, work)
        future = asyncio.wrap_future(job)
        # Without this asyncio logs an error as "never retrieved" where the caller is gone.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError:
            if not job.cancel():
                await asyncio.wait({future})
            raise
        return future.result()

    def _again_if_lost(self, sessions: sessionmaker[Session], work: Callable[[Session], T]) -> T:
        """Do the work, again where its connection was dead: to ask before would be a round trip each time.

        A commit that was not answered is not repeated: it may stand.
        """
        try:
            return self._once(sessions, work)
        except _ConnectionLostError:  # and with it the pool dropped all that are as old
            try:
                return self._once(sessions, work)
            except _ConnectionLostError as lost:
                raise lost.error from lost.error.__cause__

    @staticmethod
    def _once(sessions: sessionmaker[Session], work: Callable[[Session], T]) -> T:
        with sessions() as session:
            try:
                result = work(session)
                session.flush()
            except DBAPIError as error:
                if error.connection_invalidated:
                    raise _ConnectionLostError(error) from error
                raise
            try:
                session.commit()
            except DBAPIError as error:
                if error.connection_invalidated:
                    raise CommitUnknownError(_sentence(error)) from error
                raise
            return result

    async def ping(self) -> float:
        """Milliseconds that a `SELECT 1` takes. Raises DatabaseUnavailableError."""
        started = time.perf_counter()
        await self.run(lambda session: session.execute(text("SELECT 1")))
        return (time.perf_counter() - started) * 1000

    def close(self) -> None:
        """Wait for work that has begun, drop what has not, close the connections."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._engine.dispose()
        self._look_engine.dispose()

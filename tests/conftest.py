"""Fixtures that every folder of tests shares: real servers, started once for the whole session."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest
from hypothesis import HealthCheck, settings

from flows.store import migrations
from flows.store.base import Base
from flows.store.database import Database
from tests.servers import PrefectServer, database_name, postgres_server

# How long an example takes, or its making, says what else the machine does at that moment.
settings.register_profile("nova", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("nova")

pytest_plugins = ("tests.row_checks",)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[str], str]]:
    """A real PostgreSQL; call it with a database's name to make that database and get its URL."""
    # Not below a private home: as root the server runs under a system user that must reach the folder.
    place = "/var/tmp" if Path("/var/tmp").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="nova-test-", dir=place))
    folder.chmod(0o755)

    def make(name: str) -> str:
        server.make_database(name)
        return server.url(name)

    try:
        with postgres_server(folder) as server:
            yield make
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_numbers = itertools.count(1)


@pytest.fixture
def empty_database_url(postgres: Callable[[str], str]) -> str:
    """URL of a database of this test's own, without any table."""
    return postgres(f"empty_{next(_numbers)}")


@pytest.fixture(scope="session")
def migrated_database_url(postgres: Callable[[str], str]) -> str:
    """URL of the one database with NOVA's tables; tests ask for `database_url`, which empties them."""
    url = postgres("nova")
    migrations.upgrade(url)
    return url


@pytest.fixture
def database_url(migrated_database_url: str) -> str:
    """URL of a database with NOVA's tables, all of them empty."""
    connection = psycopg2.connect(migrated_database_url)
    with connection, connection.cursor() as cursor:
        tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
        cursor.execute(f"TRUNCATE {tables} RESTART IDENTITY")
    connection.close()
    return migrated_database_url


@pytest.fixture
def in_new_york(database_url: str) -> Iterator[str]:
    """The same database, which tells new connections the time of New York."""
    name = database_name(database_url)

    def execute(setting: str) -> None:
        connection = psycopg2.connect(database_url)
        with connection, connection.cursor() as cursor:
            cursor.execute(f'ALTER DATABASE "{name}" {setting}')
        connection.close()

    execute("SET timezone = 'America/New_York'")
    yield database_url
    execute("RESET timezone")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An open Database whose tables are empty."""
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def prefect_server(postgres: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prefect server on PostgreSQL, as a process of its own; gives its API's URL."""
    home = tmp_path_factory.mktemp("prefect")
    with PrefectServer(postgres("prefect"), home) as server:
        yield server.api_url

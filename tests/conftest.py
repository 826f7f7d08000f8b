"""Fixtures that every folder of tests shares: real servers, started once for the whole session."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import shutil
import signal
import ssl
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer

from flows.store.base import Base
from flows.store.database import Database
from tests.between_tests import engine_between_tests
from tests.nova_up import NovaUp
from tests.scheduling import ByServer, in_turns, write_groups
from tests.servers import PrefectServer, database_name, reachable_folder
from tests.shared import SharedServers, is_on_real_prefect
from tests.stand_in.server import StandInServer

# Programs that tests start write bytecode, whatever the environment says: to compile ours takes a second.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Each client loads the system's certificates, for 25 ms of CPU, and no test speaks TLS.
ssl.create_default_context = functools.cache(ssl.create_default_context)  # type: ignore[assignment]

# How long an example takes, or its making, says what else the machine does at that moment.
settings.register_profile("nova", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("nova")

pytest_plugins = ("tests.row_checks", "tests.statement_watch")


_SHARED = pytest.StashKey[SharedServers]()
_FOLDER = "nova_shared_folder"
_GROUPS = "groups.json"


def pytest_configure(config: pytest.Config) -> None:
    """Begin a session, or join the one of the process that started this one."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that servers are stopped then, too
    started_by_xdist: dict[str, str] | None = getattr(config, "workerinput", None)
    config.stash[_SHARED] = (
        SharedServers(Path(started_by_xdist[_FOLDER])) if started_by_xdist else SharedServers.begin()
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    """Know the option that leaves out nothing."""
    parser.addoption("--everything", action="store_true", help="run the tests that are marked long, too")


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run whole folders in several processes, single files in this one.

    Much of a test's time is waiting: three processes per core keep the cores busy.
    """
    files = all(Path(name.partition("::")[0]).is_file() for name in config.args)
    return 0 if files else min(3 * (os.cpu_count() or 1), 12)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is long unless it was asked for; have tests of each kind run beside each other."""
    asked = config.getoption("--everything") or any("::" in name for name in config.args)
    if not asked:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    items[:] = in_turns(items)
    write_groups(config.stash[_SHARED].folder / _GROUPS, items)


def pytest_collection_finish() -> None:
    """Have the collector of garbage leave alone what was imported: it looked through that again and again."""
    gc.collect()
    gc.freeze()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByServer:
    """Give each server's tests to one process."""
    return ByServer(config, log, config.stash[_SHARED].folder / _GROUPS)


def pytest_configure_node(node: Any) -> None:
    """Tell a process that xdist starts whose session it belongs to."""
    node.workerinput[_FOLDER] = str(node.config.stash[_SHARED].folder)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop what was started for the session."""
    if not hasattr(config, "workerinput"):
        config.stash[_SHARED].end()


@pytest.fixture(scope="session")
def shared(pytestconfig: pytest.Config) -> SharedServers:
    """The servers that all processes of this session share."""
    return pytestconfig.stash[_SHARED]


@pytest.fixture(scope="session")
def postgres(shared: SharedServers, worker_id: str) -> Callable[[str], str]:
    """A real PostgreSQL; call it with a database's name to make that database and get its URL."""
    return lambda name: shared.empty_database(f"{name}_{worker_id}")


_numbers = itertools.count(1)


@pytest.fixture
def empty_database_url(postgres: Callable[[str], str]) -> str:
    """URL of a database of this test's own, without any table."""
    return postgres(f"empty_{next(_numbers)}")


@pytest.fixture(scope="session")
def migrated_database_url(shared: SharedServers, worker_id: str) -> str:
    """URL of the one database with NOVA's tables; tests ask for `database_url`, which empties them."""
    return shared.database_with_tables(f"nova_{worker_id}")


@pytest.fixture
def database_url(migrated_database_url: str) -> str:
    """URL of a database with NOVA's tables, all of them empty."""
    tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
    with engine_between_tests(migrated_database_url).begin() as connection:
        connection.exec_driver_sql(f"TRUNCATE {tables} RESTART IDENTITY")
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


@pytest.fixture(scope="session")
def open_database(migrated_database_url: str) -> Iterator[Database]:
    """What `database` is, opened once: SQLAlchemy compiles each statement once for each that is opened."""
    opened = Database(migrated_database_url)
    yield opened
    opened.close()


@pytest.fixture
def database(database_url: str, open_database: Database) -> Database:
    """An open Database whose tables are empty."""
    return open_database


@pytest.fixture(scope="session")
def stand_in_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandInServer]:
    """The stand-in of Prefect's server, on a port of this process."""
    with StandInServer(tmp_path_factory.mktemp("stand-in") / "requests.log") as server:
        yield server


@pytest.fixture
def prefect_server(request: pytest.FixtureRequest, shared: SharedServers) -> str:
    """URL of the API of a Prefect server: the stand-in's, or a real one's where a test is `real_prefect`.

    With --everything all tests are on one real server, which all processes share.
    """
    if request.config.getoption("--everything"):
        return shared.prefect_url()
    if is_on_real_prefect(request):
        real: PrefectServer = request.getfixturevalue("private_server")
        return real.api_url
    server: StandInServer = request.getfixturevalue("stand_in_server")
    server.stand_in.lose_everything()
    return server.api_url


@pytest.fixture(scope="session")
def fork_server(shared: SharedServers) -> Path:
    """The socket of a process that starts Python programs without their imports."""
    return shared.fork_server()


@pytest.fixture(scope="session")
def up() -> Iterator[NovaUp]:
    """A running `nova up`, whose tests one process runs."""
    folder = reachable_folder("nova-up-")
    try:
        with NovaUp(folder / "data") as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def private_server(
    postgres: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PrefectServer]:
    """A Prefect server on PostgreSQL that writes a line per request.

    One process runs its tests: some count requests, restart it, or delete what others would miss.
    """
    settings = {
        "PREFECT_SERVER_LOGGING_LEVEL": "INFO",
        # New schedules are looked for every five seconds; a test need not wait that long.
        "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1",
    }
    home = tmp_path_factory.mktemp("prefect-private")
    with PrefectServer(postgres("prefect_private"), home, settings=settings) as server:
        yield server

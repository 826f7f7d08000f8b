"""Migrations of NOVA's database, applied by a program: `upgrade`, `downgrade`, `current`, `check`.

Alembic's scripts stand in `versions/`; there is no `alembic.ini`. Each call is one transaction under an
advisory lock, so that several processes may start, and upgrade, at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, NullPool, text

from flows.graphs.errors import ConfigurationError
from flows.store.database import database_errors, make_engine

_LOCK = 0x4E4F5641  # "NOVA": key of the advisory lock, any number that no other program takes
_WAY = "Bring it up to date: nova migrate (nova up does so by itself)."
_alembic = threading.Lock()
"""Alembic keeps the migration that runs in module globals: one at a time in this process."""


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the tables up to a revision; nothing happens when they are there already.

    Raises DatabaseUnavailableError when PostgreSQL does not answer.
    """
    with _connection(url) as connection:
        _run(connection, lambda config: command.upgrade(config, revision))


def downgrade(url: str, revision: str) -> None:
    """Take the tables back to an older revision; `base` leaves nothing at all, no data either.

    Raises DatabaseUnavailableError when PostgreSQL does not answer.
    """
    with _connection(url) as connection:
        _run(connection, lambda config: command.downgrade(config, revision))
        if _revision(connection) is None:
            connection.execute(text("DROP TABLE IF EXISTS alembic_version"))


def current(url: str) -> str | None:
    """Revision of the database; None when it has no tables of NOVA.

    Raises DatabaseUnavailableError when PostgreSQL does not answer.
    """
    with _connection(url) as connection:
        return _revision(connection)


def check(url: str) -> None:
    """Make sure that the tables are those that this version of NOVA works with.

    Raises ConfigurationError that says what to do when they are not, and DatabaseUnavailableError when
    PostgreSQL does not answer.
    """
    found = current(url)
    scripts = ScriptDirectory.from_config(_config())
    if found == scripts.get_current_head():
        return
    if found is None:
        raise ConfigurationError(f"The database has no tables of NOVA yet. {_WAY}")
    if found not in {script.revision for script in scripts.walk_revisions()}:
        raise ConfigurationError(
            f"The database is at revision {found}, which this NOVA does not know. Install a newer NOVA."
        )
    raise ConfigurationError(f"The database is at revision {found}, behind this NOVA. {_WAY}")


@contextmanager
def _connection(url: str) -> Iterator[Connection]:
    engine = make_engine(url, poolclass=NullPool)
    with database_errors(), engine.begin() as connection:
        yield connection


def _run(connection: Connection, work: Callable[[Config], None]) -> None:
    with _alembic:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        config = _config()
        config.attributes["connection"] = connection
        work(config)


def _config() -> Config:
    config = Config()
    # A percent sign would be an interpolation of configparser.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()

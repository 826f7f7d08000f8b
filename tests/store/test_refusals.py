"""What PostgreSQL refuses for good, told apart from what passes by itself."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.orm import Session

from flows.graphs.errors import DatabaseRefusedError, DatabaseUnavailableError, InfrastructureError
from flows.store.database import Database
from tests.refusals import slow_rows

PASSES = [
    *("08000", "08003", "08006", "08P01"),  # the connection
    *("40001", "40P01", "40003"),  # a transaction that has to be done again
    *("53300", "55P03", "25006", "25P03"),  # too many connections, a lock, a standby, an idle transaction
    *("57P01", "57P02", "57P03", "57P04", "57P05"),  # the server stops, starts, or ends the session
]
REFUSED = [
    *("53000", "53100", "53200", "53400"),  # resources: disk, memory, a configured limit
    *("54000", "54001", "54011", "54023"),  # limits of PostgreSQL itself
    *("57000", "57014"),  # an operator, or the statement timeout, canceled it
    *("58000", "58030"),  # the disk fails
    *("22001", "22003", "22021", "22P05"),  # a value that no column takes
    *("25P04", "40002", "42501", "55000", "P0001", "XX000", "XX001", "F0000"),
]


def refuse(session: Session, code: str, words: str = "told by PostgreSQL") -> None:
    """Have PostgreSQL raise an error of this SQLSTATE."""
    session.execute(text(f"DO $$ BEGIN RAISE EXCEPTION '{words}' USING ERRCODE = '{code}'; END $$"))


@pytest.mark.parametrize("code", PASSES)
def test_what_passes_by_itself_is_an_outage(database: Database, code: str) -> None:
    """It is waited for."""
    with pytest.raises(DatabaseUnavailableError, match="PostgreSQL cannot go on"):
        database.run_sync(partial(refuse, code=code))


@pytest.mark.parametrize("code", REFUSED)
def test_what_would_be_refused_again_is_none(database: Database, code: str) -> None:
    """It is no failure of infrastructure that another try may mend, and its code can be looked up."""
    for way in (database.run_sync, database.look_sync):
        with pytest.raises(DatabaseRefusedError, match=rf"PostgreSQL refused this \({code}\)") as caught:
            way(partial(refuse, code=code))
        assert caught.value.code == code
        assert not isinstance(caught.value, InfrastructureError)
        assert ("told by PostgreSQL" in str(caught.value)) is (code[:2] != "22")


def test_a_value_is_not_in_the_sentence(database: Database) -> None:
    """PostgreSQL quotes what it cannot read, and that may be a secret."""
    with pytest.raises(DatabaseRefusedError) as caught:
        database.run_sync(lambda s: s.execute(text("SELECT CAST(:it AS integer)"), {"it": "private-word"}))
    assert str(caught.value) == "PostgreSQL refused this (22P02): invalid text representation."


def test_a_fault_of_ours_stays_what_it_is(database: Database) -> None:
    """A table that is not there, or a row that breaks a constraint, is looked into with its traceback."""
    with pytest.raises(ProgrammingError):
        database.run_sync(lambda s: s.execute(text("SELECT * FROM nowhere")))
    with pytest.raises(IntegrityError):
        database.run_sync(partial(refuse, code="23514"))


def test_what_a_commit_is_refused_leaves_nothing(database: Database) -> None:
    """The server said so, so nobody has to wonder whether it stands."""

    def write(session: Session) -> None:
        session.execute(
            text(
                "CREATE TABLE late (n int); CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN RAISE EXCEPTION 'full' USING ERRCODE = '53100'; END $$;"
                "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED"
                " FOR EACH ROW EXECUTE FUNCTION late(); INSERT INTO late VALUES (1)"
            )
        )

    with pytest.raises(DatabaseRefusedError, match="full"):
        database.run_sync(write)
    assert database.run_sync(lambda s: s.scalar(text("SELECT to_regclass('late')"))) is None


@pytest.fixture
def impatient(database_url: str) -> Iterator[Database]:
    """A database where nothing may take longer than a second."""
    with slow_rows(database_url, "INSERT", "clients", limit=1):
        database = Database(database_url)
        yield database
        database.close()


def test_a_statement_that_takes_too_long_is_refused(impatient: Database) -> None:
    """By the limit that the server, the database or the role sets."""
    with pytest.raises(DatabaseRefusedError, match="statement timeout"):
        impatient.run_sync(lambda s: s.execute(text("SELECT pg_sleep(60)")))

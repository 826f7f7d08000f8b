"""After each test that has `database_url`: every row that it left may be, by itself and beside the others.

PostgreSQL refuses most rows that may not be (`row_states.RULES`); this asks for the rest (`ACROSS_ROWS`).
A test that makes such rows on purpose is marked with `check_rows(False)`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from flows.graphs.row_states import ACROSS_ROWS
from flows.store.models import ChainEntry, Execution
from tests.between_tests import engine_between_tests


def pytest_configure(config: pytest.Config) -> None:
    """Name the mark."""
    config.addinivalue_line("markers", "check_rows(False): the test leaves rows that may not be, on purpose")


@pytest.fixture(autouse=True)
def rows_are_legal(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test that leaves a row of executions that there may not be."""
    mark = request.node.get_closest_marker("check_rows")
    if "database_url" not in request.fixturenames or (mark is not None and not mark.args[0]):
        yield
        return
    url = request.getfixturevalue("database_url")
    yield
    assert illegal_rows(url) == {}


def illegal_rows(url: str) -> dict[str, list[int]]:
    """What must not be → the ids of the executions of which it is true, in a database with NOVA's tables."""
    with Session(engine_between_tests(url)) as session:
        found = {what: list(session.scalars(text(query))) for what, query in ACROSS_ROWS.items()}
        try:
            session.scalars(select(Execution)).all()
            session.scalars(select(ChainEntry)).all()
        except (ValueError, LookupError) as error:
            found[f"a row cannot be read: {error!r}"] = [0]
    return {what: ids for what, ids in found.items() if ids}

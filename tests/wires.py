"""Ways to real servers that a test can cut."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import URL, make_url

from tests.api.relay import Relay, Target


@asynccontextmanager
async def to_database(database_url: str) -> AsyncIterator[tuple[Relay, str]]:
    """A way to a database: the relay, and the URL through it."""
    url = make_url(database_url)
    async with Relay(_address(url)) as relay:
        through = url.set(host="127.0.0.1", port=relay.port, query={})
        yield relay, through.render_as_string(hide_password=False)


def _address(url: URL) -> Target:
    """Where a database's server listens: the embedded one on a Unix socket, in the folder of its URL."""
    folder = url.query.get("host")
    if isinstance(folder, str):
        return str(next(Path(folder).glob(".s.PGSQL.*[0-9]")))
    return url.host or "127.0.0.1", url.port or 5432

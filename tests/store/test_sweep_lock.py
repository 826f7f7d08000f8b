"""One process at a time sweeps, and another follows when it dies, hangs, or leaves."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from flows.config.settings import Settings
from flows.graphs.errors import DatabaseUnavailableError
from flows.store.sweep_lock import SweepLock
from tests.servers import clean_environment
from tests.waiting import eventually
from tests.wires import to_database

ROOT = Path(__file__).parents[2]
TIMEOUT = 2.0
"""Seconds after which a leader that gives no sign of life has lost its lock here."""


@pytest.fixture
def url(database_url: str) -> str:
    """The database as SQLAlchemy wants it."""
    return Settings(DATABASE_URL=database_url).sqlalchemy_url


@pytest.fixture
def scope() -> str:
    """An installation of this test's own."""
    return f"nova-{uuid4().hex[:8]}"


@contextlib.asynccontextmanager
async def sweeper(url: str, scope: str, name: str = "runs") -> AsyncIterator[SweepLock]:
    """The lock as another process has it."""
    lock = SweepLock(url, scope, name, TIMEOUT)
    try:
        yield lock
    finally:
        await lock.close()


@pytest.fixture
def leader(url: str, scope: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has the lock, and keeps it."""
    command = [sys.executable, "-m", "tests.store.sweeping", url, scope, str(TIMEOUT)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=clean_environment()
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


async def test_one_has_it_and_keeps_it(url: str, scope: str) -> None:
    """It does not go round: whoever has it keeps it for as long as it asks again."""
    async with sweeper(url, scope) as first, sweeper(url, scope) as second:
        assert await first.hold()
        for _ in range(3):
            assert (await first.hold(), await second.hold()) == (True, False)
        await first.release()
        assert await second.hold()
        assert not await first.hold()


async def test_other_installations_and_other_sweeps_have_their_own(url: str, scope: str) -> None:
    """A lock is of one work pool and one kind of sweep."""
    async with (
        sweeper(url, scope) as ours,
        sweeper(url, f"{scope}-staging") as theirs,
        sweeper(url, scope, "api") as other,
    ):
        assert [await lock.hold() for lock in (ours, theirs, other)] == [True] * 3


async def test_a_leader_that_is_killed_is_followed_at_once(
    url: str, scope: str, leader: subprocess.Popen[str]
) -> None:
    """Its connection ends with it."""
    async with sweeper(url, scope) as follower:
        assert not await follower.hold()
        leader.kill()
        leader.wait()
        killed = time.monotonic()
        await eventually(follower.hold, bool, timeout=TIMEOUT)
        assert time.monotonic() - killed < TIMEOUT / 2


async def test_a_leader_that_is_paused_is_followed_after_the_timeout(
    url: str, scope: str, leader: subprocess.Popen[str]
) -> None:
    """When it goes on it finds that the lock is another's."""
    async with sweeper(url, scope) as follower:
        leader.send_signal(signal.SIGSTOP)
        paused = time.monotonic()
        await eventually(follower.hold, bool)
        assert time.monotonic() - paused > TIMEOUT / 2
        leader.send_signal(signal.SIGCONT)
        assert leader.stdout is not None
        stdout = leader.stdout
        said = await eventually(lambda: asyncio.to_thread(stdout.readline), lambda line: line == "False\n")
        assert said == "False\n"
        assert await follower.hold()


async def test_a_sweep_that_takes_longer_than_the_timeout_keeps_its_lock(url: str, scope: str) -> None:
    """Its process gives signs of life meanwhile: a slow Prefect does not make two of one sweep."""
    async with sweeper(url, scope) as leader, sweeper(url, scope) as follower:
        assert await leader.hold()
        until = time.monotonic() + 2 * TIMEOUT
        while time.monotonic() < until:
            assert not await follower.hold()
            await asyncio.sleep(0.1)
        assert await leader.hold()


async def test_without_the_database_nobody_has_it(database_url: str, scope: str) -> None:
    """That is said as the outage that it is; afterwards it is taken as ever."""
    async with to_database(database_url) as (wire, far), sweeper(far, scope) as lock:
        assert await lock.hold()
        await wire.cut()
        with pytest.raises(DatabaseUnavailableError):
            await lock.hold()
        await wire.restore()
        await eventually(lock.hold, bool)

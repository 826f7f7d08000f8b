"""How the task that works for a run hears that its lease is lost."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

import pytest

from flows.graphs.errors import LeaseLostError
from flows.runs.lease_keeper import HeldLease, LeaseKeeper
from flows.store.database import Database
from flows.store.leases import Lease
from tests.leasing import SECONDS


@pytest.fixture
def held(database: Database) -> HeldLease:
    """A lease of this process."""
    keeper = LeaseKeeper(database, database, SECONDS)
    return HeldLease(keeper, uuid4(), Lease(1, uuid4(), SECONDS), time.monotonic())


async def lose(held: HeldLease) -> None:
    """Hear from the database, in the keeper's thread, that the lease is somebody else's."""
    await asyncio.to_thread(held.note, False, time.monotonic())


async def test_a_lost_lease_ends_the_work_and_nothing_else(held: HeldLease) -> None:
    """The task hears LeaseLostError. It is not cancelled: what it does afterwards is not disturbed."""

    async def work() -> None:
        with held.watched():
            await lose(held)
            await asyncio.Event().wait()

    with pytest.raises(LeaseLostError):
        await work()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_lease_that_is_lost_after_the_work_disturbs_nothing(held: HeldLease) -> None:
    """The loss is told to the task only while it works for the run."""
    with held.watched():
        pass
    await lose(held)
    await asyncio.sleep(0)
    with pytest.raises(LeaseLostError):
        held.check()


async def test_a_task_that_is_cancelled_for_another_reason_stays_cancelled(held: HeldLease) -> None:
    """A person's cancellation is no lost lease."""

    async def work() -> None:
        with held.watched():
            await asyncio.Event().wait()

    working = asyncio.create_task(work())
    await asyncio.sleep(0)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working

"""The flow that tidies up: which sandboxes it ends, and which keys it forgets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID, uuid4

import e2b
import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from flows.cleanup import UNNOTED, cleanup
from flows.config.settings import get_settings
from flows.graphs.lifecycle import Status
from flows.sandbox.e2b.provider import E2BProvider
from flows.sandbox.factory import provider
from flows.sandbox.port import SandboxSpec
from flows.store import idempotency
from flows.store.database import now
from flows.store.models import Execution, IdempotencyKey
from flows.store.transitions import attempts
from tests.builders import line
from tests.e2b_server.fixture import E2BServer, e2b_server, e2b_session_server
from tests.endings import end
from tests.flows.conftest import Nova
from tests.leasing import begin, lease_of
from tests.store import rows

__all__ = ["e2b_server", "e2b_session_server"]


@pytest.fixture
def nova_in_e2b(nova: Nova, limits: Callable[..., None], e2b_server: E2BServer) -> Nova:
    """NOVA with a key of E2B's."""
    limits(**e2b_server.environment)
    return nova


async def sandbox_of(flow_run: UUID) -> str:
    """Make the sandbox of a run, as a worker does, and leave it."""
    made = await provider(get_settings()).create(SandboxSpec(flow_run, "invoices #7", 600))
    return made.id


async def run_of(nova: Nova, status: Status | None = None) -> tuple[UUID, Execution]:
    """Begin a run, and end it with this status; its lease is released then."""
    workflow = await nova.workflow(line())
    pending = await nova.pending(workflow)
    flow_run = uuid4()
    row = await nova.database.run(
        lambda session: begin(
            session, flow_run_id=flow_run, workflow_id=workflow.id, public_id=pending.public_id
        )
    )
    if status is not None:
        lease, ends = lease_of(row), status

        def write(session: Session) -> None:
            end(session, lease, ends)
            attempts.release(session, lease)

        await nova.database.run(write)
    return flow_run, row


async def tidied() -> str | None:
    """Run the flow and return what it says that it did."""
    state = await cleanup(return_state=True)
    assert state.is_completed()
    return state.message


async def test_sandboxes_of_runs_that_are_over_or_unknown_are_ended(
    nova_in_e2b: Nova, e2b_server: E2BServer
) -> None:
    """Those of runs that go on stay, and so does one of a run that is closed but taken for a retry."""
    going_on, _ = await run_of(nova_in_e2b)
    retried, row = await run_of(nova_in_e2b, Status.FAILED)
    rows.change(nova_in_e2b.database, row, lease_owner=uuid4(), lease_until=now(30))
    over = (Status.COMPLETED, Status.FAILED, Status.CANCELLED)
    ended = [(await run_of(nova_in_e2b, status))[0] for status in over]
    kept = {await sandbox_of(flow_run) for flow_run in (going_on, retried)}
    left = {await sandbox_of(flow_run) for flow_run in (*ended, uuid4())}
    assert await tidied() == "4 sandboxes ended, 0 idempotency keys deleted"
    assert {place.id for place in e2b_server.sandboxes if place.killed} == left
    assert {place.id for place in e2b_server.sandboxes if not place.killed} == kept
    assert await tidied() == "0 sandboxes ended, 0 idempotency keys deleted"


async def test_a_run_that_goes_on_keeps_the_sandbox_that_it_knows(
    nova_in_e2b: Nova, e2b_server: E2BServer
) -> None:
    """Others of it E2B made without an answer that came; a young one may be about to be noted."""
    going_on, row = await run_of(nova_in_e2b)
    known, lost, coming = [await sandbox_of(going_on) for _ in range(3)]
    noted = update(Execution).where(Execution.id == row.id).values(sandbox_id=known)
    await nova_in_e2b.database.run(lambda session: session.execute(noted))
    waiting, _ = await run_of(nova_in_e2b)
    forgotten = await sandbox_of(waiting)
    for place in e2b_server.sandboxes:
        if place.id != coming:
            place.started -= UNNOTED
    assert await tidied() == "2 sandboxes ended, 0 idempotency keys deleted"
    assert {place.id for place in e2b_server.sandboxes if place.killed} == {lost, forgotten}
    assert await tidied() == "0 sandboxes ended, 0 idempotency keys deleted"


async def test_sandboxes_of_others_are_left_alone(nova_in_e2b: Nova, e2b_server: E2BServer) -> None:
    """Another installation of NOVA may share the key of E2B: its runs are unknown here, and none of ours."""
    await E2BProvider(installation="another").create(SandboxSpec(uuid4(), "theirs", 600))
    assert await tidied() == "0 sandboxes ended, 0 idempotency keys deleted"
    assert not [place for place in e2b_server.sandboxes if place.killed]


async def test_more_sandboxes_than_a_page_are_found(nova_in_e2b: Nova, e2b_server: E2BServer) -> None:
    """E2B lists them by the hundred."""
    await sandbox_of(uuid4())
    [first] = e2b_server.sandboxes
    await asyncio.gather(*(e2b.AsyncSandbox.create(metadata=first.metadata) for _ in range(100)))
    found = await provider(get_settings()).list()
    assert {one.id for one in found} == {place.id for place in e2b_server.sandboxes}
    assert len(found) == 101


async def test_keys_are_forgotten_after_a_day(nova: Nova) -> None:
    """One that still stands for its run is kept."""
    _, row = await run_of(nova)

    def write(session: Session) -> None:
        for key in ("old", "young"):
            idempotency.put(session, key, "0" * 64, row.id)

    await nova.database.run(write)
    aged = update(IdempotencyKey).where(IdempotencyKey.key == "old")
    created = aged.values(created_at=IdempotencyKey.created_at - timedelta(hours=24))
    await nova.database.run(lambda session: session.execute(created))
    assert await tidied() == "0 sandboxes ended, 1 idempotency keys deleted"
    keys = await nova.database.run(lambda session: session.scalars(select(IdempotencyKey.key)).all())
    assert keys == ["young"]

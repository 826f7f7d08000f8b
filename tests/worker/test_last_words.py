"""Workers that have to go while a run's last word is on its way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.objects import State
from prefect.states import Failed, Scheduled
from sqlalchemy import text

from flows.store.database import Database
from tests.builders import action, line
from tests.servers import wait_until
from tests.waiting import eventually
from tests.worker.proxy import HeldProposals, LostProposals
from tests.worker.site import Site

CLOSING_TAKES_A_SECOND = """
CREATE FUNCTION wait_a_second() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_sleep(1); RETURN NEW; END $$;
CREATE TRIGGER slow BEFORE UPDATE ON executions FOR EACH ROW
    WHEN (NEW.status = 'failed') EXECUTE FUNCTION wait_a_second()
"""
CLOSING_TAKES_NO_TIME = "DROP FUNCTION wait_a_second CASCADE"
IS_CLOSING = text(
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
)


@pytest.fixture
def slow_closing(database: Database) -> Iterator[None]:
    """Let it take a second to close a run as failed."""
    database.run_sync(lambda session: session.execute(text(CLOSING_TAKES_A_SECOND)))
    yield
    database.run_sync(lambda session: session.execute(text(CLOSING_TAKES_NO_TIME)))


@pytest.mark.usefixtures("slow_closing")
async def test_a_run_whose_row_is_being_closed_is_not_handed_back(site: Site, folder: Path) -> None:
    """In its queue it would count as retried by a person, and a guarded node would start a second time."""
    workflow = await site.workflow(
        line(action("mail", "raise ValueError('sent in part')", on_interrupt="fail"))
    )
    with site.worker(folder, NOVA_WORKER_GRACE="0") as worker:
        flow_run_id = await site.submit(workflow)
        await eventually(lambda: site.database.run(lambda session: session.scalar(IS_CLOSING)), bool)
        worker.process.terminate()
        run = await site.until_state(flow_run_id, "Failed", "AwaitingRetry")
        wait_until(lambda: worker.process.poll() is not None, 10, "the worker to end")
    row = await site.execution(flow_run_id)
    assert (run.state_name, row.status, row.attempt) == ("Failed", "failed", 1)


async def test_a_run_that_was_closed_from_outside_is_not_handed_back(site: Site, folder: Path) -> None:
    """Marked as failed by hand, and its worker has not heard of it: the guarded node is not started again."""
    started = folder / "started"
    started.touch()
    mail = f"import time\nwith open({str(started)!r}, 'a') as file: file.write('x')\ntime.sleep(50)"
    workflow = await site.workflow(line(action("mail", mail, on_interrupt="fail", timeout=60)))
    with site.worker(folder, NOVA_WORKER_GRACE="0") as worker:
        flow_run_id = await site.submit(workflow)
        wait_until(lambda: bool(started.read_text()), 30, "the node to start")
        await site.prefect.set_flow_run_state(flow_run_id, Failed(message="By hand"), force=True)
        await site.close_as_seen(flow_run_id)
        worker.process.terminate()
        wait_until(lambda: worker.process.poll() is not None, 20, "the worker to end")
    run = await site.prefect.read_flow_run(flow_run_id)
    assert (run.state_name, (await site.execution(flow_run_id)).status) == ("Failed", "failed")
    assert started.read_text() == "x"


async def test_a_run_is_nobody_elses_until_prefect_has_heard_its_last_word(site: Site, folder: Path) -> None:
    """Its worker keeps the lease of a run that failed meanwhile: no retry comes in between."""
    workflow = await site.workflow(line(action("fails", "raise ValueError('no')")))
    async with HeldProposals(site.settings.prefect_api_url, "FAILED") as proxy:
        with site.worker(folder, api_url=proxy.api_url) as worker:
            proxy.hold()
            flow_run_id = await site.submit(workflow)
            row = await eventually(lambda: site.execution(flow_run_id), lambda row: row.status == "failed")
            assert row.lease_owner is not None
            assert (await site.prefect.read_flow_run(flow_run_id)).state_name == "Running"
            proxy.release()
            await site.until_state(flow_run_id, "Failed")
            await eventually(lambda: site.execution(flow_run_id), lambda row: row.lease_owner is None)
            await asyncio.to_thread(worker.stop)  # the proxy is in this loop: it must go on meanwhile


@pytest.mark.parametrize("retried", [False, pytest.param(True, marks=pytest.mark.long)])
async def test_a_last_state_that_did_not_reach_prefect_is_sent_again(
    site: Site, folder: Path, retried: bool
) -> None:
    """It ends the run in Prefect, unless somebody was there before: a person's retry is not undone."""
    workflow = await site.workflow(line(action("fails", "raise ValueError('no')")))
    async with LostProposals(site.settings.prefect_api_url, "FAILED") as proxy:
        with site.worker(
            folder, api_url=proxy.api_url, PREFECT_CLIENT_MAX_RETRIES="0", NOVA_RECOVERY_INTERVAL="1000"
        ) as worker:
            flow_run_id = await site.submit(workflow)
            await eventually(
                lambda: asyncio.to_thread(worker.log.read_text), lambda log: "lost Prefect" in log
            )
            if retried:
                await site.prefect.set_flow_run_state(flow_run_id, Failed(message="By hand"), force=True)
                due = datetime.now(UTC) + timedelta(hours=1)
                waits: State[Any] = Scheduled(scheduled_time=due, message="Retry from the UI")
                await site.prefect.set_flow_run_state(flow_run_id, waits)
            proxy.loses = False
            if retried:
                worker.process.terminate()  # it waits for its runs
                await asyncio.to_thread(worker.process.wait, 30)
                assert (await site.prefect.read_flow_run(flow_run_id)).state_name == "Scheduled"
            else:
                await site.until_state(flow_run_id, "Failed")
                await asyncio.to_thread(worker.stop)  # the proxy is in this loop: it must go on meanwhile


async def test_a_run_that_prefect_gives_to_nobody_does_not_keep_others_waiting(
    site: Site, folder: Path
) -> None:
    """Its deployment may have no run at all, by hand: the worker asks for it now and then, not for ever."""
    blocked, other = [
        await site.workflow(line(action("a", "pass")), max_concurrent_runs=one) for one in (1, None)
    ]
    assert blocked.deployment_id is not None
    limit = (await site.prefect.read_deployment(blocked.deployment_id)).global_concurrency_limit
    assert limit is not None
    await site.prefect.update_global_concurrency_limit(limit.name, GlobalConcurrencyLimitUpdate(limit=0))
    for _ in range(2):
        await site.submit(blocked)
    flow_run_id = await site.submit(other)
    with site.worker(folder, limit=1):
        await site.until_state(flow_run_id, "Completed")

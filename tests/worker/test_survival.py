"""Runs survive their workers: killed, paused, or kept from what they need."""

from __future__ import annotations

import asyncio
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import StateType
from prefect.states import AwaitingRetry

from flows.store import chain, circuit_breaker
from flows.store.database import now
from flows.store.transitions import columns
from tests.access_log import AccessLog
from tests.builders import action, line
from tests.e2b_server.fixture import E2BServer, e2b_server, e2b_session_server
from tests.store import rows
from tests.waiting import eventually
from tests.wires import to_database
from tests.worker.site import Site

__all__ = ["e2b_server", "e2b_session_server"]

QUICK_LEASES = {"NOVA_LEASE_SECONDS": "5", "NOVA_RECOVERY_INTERVAL": "0.5"}
NOTE = "with open(context['ledger'], 'a') as ledger: ledger.write(f\"{run['step']} {time.time()}\\n\")\n"
HANGS_ONCE = (
    "import pathlib, time\n"
    + NOTE
    + "rows = pathlib.Path(context['ledger']).read_text().split('\\n')\n"
    + "if sum(row.startswith('2 ') for row in rows) == 1: time.sleep(55)\n"
)
WAITING = {"Scheduled", "Late"}
ONE_ACTION = line(action("a", "context['a'] = 1"))


def graph(**node: Any) -> dict[str, Any]:
    """Three nodes that write down when they start; the second hangs when it is started for the first time."""
    first, last = "import time\n" + NOTE + "context['one'] = 1", "import time\n" + NOTE
    return line(action("one", first), action("two", HANGS_ONCE, timeout=60, **node), action("three", last))


@pytest.fixture
def ledger(folder: Path) -> Path:
    """A file outside of every sandbox, to which nodes write that they start."""
    file = folder / "ledger"
    file.touch()
    return file


def starts(ledger: Path) -> list[tuple[int, datetime]]:
    """Which step was started when."""
    rows = (row.split() for row in ledger.read_text().splitlines())
    return [(int(step), datetime.fromtimestamp(float(at), UTC)) for step, at in rows]


async def until_started(ledger: Path, step: int) -> None:
    """Wait until this step was started."""

    async def steps() -> list[int]:
        return [number for number, _ in starts(ledger)]

    await eventually(steps, lambda found: step in found)


async def states_of(site: Site, flow_run_id: UUID) -> list[str]:
    """The names of all states that a run was in."""
    states = await site.prefect.read_flow_run_states(flow_run_id)
    return [state.name or "" for state in sorted(states, key=lambda state: state.timestamp)]


async def test_a_run_whose_worker_is_killed_goes_on_elsewhere(
    site: Site, folder: Path, e2b_server: E2BServer, ledger: Path
) -> None:
    """What succeeded does not run again, and the old sandbox is dead before the new one's first node."""
    workflow = await site.workflow(graph())
    with site.worker(folder, limit=2, **QUICK_LEASES, **e2b_server.environment) as first:
        flow_run_id = await site.submit(workflow, ledger=str(ledger))
        await until_started(ledger, 2)
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
    assert not e2b_server.sandboxes[0].killed
    with site.worker(folder, limit=2, **QUICK_LEASES, **e2b_server.environment):
        await site.until_state(flow_run_id, "Completed")
    row = await site.execution(flow_run_id)
    assert (row.status, row.attempt, row.crashes) == ("completed", 2, 1)
    assert [step for step, _ in starts(ledger)] == [1, 2, 2, 3]
    old, new = e2b_server.sandboxes
    assert (old.ended_by, new.ended_by) == ("kill", "kill")
    assert old.ended is not None
    assert old.ended < starts(ledger)[2][1]
    assert "Crashed" not in await states_of(site, flow_run_id)


async def test_a_node_that_must_not_start_twice_stops_its_run_when_the_worker_is_killed(
    site: Site, folder: Path, e2b_server: E2BServer, ledger: Path
) -> None:
    """The run ends as failed at that node; its old sandbox is dead. A person's retry starts it again."""
    workflow = await site.workflow(graph(on_interrupt="fail"))
    with site.worker(folder, limit=2, **QUICK_LEASES, **e2b_server.environment) as first:
        flow_run_id = await site.submit(workflow, ledger=str(ledger))
        await until_started(ledger, 2)
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
    with site.worker(folder, limit=2, **QUICK_LEASES, **e2b_server.environment):
        await site.until_state(flow_run_id, "Failed")
        row = await site.execution(flow_run_id)
        assert (row.status, row.error_kind, row.failed_at_node) == ("failed", "interrupted", "two")
        assert [step for step, _ in starts(ledger)] == [1, 2]
        assert all(place.killed for place in e2b_server.sandboxes)
        await site.prefect.set_flow_run_state(flow_run_id, AwaitingRetry(message="Retry from the UI"))
        await site.until_state(flow_run_id, "Completed")
    assert [step for step, _ in starts(ledger)] == [1, 2, 2, 3]


async def test_a_worker_that_was_paused_past_its_lease_changes_nothing(
    site: Site, folder: Path, e2b_server: E2BServer, ledger: Path
) -> None:
    """Another one takes its run over meanwhile; when it goes on it leaves the run alone, and works on."""
    workflow, short = await site.workflow(graph()), await site.workflow(ONE_ACTION)
    with site.worker(folder, limit=2, **QUICK_LEASES, **e2b_server.environment) as first:
        flow_run_id = await site.submit(workflow, ledger=str(ledger))
        await until_started(ledger, 2)
        first.process.send_signal(signal.SIGSTOP)
        with site.worker(folder, limit=2, **QUICK_LEASES, **e2b_server.environment):
            await site.until_state(flow_run_id, "Completed")
        states = await states_of(site, flow_run_id)
        first.process.send_signal(signal.SIGCONT)
        await site.until_state(await site.submit(short), "Completed")
    assert await states_of(site, flow_run_id) == states
    row = await site.execution(flow_run_id)
    rows = await site.database.run(lambda session: chain.entries(session, row.id))
    assert [(entry.step, entry.status) for entry in rows] == [(step, "success") for step in range(5)]
    assert [step for step, _ in starts(ledger)] == [1, 2, 2, 3]
    old = e2b_server.sandboxes[0]
    assert old.ended is not None
    assert old.ended < starts(ledger)[2][1]


async def test_a_worker_that_is_told_to_go_hands_its_runs_back_between_two_nodes(
    site: Site, folder: Path, ledger: Path
) -> None:
    """Of a long run no node is interrupted, and another worker goes on behind the last."""
    note = "import time\n" + NOTE + "time.sleep(0.5)"
    workflow = await site.workflow(line(*(action(f"n{i}", note, on_interrupt="fail") for i in range(20))))
    with site.worker(folder, limit=2, NOVA_WORKER_GRACE="4") as first:
        flow_run_id = await site.submit(workflow, ledger=str(ledger))
        await until_started(ledger, 2)
        first.process.terminate()
        await site.until_state(flow_run_id, "AwaitingRetry")
        assert (await site.execution(flow_run_id)).lease_owner is None
    with site.worker(folder):
        await site.until_state(flow_run_id, "Completed")
    assert [step for step, _ in starts(ledger)] == list(range(1, 21))
    assert (await site.execution(flow_run_id)).attempt == 2


@pytest.mark.parametrize("kind", ["nova", pytest.param("process", marks=pytest.mark.long)])
async def test_a_run_that_is_put_off_comes_back_at_its_time(
    site: Site, folder: Path, e2b_server: E2BServer, kind: str
) -> None:
    """E2B fails longer than is waited for in place: AwaitingRetry under either worker, and no crash."""
    workflow = await site.workflow(ONE_ACTION)
    e2b_server.cloud.refuse_with = (500, "oops")
    delay = "8" if kind == "nova" else "25"  # see flows.config.times.LEAST_BREAKER_PAUSE
    settings = {"NOVA_NODE_RETRY_DELAY": "0.05", "NOVA_RETRY_DELAY": delay}
    with site.worker(folder, kind=kind, limit=2, **settings, **e2b_server.environment) as worker:
        flow_run_id = await site.submit(workflow)
        await site.until_state(flow_run_id, "AwaitingRetry")
        row = await site.execution(flow_run_id)
        assert (row.status, row.retries, row.error_kind) == ("running", 1, "infrastructure")
        e2b_server.cloud.refuse_with = None
        await site.until_state(flow_run_id, "Completed")
        assert "Crash" not in worker.log.read_text()
    assert (await site.execution(flow_run_id)).attempt == 2
    assert "Crashed" not in await states_of(site, flow_run_id)
    assert all(place.killed for place in e2b_server.sandboxes)


async def test_while_the_breaker_is_open_runs_wait_in_their_queue(
    site: Site, folder: Path, e2b_server: E2BServer, access_log: AccessLog
) -> None:
    """No run is taken, and Prefect is not asked without end; when the pause is over one tries, then all."""
    workflow = await site.workflow(ONE_ACTION)
    with site.worker(folder, limit=4, **e2b_server.environment):
        await site.until_state(await site.submit(workflow), "Completed")
        await site.database.run(lambda session: circuit_breaker.failed(session, 1, 4.0))
        access_log.mark()
        e2b_server.hold()
        ids = [await site.submit(workflow) for _ in range(4)]

        async def state() -> str:
            return str((await site.database.run(circuit_breaker.read))["state"])

        await eventually(state, lambda found: found == "half_open")
        asked = access_log.requests()
        found = [run.state_type for run in await site.flow_runs(ids)]
        assert found.count(StateType.SCHEDULED) >= 3, found
        assert asked.total < 60, asked
        e2b_server.release()
        await site.until_all(ids, "Completed")
    assert await state() == "closed"
    assert {(await site.execution(each)).attempt for each in ids} == {1}


async def test_a_run_whose_lease_somebody_has_is_left_alone(site: Site, folder: Path) -> None:
    """It stays in its queue, keeps none of the others waiting, and is taken when the lease is free."""
    workflow = await site.workflow(ONE_ACTION)
    held = await site.submit(workflow)
    row = await site.execution(held)
    rows.change(site.database, row, lease_owner=uuid4(), lease_until=now(60))
    with site.worker(folder, limit=1):
        await site.until_all([await site.submit(workflow) for _ in range(2)], "Completed")
        assert set(await states_of(site, held)) <= WAITING
        rows.change(site.database, row, **columns.FREE)
        await site.until_state(held, "Completed")


async def test_without_the_database_no_run_is_taken(site: Site, folder: Path) -> None:
    """Runs stay in their queue while PostgreSQL is away, and start when it is back."""
    workflow = await site.workflow(ONE_ACTION)
    async with to_database(site.settings.database_url) as (wire, url):
        with site.worker(folder, DATABASE_URL=url) as worker:
            await site.until_state(await site.submit(workflow), "Completed")
            await wire.cut()
            flow_run_id = await site.submit(workflow)

            async def log() -> str:
                return worker.log.read_text()

            await eventually(log, lambda text: "No run is taken" in text)
            assert set(await states_of(site, flow_run_id)) <= WAITING
            await wire.restore()
            await site.until_state(flow_run_id, "Completed")
            await asyncio.to_thread(worker.stop)  # the relay is in this loop: it must go on meanwhile


async def test_a_run_that_is_completed_stays_so_when_it_is_retried(site: Site, folder: Path) -> None:
    """Prefect lets a person retry it: nothing runs, and it is Completed again."""
    workflow = await site.workflow(ONE_ACTION)
    with site.worker(folder):
        flow_run_id = await site.submit(workflow)
        await site.until_state(flow_run_id, "Completed")
        before = await site.execution(flow_run_id)
        await site.prefect.set_flow_run_state(flow_run_id, AwaitingRetry(message="Retry from the UI"))
        await site.until_state(flow_run_id, "Completed")
    after = await site.execution(flow_run_id)
    assert (after.attempt, after.completed_at) == (before.attempt, before.completed_at)
    assert (await states_of(site, flow_run_id)).count("Completed") == 2


async def test_a_lease_that_nobody_has_any_more_is_in_no_row(site: Site, folder: Path) -> None:
    """Whatever becomes of runs, when they are over none is leased."""
    workflow, bad = await site.workflow(ONE_ACTION), await site.workflow(line(action("a", "1 / 0")))
    with site.worker(folder):
        good, failed = await site.submit(workflow), await site.submit(bad)
        await site.until_state(good, "Completed")
        await site.until_state(failed, "Failed")
    for flow_run_id in (good, failed):
        row = await site.execution(flow_run_id)
        assert (row.lease_owner, row.lease_until) == (None, None)

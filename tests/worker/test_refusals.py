"""A worker whose database refuses rows: its slots are free again, and other runs go on."""

from __future__ import annotations

from pathlib import Path

from tests.builders import action, line
from tests.refusals import refused_rows
from tests.waiting import eventually
from tests.worker.site import Site


async def test_a_run_whose_end_is_refused_gives_its_slot_back(site: Site, folder: Path) -> None:
    """With one slot: another run is done meanwhile, and the row is closed when PostgreSQL takes it."""
    workflow = await site.workflow(line(action("a", "context['a'] = 1")))
    stuck = await site.submit(workflow)
    row = await site.execution(stuck)
    refused = f"NEW.id = {row.id} AND NEW.status NOT IN ('pending', 'running')"
    with site.worker(folder, limit=1, NOVA_RECOVERY_INTERVAL="0.5") as worker:
        with refused_rows(site.settings.database_url, "UPDATE", "executions", refused):
            failed = await site.until_state(stuck, "Failed")
            assert failed.state is not None
            assert "PostgreSQL refused this" in (failed.state.message or "")
            await site.until_rows([await site.submit(workflow)], "completed")
            assert (await site.execution(stuck)).status == "running"
        closed = await eventually(lambda: site.execution(stuck), lambda row: row.status == "failed")
        assert "PostgreSQL refused this" in (closed.error or "")
        assert "could not be written in its execution" in worker.log.read_text()


async def test_a_run_that_cannot_be_taken_keeps_no_other_waiting(site: Site, folder: Path) -> None:
    """Its row takes no lease: the run behind it is done, and it comes to its turn when it does."""
    workflow = await site.workflow(line(action("a", "context['a'] = 1")))
    stuck, other = await site.submit(workflow), await site.submit(workflow)
    refused = f"NEW.id = {(await site.execution(stuck)).id}"
    with (
        refused_rows(site.settings.database_url, "UPDATE", "executions", refused),
        site.worker(folder, limit=1),
    ):
        await site.until_rows([other], "completed")
        assert (await site.execution(stuck)).status == "pending"
    with site.worker(folder, limit=1):
        await site.until_rows([stuck], "completed")

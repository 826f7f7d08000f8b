"""Workers that have to go while a run's last word is on its way."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import text

from tests.builders import action, line
from tests.servers import wait_until
from tests.waiting import eventually
from tests.worker.site import Site

CLOSING_TAKES_A_SECOND = """
CREATE FUNCTION wait_a_second() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_sleep(1); RETURN NEW; END $$;
CREATE TRIGGER slow BEFORE UPDATE ON executions FOR EACH ROW
    WHEN (NEW.status = 'failed') EXECUTE FUNCTION wait_a_second()
"""
IS_CLOSING = text(
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
)


async def test_a_run_whose_row_is_being_closed_is_not_handed_back(site: Site, folder: Path) -> None:
    """In its queue it would count as retried by a person, and a guarded node would start a second time."""
    await site.database.run(lambda session: session.execute(text(CLOSING_TAKES_A_SECOND)))
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

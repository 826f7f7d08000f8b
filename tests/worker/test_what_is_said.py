"""What a worker logs while nothing is wrong with NOVA: each thing once, and none of it as an error."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pathlib import Path
from uuid import UUID

from prefect.states import Suspended

from flows.store import circuit_breaker
from tests.access_log import AccessLog
from tests.builders import action, line
from tests.e2b_server.fixture import E2BServer, e2b_server, e2b_session_server
from tests.servers import ServerProcess
from tests.waiting import eventually
from tests.wires import to_database
from tests.worker.proxy import Proxy
from tests.worker.site import WAIT, Site, until_begun

__all__ = ["e2b_server", "e2b_session_server"]

ONE_ACTION = line(action("a", "context['a'] = 1"))
TWO_ACTIONS = line(action("wait", WAIT, timeout=60), action("after", "pass"))
FOR_EVER = line(action("sleep", "import time; time.sleep(50)", timeout=60))
SETTINGS = {
    "NOVA_RECOVERY_INTERVAL": "0.5",
    "NOVA_LEASE_SECONDS": "6",
    "NOVA_NODE_RETRY_DELAY": "0.05",
    "NOVA_RETRY_DELAY": "4",
    "NOVA_BREAKER_THRESHOLD": "1000",
    "NOVA_WORKER_GRACE": "0",
}
LINE = re.compile(r"^[\d:.]{12} \| (?P<level>[A-Z]+) +\| (?P<said>.*)$")


class Cut(Proxy):
    """A way to Prefect that can be cut."""

    is_cut = False

    def refuses(self, head: bytes) -> bool:
        """Let no connection in while it is cut."""
        return self.is_cut

    def cut(self) -> None:
        """End all connections."""
        self.is_cut = True
        for link in self._links:
            link.cancel()

    def restore(self) -> None:
        """Let them in again."""
        self.is_cut = False


class Log:
    """What a worker has written."""

    def __init__(self, worker: ServerProcess) -> None:
        self._file = worker.log

    async def text(self) -> str:
        """All of it."""
        return self._file.read_text()

    async def until(self, words: str) -> None:
        """Wait until it says this."""
        await eventually(self.text, lambda text: words in text)

    def levels(self) -> Counter[str]:
        """How many lines there are of each level."""
        found = map(LINE.match, self._file.read_text().splitlines())
        return Counter(match["level"] for match in found if match)

    def times(self, *words: str) -> dict[str, int]:
        """How often it says each of these."""
        text = self._file.read_text()
        return {each: text.count(each) for each in words}


async def test_what_is_expected_is_said_once_and_is_no_error(
    site: Site, folder: Path, e2b_server: E2BServer, access_log: AccessLog
) -> None:
    """A run put off, cancelled, suspended, handed back; E2B, the database and Prefect away for a while."""
    workflow, two, long = [await site.workflow(graph) for graph in (ONE_ACTION, TWO_ACTIONS, FOR_EVER)]
    database, way = to_database(site.settings.database_url), Cut(site.settings.prefect_api_url)
    async with database as (wire, url), way as prefect:
        with site.worker(
            folder,
            limit=3,
            api_url=prefect.api_url,
            DATABASE_URL=url,
            **SETTINGS,
            **e2b_server.environment,
        ) as worker:
            log = Log(worker)
            await _put_off(site, await site.submit(workflow), e2b_server)
            await _cancelled(site, await site.submit(long))

            told = folder / "told"
            suspended = await site.submit(two, told=str(told))
            await site.until_step(suspended, "wait")
            await until_begun(told)
            access_log.mark()
            await site.prefect.set_flow_run_state(suspended, Suspended(timeout_seconds=300))
            await access_log.until_told()
            told.touch()
            await site.until_step(suspended, "after")
            await eventually(lambda: site.execution(suspended), lambda row: row.lease_owner is None)
            await site.prefect.resume_flow_run(suspended)
            await site.until_state(suspended, "Completed")

            await site.database.run(lambda session: circuit_breaker.failed(session, 1, 2.0))
            waiting = [await site.submit(workflow) for _ in range(3)]
            await site.until_all(waiting, "Completed")

            await wire.cut()
            waiting = [await site.submit(workflow) for _ in range(3)]
            await log.until("No run is taken")
            await log.until("Runs are not looked after")
            await wire.restore()
            await site.until_all(waiting, "Completed")

            told = folder / "told again"
            running = await site.submit(two, told=str(told))
            await site.until_step(running, "wait")
            prefect.cut()
            await log.until("does not tell what is due")
            told.touch()
            await log.until("after: done")
            prefect.restore()
            await site.until_state(running, "Completed")
            await log.until("event stream is back")

            handed_back = [await site.submit(long) for _ in range(2)]
            for flow_run_id in handed_back:
                await site.until_step(flow_run_id, "sleep")
            await asyncio.to_thread(worker.stop, 30)
            await site.until_all(handed_back, "AwaitingRetry")

    assert set(log.levels()) == {"INFO", "WARNING"}, await log.text()
    assert "Traceback" not in await log.text()
    counts = log.times(
        "The next attempt is at",
        "Finished in state Cancelled(",
        "Finished in state Suspended(",
        "E2B fails again and again",
        "E2B works again",
        "No run is taken",
        "Runs are taken again",
        "Prefect does not tell what is due",
        "Prefect tells what is due again",
        "event stream is gone",
        "event stream is back",
    )
    assert counts == dict.fromkeys(counts, 1), await log.text()
    assert log.times("is handed back", "Finished in state AwaitingRetry(") == {
        "is handed back": 2,
        "Finished in state AwaitingRetry(": 2,
    }
    assert log.times("Prefect takes no events")["Prefect takes no events"] <= 1  # those of that moment
    assert log.times("Finished in state Running(") == {"Finished in state Running(": 0}


async def _put_off(site: Site, flow_run_id: UUID, e2b_server: E2BServer) -> None:
    """Let E2B fail for longer than is waited for in place."""
    e2b_server.cloud.refuse_with = (500, "oops")
    await site.until_state(flow_run_id, "AwaitingRetry")
    e2b_server.cloud.refuse_with = None
    await site.until_state(flow_run_id, "Completed")


async def _cancelled(site: Site, flow_run_id: UUID) -> None:
    """Cancel a run in the middle of a node."""
    await site.until_step(flow_run_id, "sleep")
    await site.gateway.runs.cancel(flow_run_id)
    await site.until_state(flow_run_id, "Cancelled")

"""Tells runs that Prefect lost from runs that a person deleted there."""

from __future__ import annotations

import logging
from uuid import UUID

from flows.prefect_gateway.flow_runs import FlowRuns
from flows.store import orphans
from flows.store.database import Database

log = logging.getLogger(__name__)


class Losses:
    """The runs that Prefect lost. Made anew for each round, which says once that there are any.

    Prefect lost a run of which it has no events: its database was restored, or PREFECT_API_URL names another
    server. It lost a run as well that went with its deployment: deleting that deletes what waits, and the
    deployment is missing then, or was made again later. All others were deleted by a person.
    """

    def __init__(self, database: Database, runs: FlowRuns) -> None:
        self._database = database
        self._runs = runs
        self._is_said = False

    async def include(self, execution_id: int, flow_run_id: UUID) -> bool:
        """Whether Prefect lost this execution's flow run, which it does not know.

        Raises PrefectUnavailableError and DatabaseUnavailableError.
        """
        if await self._was_deleted(execution_id, flow_run_id):
            return False
        if not self._is_said:
            self._is_said = True
            log.error(
                "Prefect lost runs: its database was restored, PREFECT_API_URL names another server, or a "
                "deployment was deleted. Those that are not over are handed to it again."
            )
        return True

    async def _was_deleted(self, execution_id: int, flow_run_id: UUID) -> bool:
        """Whether Prefect remembers the flow run, and has its deployment since before that."""
        heard = await self._runs.last_heard(flow_run_id)
        if heard is None:
            return False
        deployment_id = await self._database.run(lambda session: orphans.deployment_of(session, execution_id))
        deployed = await self._runs.deployed_at(deployment_id) if deployment_id is not None else None
        return deployed is not None and deployed <= heard

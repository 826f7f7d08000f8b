"""Tells runs that Prefect lost from runs that a person deleted there."""

from __future__ import annotations

import logging
from itertools import takewhile

from flows.prefect_gateway.flow_runs import FlowRuns
from flows.store import orphans
from flows.store.database import Database

log = logging.getLogger(__name__)

NEWEST = 50
"""How many of the newest runs Prefect is asked for."""
MANY = 3
"""If at least so many of the newest runs are missing without a gap, Prefect lost them."""


class Losses:
    """The runs that Prefect lost; it is asked once, when the first missing run is met.

    Prefect's database was restored, or PREFECT_API_URL names another server, where the newest runs are
    missing without a gap, or where the run's deployment is missing as well. A person who deletes runs leaves
    others.
    """

    def __init__(self, database: Database, runs: FlowRuns) -> None:
        self._database = database
        self._runs = runs
        self._lost_from: float | None = None

    async def include(self, execution_id: int) -> bool:
        """Whether Prefect lost this execution's flow run, which it does not know.

        Raises PrefectUnavailableError and DatabaseUnavailableError.
        """
        if self._lost_from is None:
            self._lost_from = await self._find()
        if execution_id >= self._lost_from:
            return True
        deployment_id = await self._database.run(lambda session: orphans.deployment_of(session, execution_id))
        return deployment_id is not None and not await self._runs.knows_deployment(deployment_id)

    async def _find(self) -> float:
        """The id of the first execution that Prefect lost; infinity where it lost none."""
        newest = await self._database.run(lambda session: orphans.newest(session, NEWEST))
        known = await self._runs.find_all([flow_run_id for _, flow_run_id in newest]) if newest else {}
        missing = list(takewhile(lambda each: each[1] not in known, newest))
        if len(missing) < MANY:
            return float("inf")
        log.error(
            "Prefect does not know the %d newest runs: its database was restored, or PREFECT_API_URL names "
            "another server. Runs that are not over are handed to it again.",
            len(missing),
        )
        return 0 if len(missing) == NEWEST else missing[-1][0]

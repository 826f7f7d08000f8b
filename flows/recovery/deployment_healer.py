"""Prefect's work pool, queues and deployments: what was deleted or detached there is made again.

Cron runs and those that are started in the UI need them, and tell no API that they are gone.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from uuid import UUID

from flows.graphs.errors import NotFoundError, PrefectUnavailableError
from flows.prefect_gateway.workflow_deployments import Deployments
from flows.store import workflows
from flows.store.database import Database

log = logging.getLogger(__name__)

Deploy = Callable[[int], Awaitable[UUID]]
"""Makes the deployment of the workflow of that id, and notes it in the workflow's row."""


class DeploymentHealer:
    """Looks whether every workflow has its deployment in the work pool; makes again what is missing.

    A look costs two small requests where all is well. It removes nothing: that is left to `nova deploy`.
    """

    def __init__(self, database: Database, deployments: Deployments, deploy: Deploy) -> None:
        self._database = database
        self._deployments = deployments
        self._deploy = deploy
        self._new: set[int] = set()
        """Workflows without a deployment at the last look: whoever makes one is at it at that moment."""

    async def once(self) -> None:
        """Look once, and make the deployments again that are gone.

        Raises PrefectUnavailableError and DatabaseUnavailableError; the next look goes on.
        """
        if not await self._deployments.has_whole_pool():
            log.warning("The work pool, or one of its queues, is missing in Prefect; it is made again.")
            await self._deployments.ensure_pool()
            await self._deployments.ensure_cleanup()
        lost = await self._lost()
        made, failures = 0, 0
        for workflow_id in lost:
            try:
                await self._deploy(workflow_id)
            except NotFoundError:  # it was deleted meanwhile
                continue
            except PrefectUnavailableError as error:
                failures += 1
                if failures > 1:  # it is not this deployment that is wrong
                    raise
                log.warning("Workflow %d keeps no deployment: %s", workflow_id, error)
            else:
                made, failures = made + 1, 0
        if made:
            log.warning("%d deployment(s) were gone from the work pool, and are made again.", made)

    async def _lost(self) -> list[int]:
        """The workflows whose deployment is not in the work pool any more."""
        known = await self._database.run(workflows.deployments)
        ids = {each for each in known.values() if each is not None}
        lost: list[int] = []
        if await self._deployments.count(ids) < len(ids):
            found = await self._deployments.of_workflows()
            lost = [one for one, deployment in known.items() if deployment and deployment not in found]
        without = {one for one, deployment in known.items() if deployment is None}
        lost += sorted(without & self._new)
        self._new = without
        return lost

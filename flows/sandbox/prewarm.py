"""Create a run's sandbox early, and end it even if the run never uses it.

Creating a sandbox takes longer than everything else before a run's first node, so it begins as soon as the
run is claimed. NOVA's own worker begins it, and ends it after the run if the run did not. Under another
worker type the flow does both. Worker and flow get the same sandbox here, by the flow run's id.
"""

from __future__ import annotations

import asyncio
import logging
from uuid import UUID

from flows.config.log_once import FaultLog
from flows.graphs.errors import NovaError
from flows.sandbox.port import Sandbox, SandboxProvider, SandboxSpec

log = logging.getLogger(__name__)
_faults = FaultLog(log)


class RunSandboxes:
    """The sandboxes of one process's runs, by flow run id; one that is being ended is no longer here."""

    def __init__(self, provider: SandboxProvider) -> None:
        self.provider = provider
        self._by_run: dict[UUID, RunSandbox] = {}

    def begin(self, spec: SandboxSpec) -> RunSandbox:
        """Begin to create a run's sandbox, or return the one that was begun before."""
        found = self._by_run.get(spec.flow_run)
        if found is None:
            found = self._by_run[spec.flow_run] = RunSandbox(self, spec)
        return found

    async def end(self, flow_run: UUID) -> None:
        """End a run's sandbox if the run has not ended it itself; usually it has."""
        if (found := self._by_run.get(flow_run)) is not None:
            await found.end()

    def forget(self, flow_run: UUID) -> None:
        """Remove a run's sandbox, so that the next `begin` creates another one."""
        del self._by_run[flow_run]


class RunSandbox:
    """One run's sandbox, from `RunSandboxes.begin`."""

    def __init__(self, registry: RunSandboxes, spec: SandboxSpec) -> None:
        self._registry = registry
        self._flow_run = spec.flow_run
        self._making = asyncio.create_task(registry.provider.create(spec))
        self._making.add_done_callback(_log_failure)
        self._ending: asyncio.Task[None] | None = None

    async def ready(self) -> Sandbox:
        """Return the sandbox when it is created; raises SandboxError.

        Cancelling the wait does not cancel the creation: call `end` for that.
        """
        return await asyncio.shield(self._making)

    async def end(self) -> None:
        """End the sandbox, or cancel its creation; may be called twice."""
        if self._ending is None:
            self._registry.forget(self._flow_run)  # the run may begin again before this sandbox has ended
            self._ending = asyncio.create_task(self._end())
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        self._making.cancel()
        await asyncio.wait({self._making})
        if not self._making.cancelled() and self._making.exception() is None:
            await self._making.result().kill()


def _log_failure(making: asyncio.Task[Sandbox]) -> None:
    """Retrieve and log a failure that nobody may await: the run may have failed or stopped before."""
    if making.cancelled() or (error := making.exception()) is None:
        return
    if isinstance(error, NovaError):
        log.debug("A sandbox could not be created: %s", error)
    else:
        _faults.note(error, "A sandbox was not created.")

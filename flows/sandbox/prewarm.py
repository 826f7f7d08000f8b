"""A run's sandbox from the moment its creation begins to its end, whether the run comes to use it or not.

Making one takes longer than all else that a run needs before its first node, so it begins when the run is
taken: by the worker, which ends what the run left, or by the flow itself under a worker that knows nothing of
sandboxes. Both find the same one here, by the flow run's id.
"""

from __future__ import annotations

import asyncio
import logging
from uuid import UUID

from flows.sandbox.port import Sandbox, SandboxProvider, SandboxSpec

log = logging.getLogger(__name__)


class RunSandboxes:
    """The sandboxes of one process's runs, by the flow runs' ids, until their end begins."""

    def __init__(self, provider: SandboxProvider) -> None:
        self.provider = provider
        self._of_runs: dict[UUID, RunSandbox] = {}

    def begin(self, spec: SandboxSpec) -> RunSandbox:
        """Begin to make a run's sandbox, unless that has begun already."""
        found = self._of_runs.get(spec.flow_run)
        if found is None:
            found = self._of_runs[spec.flow_run] = RunSandbox(self, spec)
        return found

    async def end(self, flow_run: UUID) -> None:
        """End the sandbox of a run that did not do so itself; usually there is none."""
        if (found := self._of_runs.get(flow_run)) is not None:
            await found.end()

    def forget(self, flow_run: UUID) -> None:
        """Let the next `begin` make another one, before the one that there is has ended."""
        del self._of_runs[flow_run]


class RunSandbox:
    """One run's sandbox; made by `RunSandboxes.begin`."""

    def __init__(self, among: RunSandboxes, spec: SandboxSpec) -> None:
        self._among = among
        self._flow_run = spec.flow_run
        self._making = asyncio.create_task(among.provider.create(spec))
        self._making.add_done_callback(_note)
        self._ending: asyncio.Task[None] | None = None

    async def ready(self) -> Sandbox:
        """Wait until it is made; raises SandboxError. Who stops waiting ends it all the same."""
        return await asyncio.shield(self._making)

    async def end(self) -> None:
        """End it, made or still in the making; may be called twice."""
        if self._ending is None:
            self._among.forget(self._flow_run)  # the run may be taken anew before this one is gone
            self._ending = asyncio.create_task(self._end())
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        self._making.cancel()
        await asyncio.wait({self._making})
        if not self._making.cancelled() and self._making.exception() is None:
            await self._making.result().kill()


def _note(making: asyncio.Task[Sandbox]) -> None:
    """See a failure that nobody may come to ask for: the run failed or was stopped before."""
    if not making.cancelled() and (error := making.exception()) is not None:
        log.debug("A sandbox could not be made: %s", error)

"""A run's sandbox from the moment its creation begins to its end, whether the run comes to use it or not.

Making one takes longer than all else that a run needs before its first node, so it begins when the run is
taken: by the worker, which ends what the run left, or by the flow itself under a worker that knows nothing of
sandboxes. Both find the same one here, by the flow run's id.
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

_of_runs: dict[UUID, RunSandbox] = {}
"""The sandboxes of this process's runs, until their end begins."""


class RunSandbox:
    """One run's sandbox; made by `begin`."""

    def __init__(self, provider: SandboxProvider, spec: SandboxSpec) -> None:
        self._flow_run = spec.flow_run
        self._making = asyncio.create_task(provider.create(spec))
        self._making.add_done_callback(_note)
        self._ending: asyncio.Task[None] | None = None

    async def ready(self) -> Sandbox:
        """Wait until it is made; raises SandboxError. Who stops waiting ends it all the same."""
        return await asyncio.shield(self._making)

    async def end(self) -> None:
        """End it, made or still in the making; may be called twice."""
        if self._ending is None:
            del _of_runs[self._flow_run]  # the run may be taken anew before this one is gone
            self._ending = asyncio.create_task(self._end())
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        self._making.cancel()
        await asyncio.wait({self._making})
        if not self._making.cancelled() and self._making.exception() is None:
            await self._making.result().kill()


def begin(provider: SandboxProvider, spec: SandboxSpec) -> RunSandbox:
    """Begin to make a run's sandbox, unless that has begun already."""
    found = _of_runs.get(spec.flow_run)
    if found is None:
        found = _of_runs[spec.flow_run] = RunSandbox(provider, spec)
    return found


async def end(flow_run: UUID) -> None:
    """End the sandbox of a run that did not do so itself; usually there is none."""
    if (found := _of_runs.get(flow_run)) is not None:
        await found.end()


def _note(making: asyncio.Task[Sandbox]) -> None:
    """See a failure that nobody may come to ask for: the run failed or was stopped before."""
    if making.cancelled() or (error := making.exception()) is None:
        return
    if isinstance(error, NovaError):
        log.debug("A sandbox could not be made: %s", error)
    else:
        _faults.note(error, "A sandbox was not made.")

"""One attempt of a run, from its lease to its end.

Only the gateway speaks to Prefect here; `flows/execute_workflow.py` says what the end is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from sqlalchemy.orm import Session

from flows.config.settings import Settings
from flows.graphs.errors import (
    BreakerOpenError,
    DatabaseRefusedError,
    ExecutionClosedError,
    LeaseError,
    NodeError,
    NovaError,
    RunTimeoutError,
)
from flows.graphs.lifecycle import CANCELLED, Ending, Status
from flows.prefect_gateway.flow_runs import FlowRuns
from flows.runs import outcomes
from flows.runs.lease_keeper import HeldLease
from flows.runs.loading import LoadedRun, RunRequest, load_run
from flows.runs.node_executor import NodeExecutor
from flows.runs.process import Process
from flows.runs.retry_policy import retry_until_database, run_until_committed
from flows.runs.sandbox_session import SandboxSession
from flows.sandbox.port import SandboxSpec
from flows.store import executions
from flows.store.transitions import attempts

T = TypeVar("T")
Log = logging.Logger | logging.LoggerAdapter[logging.Logger]
Walk = Callable[[LoadedRun, NodeExecutor, HeldLease, Log], Awaitable[int]]
"""Runs node after node until an end, and returns how many steps the whole run has."""


@dataclass(frozen=True)
class AttemptEnd:
    """How an attempt ended, and the sentence that says so."""

    ending: Ending
    message: str


class Attempt:
    """One attempt of a run.

    `runs` tells Prefect of the run, `walk` runs its nodes, `spec` is the sandbox that they get.
    """

    def __init__(
        self,
        settings: Settings,
        shared: Process,
        runs: FlowRuns,
        request: RunRequest,
        spec: SandboxSpec,
        walk: Walk,
        log: Log,
    ) -> None:
        self._settings = settings
        self._shared = shared
        self._database = shared.database
        self._runs = runs
        self._request = request
        self._spec = spec
        self._walk = walk
        self._log = log
        self._took_lease = False

    async def take(self) -> tuple[HeldLease | None, BreakerOpenError | None]:
        """Return the lease that NOVA's worker took for this run, else take one; and why it may not use E2B.

        Raises LeaseHeldError, and PrefectUnavailableError.
        """
        leases = self._shared.leases
        if (held := leases.held(self._request.flow_run_id)) is not None:
            return held, None
        self._took_lease = True

        def take(ask_breaker: bool) -> Awaitable[HeldLease | None]:
            return leases.take_for(
                self._request, self._runs, self._runs.request_of_start, ask_breaker=ask_breaker
            )

        try:
            return await retry_until_database(lambda: take(self._settings.uses_e2b)), None
        except BreakerOpenError as refusal:
            return await retry_until_database(lambda: take(False)), refusal

    async def leave(self) -> None:
        """End the sandbox, and release the lease if this attempt took it.

        NOVA's worker keeps its lease until Prefect has heard how the run ended, which is after this.
        """
        await self._shared.sandboxes.end(self._spec.flow_run)
        if self._took_lease:
            await self._shared.leases.release(self._spec.flow_run)

    async def make(
        self, held: HeldLease | None, refusal: BreakerOpenError | None, tags: Iterable[str]
    ) -> AttemptEnd:
        """Load the run, run its nodes, and end it in its row; return how it ended. `tags` are the flow run's.

        Raises LeaseError.
        """
        lease = held.lease if held is not None else None
        if held is not None and refusal is None:
            self._shared.sandboxes.begin(self._spec)
        try:
            run = await run_until_committed(
                self._database,
                lambda session: load_run(session, self._request, lease, self._shared.cipher, self._settings),
            )
        except ExecutionClosedError as error:
            self._log.warning("Nothing is run: %s", error)
            return await self._as_closed(str(error))
        except LeaseError:
            raise
        except NovaError as error:
            return await self._fail(held, error) if held is not None else _failed(error)
        if held is None:
            raise RuntimeError("A run was loaded without its lease.")
        if self._request.public_id is None:
            await self._label(run, tags)
        return await self._execute(run, held, refusal)

    async def _as_closed(self, message: str) -> AttemptEnd:
        """How a run ended that is over: what its row says."""
        row = await run_until_committed(
            self._database, lambda session: executions.by_task(session, self._request.flow_run_id)
        )
        if row is None or row.revoked or row.status is Status.CANCELLED:
            return AttemptEnd(Ending.CANCELLED, message)
        is_completed = row.status is Status.COMPLETED
        return AttemptEnd(Ending.COMPLETED if is_completed else Ending.FAILED, message)

    async def _execute(self, run: LoadedRun, held: HeldLease, refusal: BreakerOpenError | None) -> AttemptEnd:
        """Run node after node to the end, or to the node that fails."""
        shared, log = self._shared, self._log
        sandbox = SandboxSession(
            self._settings, shared.database, shared.cipher, shared.sandboxes, run, self._spec, log
        )
        nodes = NodeExecutor(self._settings, shared.database, shared.cipher, run, sandbox, log)
        try:
            if refusal is not None:
                raise refusal
            await sandbox.open()  # the wait for its turn is none of the run's time
            steps = await self._walk_in_time(run, nodes, held)
        except LeaseError:
            raise
        except NovaError as error:
            return await self._break_off(run, held, error, nodes.at)
        except Exception as error:
            # A fault of NOVA's own must not leave the row open. Prefect's log has its traceback.
            log.exception("NOVA itself failed")
            fault = NovaError(f"NOVA itself failed: {type(error).__name__}: {error}")
            return await self._break_off(run, held, fault, None)
        try:
            await self._end(held, lambda session: attempts.complete(session, held.lease))
        except DatabaseRefusedError as error:
            return await self._fail(held, error)
        return AttemptEnd(Ending.COMPLETED, f"{steps} nodes executed")

    async def _fail(self, held: HeldLease, error: NovaError) -> AttemptEnd:
        """Close the run as failed."""
        try:
            await self._end(held, lambda session: outcomes.fail(session, held.lease, error))
        except DatabaseRefusedError as refusal:
            return self.unwritten(error, refusal)
        return _failed(error)

    def unwritten(self, error: NovaError, refusal: DatabaseRefusedError) -> AttemptEnd:
        """End an attempt whose end PostgreSQL refuses to write; nobody waits for it. Prefect has the reason.

        The row stays open. The reconciler, or a poll, closes it by what Prefect says as soon as it can be.
        """
        self._log.error("How this attempt ended could not be written in its execution: %s", refusal)
        return _failed(error)

    async def _break_off(
        self, run: LoadedRun, held: HeldLease, error: NovaError, node: str | None
    ) -> AttemptEnd:
        """Schedule the next attempt where that may help, else close the run as failed."""

        def write(session: Session) -> datetime | None:
            due = outcomes.schedule_retry(session, self._settings, run, error, node)
            if due is None:
                outcomes.fail(session, run.lease, error, node)
            return due

        try:
            due = await self._end(held, write)
        except DatabaseRefusedError as refusal:
            return self.unwritten(error, refusal)
        if due is None:
            return _failed(error)
        message = f"{str(error).rstrip('.')}. The next attempt is at {due.astimezone(UTC):%H:%M:%S} UTC."
        self._log.warning("%s", message)
        return await self._tell_retry(held, message, due)

    async def _tell_retry(self, held: HeldLease, message: str, due: datetime) -> AttemptEnd:
        """Put the flow run in its queue until its next attempt; close a run that is being cancelled."""
        try:
            if await self._runs.requeue(self._spec.flow_run, message, due):
                return AttemptEnd(Ending.RETRY_SCHEDULED, message)
        except NovaError as error:  # the row says when it is due: the reconciler tells Prefect
            self._log.warning("The next attempt is scheduled, but Prefect has not heard of it yet: %s", error)
            return AttemptEnd(Ending.RETRY_SCHEDULED, message)
        await run_until_committed(
            self._database, lambda session: attempts.cancel(session, held.lease, CANCELLED)
        )
        return AttemptEnd(Ending.CANCELLED, CANCELLED)

    async def _end(self, held: HeldLease, write: Callable[[Session], T]) -> T:
        """Write how this attempt ends, and end the sandbox meanwhile."""
        held.end()
        written, _ = await asyncio.gather(
            run_until_committed(self._database, write), self._shared.sandboxes.end(self._spec.flow_run)
        )
        return written

    async def _walk_in_time(self, run: LoadedRun, nodes: NodeExecutor, held: HeldLease) -> int:
        """Run the nodes within the time that a run may take; return how many steps the whole run has."""
        limit, warning = self._settings.run_timeout, self._settings.run_warning
        said = "The run has taken %g s; at %g s it is stopped."
        watch = asyncio.get_running_loop().call_later(warning, self._log.warning, said, warning, limit)
        try:
            async with asyncio.timeout(limit) as timeout:
                return await self._walk(run, nodes, held, self._log)
        except TimeoutError:
            if not timeout.expired():
                raise
            raise RunTimeoutError(f"The run took longer than {limit:g} s and was stopped.") from None
        finally:
            watch.cancel()

    async def _label(self, run: LoadedRun, tags: Iterable[str]) -> None:
        """Give a run that the API did not make its readable name and tags; it may go without."""
        try:
            await self._runs.label(self._spec.flow_run, name=run.name, tags=sorted({*tags, *run.tags}))
        except NovaError as error:
            self._log.warning(
                "The flow run keeps its name, since Prefect did not take the new one: %s", error
            )


def _failed(error: NovaError) -> AttemptEnd:
    message = str(error)
    if isinstance(error, NodeError) and error.node_id:
        message = f"Node {error.node_id!r} failed: {message}"
    return AttemptEnd(Ending.FAILED, message)

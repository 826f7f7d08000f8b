"""The sandbox of an attempt: the one that was prewarmed, then each that replaces one that broke."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from sqlalchemy.orm import Session

from flows.config.settings import Settings
from flows.credentials.cipher import Cipher
from flows.graphs.errors import SandboxError
from flows.runs import retry_policy
from flows.runs.loading import LoadedRun, open_context
from flows.runs.retry_policy import run_until_committed
from flows.sandbox.port import NodeCall, NodeResult, Sandbox, SandboxSpec
from flows.sandbox.prewarm import RunSandboxes
from flows.store import circuit_breaker
from flows.store.database import Database
from flows.store.transitions import attempts

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


class SandboxSession:
    """Owns the sandbox of one attempt of a run, which has one at a time."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        cipher: Cipher,
        sandboxes: RunSandboxes,
        run: LoadedRun,
        spec: SandboxSpec,
        log: Log,
    ) -> None:
        self._settings = settings
        self._sandboxes = sandboxes
        self._database = database
        self._cipher = cipher
        self._run = run
        self._spec = spec
        self._log = log
        self._is_taken = False
        self._stale = run.stale_sandbox
        self._sandbox: Sandbox | None = None

    async def dispose_stale(self) -> None:
        """End the sandbox of an earlier attempt, if there is one; raises SandboxError."""
        if self._stale is not None:
            await self._sandboxes.provider.kill(self._stale)
            self._stale = None

    async def open(self) -> None:
        """Get a sandbox and load the run's context into it; tries again in place where that may help.

        Raises SandboxError, and LeaseLostError.
        """
        pauses = retry_policy.pauses(self._settings.node_retry_delay)
        while True:
            try:
                await self._open()
                return
            except SandboxError as error:
                pause = next(pauses, None)
                if pause is None or not retry_policy.may_pass_soon(error):
                    raise
                self._log.warning("%s It is tried again in %.1f s.", error, pause)
            await asyncio.sleep(pause)

    async def replace(self) -> None:
        """End the sandbox that broke and get another one; raises what `_open` raises."""
        if self._sandbox is not None:
            self._stale, self._sandbox = self._sandbox.id, None
            await self._sandboxes.end(self._spec.flow_run)
        await self._open()

    async def run(self, call: NodeCall) -> NodeResult:
        """Run a node; raises SandboxError, after which `replace` gives another sandbox."""
        if self._sandbox is None:
            raise SandboxError("The run has no sandbox.")
        try:
            return await self._sandbox.run(call)
        except SandboxError as error:
            await self._count(error)
            raise

    async def end(self) -> None:
        """End the sandbox, made or still in the making."""
        await self._sandboxes.end(self._spec.flow_run)

    async def _count(self, error: SandboxError) -> None:
        """Count a failure in the circuit breaker, if the provider is to blame."""
        settings = self._settings
        if settings.uses_e2b and retry_policy.is_provider_failure(error):
            await run_until_committed(
                self._database,
                lambda session: circuit_breaker.failed(
                    session, settings.breaker_threshold, settings.breaker_pause
                ),
            )

    async def _open(self) -> None:
        """Get a sandbox; one that cannot be used is ended, and the failure counted."""
        try:
            await self._prepare()
        except SandboxError as error:
            error.unused = True
            await self._sandboxes.end(self._spec.flow_run)
            await self._count(error)
            raise

    async def _prepare(self) -> None:
        """Wait for the sandbox, note it in the row before any node starts, and load the context."""
        making = self._sandboxes.begin(self._spec)
        await self.dispose_stale()
        sandbox = await making.ready()
        context = {**await self._take_context(), **self._run.overlay.fragments()}

        def note(session: Session) -> None:
            attempts.note_sandbox(session, self._run.lease, sandbox.id)
            if self._settings.uses_e2b:
                circuit_breaker.succeeded(session)

        # Wait for both: a note that came late would name a sandbox that was replaced since.
        done = await asyncio.gather(
            run_until_committed(self._database, note),
            sandbox.load(context),
            return_exceptions=True,
        )
        for outcome in done:
            if isinstance(outcome, BaseException):
                raise outcome
        self._sandbox = sandbox

    async def _take_context(self) -> Mapping[str, bytes]:
        """Return the run's context: first as it was loaded with the run, later from the rows.

        It is not kept here: it would be in memory twice while it is sent to the sandbox.
        """
        if not self._is_taken:
            self._is_taken = True
            context = dict(self._run.context)
            self._run.context.clear()
            return context
        execution_id, cipher = self._run.execution_id, self._cipher
        return await run_until_committed(
            self._database, lambda session: open_context(session, execution_id, cipher)
        )

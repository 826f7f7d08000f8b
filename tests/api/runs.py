"""What a flow does to the database, done by hand: these tests have no worker."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from flows.credentials import vault
from flows.credentials.cipher import Cipher
from flows.credentials.overlay import Overlay
from flows.graphs.json_values import to_fragments
from flows.graphs.lifecycle import ErrorKind, Status
from flows.store import chain, executions
from flows.store.database import Database
from flows.store.models import Execution
from flows.store.transitions import attempts
from tests.endings import end
from tests.leasing import begin, lease_of


class Run:
    """A run that goes as the test says, step by step, with the functions that the flow uses."""

    def __init__(self, database: Database, cipher: Cipher, task_id: str) -> None:
        self._database = database
        self._cipher = cipher
        self._task_id = UUID(task_id)
        self._step = 0
        self.execution_id = 0

    async def begin(self) -> Execution:
        """Take the execution over, as the flow does first."""

        def work(session: Session) -> Execution:
            row = executions.by_task(session, self._task_id)
            assert row is not None
            return begin(
                session,
                flow_run_id=row.flow_run_id or self._task_id,
                public_id=row.public_id,
                workflow_id=row.workflow_id,
                client=None,
                initial={},
            )

        row = await self._database.run(work)
        self.execution_id = row.id
        self._lease = lease_of(row)
        return row

    async def step(
        self,
        node_id: str,
        node_type: str = "action",
        changes: dict[str, Any] | None = None,
        secrets: tuple[str, ...] = (),
        **extra: Any,
    ) -> None:
        """Write the row of a step; one that failed is followed by another attempt of the same step."""
        overlay = Overlay({}, {}, secrets)
        stored = vault.store_changes(self._cipher, overlay, to_fragments(changes or {}))

        def work(session: Session) -> None:
            attempt = chain.next_attempt(session, self.execution_id, self._step)
            row = {"status": "success", "execution_time": 0.25, **extra}
            chain.append(
                session,
                self._lease,
                chain.Step(
                    step=self._step,
                    attempt=attempt,
                    node_id=node_id,
                    node_type=node_type,
                    changes=stored,
                    **row,
                ),
                current_node=node_id,
            )

        await self._database.run(work)
        if extra.get("status") != "failed":
            self._step += 1

    async def schedule_retry(self, error: str, seconds: float) -> datetime:
        """Put the run off, as the flow does when infrastructure broke, and release it; when it is due."""

        def write(session: Session) -> datetime:
            due = attempts.schedule_retry(
                session, self._lease, error, ErrorKind.INFRASTRUCTURE, None, seconds
            )
            attempts.release(session, self._lease)
            return due

        return await self._database.run(write)

    async def finish(
        self,
        status: Status = Status.COMPLETED,
        error: str = "Why.",
        kind: ErrorKind = ErrorKind.NODE,
        node: str | None = None,
    ) -> None:
        """Close the execution, as the flow does last, and release it, as its worker does then."""

        def write(session: Session) -> None:
            end(session, self._lease, status, error, kind, node)
            attempts.release(session, self._lease)

        await self._database.run(write)

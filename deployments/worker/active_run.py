"""One run that a worker holds."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

from prefect.client.schemas.objects import FlowRun

from flows.graphs.lifecycle import Ending
from flows.runs.lease_keeper import HeldLease


@dataclass
class Run:
    """A flow run from its claim to its end. `ending` and `task` belong to the flows' thread."""

    flow_run: FlowRun
    ending: Ending | None = None
    is_stopped: bool = False
    task: asyncio.Task[None] | None = field(default=None, repr=False)
    """Set while it may be cancelled: not before its body runs, which alone can end it in Prefect."""
    held: HeldLease | None = field(default=None, repr=False)
    """The lease of its execution, for a run of NOVA's own flow."""

    @property
    def id(self) -> UUID:
        """The flow run's id."""
        return self.flow_run.id

    @property
    def is_ending(self) -> bool:
        """Whether its last word is written, or on its way."""
        return self.held is not None and self.held.is_ending

    async def release_lease(self) -> bool:
        """Let others have the run; False when it was not ours any more: its row says what became of it."""
        return self.held is None or await self.held.release()

    def abandon_lease(self) -> None:
        """Let the lease run out: nobody knows whether Prefect has given us the run."""
        if self.held is not None:
            self.held.abandon()

    def let_end(self) -> None:
        """Do not interrupt it any more: it is telling Prefect how it ended."""
        self.task = None

    @contextmanager
    def uninterrupted(self, to_the_end: bool) -> Iterator[None]:
        """Put a stop off until the end of the block, where it raises CancelledError; or for good."""
        task, self.task = self.task, None
        yield
        if task is None or to_the_end:
            return
        self.task = task
        if self.ending is not None:
            raise asyncio.CancelledError

    def leave(self) -> None:
        """Have it be handed back before its next node; call it in the flows' thread."""
        if self.ending is None:
            self.ending = Ending.REQUEUED
            if self.held is not None:
                self.held.request_leave()

    def stop(self, ending: Ending) -> None:
        """Have it end now; call it in the flows' thread. The first call counts.

        One that is writing its last word ends by itself: broken off after that, it would be handed back
        though its row is closed, and go on as if a person had retried it.
        """
        if self.is_stopped:
            return
        self.is_stopped, self.ending = True, ending
        if self.task is not None and not self.is_ending:
            self.task.cancel()

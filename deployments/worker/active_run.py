"""One run that this worker has claimed or is claiming."""

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
class ActiveRun:
    """A flow run from its claim to its end. Only the flows' thread may change `ending` and `task`."""

    flow_run: FlowRun
    ending: Ending | None = None
    is_stopped: bool = False
    task: asyncio.Task[None] | None = field(default=None, repr=False)
    """The run's task while it may be cancelled: before its body runs, nothing could end it in Prefect."""
    held: HeldLease | None = field(default=None, repr=False)
    """The lease of its execution; only runs of NOVA's own flow have one."""

    @property
    def id(self) -> UUID:
        """Return the flow run's id."""
        return self.flow_run.id

    @property
    def is_ending(self) -> bool:
        """Return whether the end of this attempt is written, or being written, to the run's row."""
        return self.held is not None and self.held.is_ending

    async def release_lease(self) -> bool:
        """Release the run's lease; return False if it was lost before: then the row says what happened."""
        return self.held is None or await self.held.release()

    def abandon_lease(self) -> None:
        """Stop renewing the lease, so that it runs out: it is not known whether Prefect gave us the run."""
        if self.held is not None:
            self.held.abandon()

    def forbid_interruption(self) -> None:
        """Let no stop interrupt the run from here on: it is telling Prefect how it ended."""
        self.task = None

    @contextmanager
    def uninterrupted(self, to_the_end: bool) -> Iterator[None]:
        """Delay a stop until the end of the block, where it raises CancelledError.

        With `to_the_end`, no stop interrupts the run any more, not even after the block.
        """
        task, self.task = self.task, None
        yield
        if task is None or to_the_end:
            return
        self.task = task
        if self.ending is not None:
            raise asyncio.CancelledError

    def request_leave(self) -> None:
        """Ask for the run to be requeued before its next node; call this in the flows' thread."""
        if self.ending is None:
            self.ending = Ending.REQUEUED
            if self.held is not None:
                self.held.request_leave()

    def stop(self, ending: Ending) -> None:
        """End the run now; call this in the flows' thread. Only the first call counts.

        A run that is writing its end to its row ends by itself. If it were cancelled then, it would be
        requeued although its row is closed, and go on as if a person had retried it.
        """
        if self.is_stopped:
            return
        self.is_stopped, self.ending = True, ending
        if self.task is not None and not self.is_ending:
            self.task.cancel()

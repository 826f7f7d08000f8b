"""One run that a worker holds."""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass, field
from uuid import UUID

from prefect.client.schemas.objects import FlowRun


class Ending(enum.Enum):
    """How a run that the worker stops ends in Prefect."""

    CANCELLED = "cancelled"
    HANDED_BACK = "handed back"


@dataclass
class Run:
    """A flow run from its claim to its end. `ending` and `task` belong to the flows' thread."""

    flow_run: FlowRun
    ending: Ending | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)
    """Set once its body runs: a task that is cancelled before that would never get to end its run."""

    @property
    def id(self) -> UUID:
        """The flow run's id."""
        return self.flow_run.id

    def stop(self, ending: Ending) -> None:
        """Have it end; call it in the flows' thread. The first call counts."""
        if self.ending is not None:
            return
        self.ending = ending
        if self.task is not None:
            self.task.cancel()

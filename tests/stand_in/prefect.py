"""A stand-in of Prefect's server, in memory: the REST calls that NOVA and Prefect's flow engine make.

It answers without any I/O, in well below a millisecond, and does the same thing each time. What it does is
held against the real server by `test_contract*.py`; where they differ the real one is right. A call, a filter
or an order that it does not know is answered with 501, never with a guess.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from tests.stand_in import events, routes, services
from tests.stand_in.records import JSON
from tests.stand_in.world import Refusal, Tables, World

Answer = tuple[int, Any]
"""Status code and body."""


def real_time() -> datetime:
    """The time of this machine."""
    return datetime.now(UTC)


class StandIn:
    """Prefect's server: `answer` is its API, the other methods are what happens to it in a test.

    `now` is its clock. The ids that it gives are the same ones in each stand-in of the same `seed`.
    """

    def __init__(self, now: Callable[[], datetime] = real_time, seed: int = 0) -> None:
        self.world = World(now, seed)
        self._lock = threading.RLock()  # a test may act while a server's thread answers

    def answer(self, method: str, path: str, query: Mapping[str, str], body: Any) -> Answer:
        """Answer one request; `path` is without `/api`."""
        try:
            with self._lock:
                return routes.answer(self, method, path.strip("/").split("/"), query, body)
        except Refusal as refusal:
            return refusal.status, refusal.body

    def lose_everything(self) -> None:
        """Empty the database."""
        with self._lock:
            self.world.tables = Tables()

    def snapshot(self) -> bytes:
        """Return a backup of the database."""
        with self._lock:
            return pickle.dumps(self.world.tables)

    def restore(self, backup: bytes) -> None:
        """Put a backup in the place of the database."""
        with self._lock:
            self.world.tables = pickle.loads(backup)

    def mark_late(self) -> None:
        """Mark overdue runs Late."""
        with self._lock:
            services.mark_late(self.world)

    def fire_schedules(self) -> None:
        """Make the next runs of all active schedules, as the scheduler does."""
        with self._lock:
            services.schedule_all(self.world)

    def run_services(self) -> None:
        """Do all that the real server does by itself, once, as is due by its clock."""
        with self._lock:
            services.run_all(self.world)

    def receive(self, event: JSON) -> None:
        """Take an event that a client emitted."""
        with self._lock:
            self.world.emit(event)
            by_client = event["resource"].get("prefect.orchestration") == "client"
            if by_client and event["event"].startswith("prefect.task-run."):
                events.record_task_run(self.world, event)

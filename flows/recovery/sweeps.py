"""The sweeps: what one process at a time does for all, each under a lock of its own."""

from __future__ import annotations

import enum

from flows.config import times
from flows.config.settings import Settings
from flows.store.sweep_lock import SweepLock


class Sweep(enum.Enum):
    """What is swept; who does it."""

    RUNS = "runs"
    """Executions that nobody runs, and what Prefect and the rows say of them: any API or worker."""
    SUBMISSIONS = "submissions"
    """Runs that Prefect was never told of, and deployments that it has lost: an API."""
    ADRIFT = "adrift"
    """Runs that wait in no queue: a worker, which runs them."""


def sweep_lock(settings: Settings, sweep: Sweep) -> SweepLock:
    """The lock of a sweep, for one process of this installation; close it in the end."""
    seconds = times.sweep_lock(settings.recovery_interval)
    return SweepLock(settings.sqlalchemy_url, settings.work_pool, sweep.value, seconds)
